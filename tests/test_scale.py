"""Communication, memory and the planner: against other sums, and what the command says."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptbook.scale import (
    PROCESSORS,
    ScalingLaw,
    describe_plan,
    memory_per_process,
    parse_count,
    plan,
    ring_all_reduce,
)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**31))
def test_ring_sums_and_sends_what_the_formula_says(p: int, each: int, seed: int) -> None:
    parts = list(np.random.default_rng(seed).standard_normal((p, p * each)))
    before = [part.copy() for part in parts]
    sums, sent = ring_all_reduce(parts)
    assert all(np.allclose(s, sum(before)) for s in sums) and len(sums) == p
    assert sent == [2 * (p - 1) * each * 8] * p
    assert all(np.array_equal(a, b) for a, b in zip(parts, before)), "what was given is not changed"


def test_memory_adds_up() -> None:
    assert memory_per_process(1000) == 16_000
    assert memory_per_process(1000, 8) == 16_000, "not sharded: the same in each"
    assert memory_per_process(1000, 8, sharded=True, gathered=100) == 2_000 + 400
    with pytest.raises(ValueError, match="processes = 0"):
        memory_per_process(1000, 0)


@pytest.mark.parametrize("flops", [1e18, 1e21, 1e25])
def test_no_other_size_is_better(flops: float) -> None:
    law = ScalingLaw()
    params, tokens = law.optimal(flops)
    assert 6 * params * tokens == pytest.approx(flops)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert law.loss(factor * params, tokens / factor) > law.loss(params, tokens)


def test_sizes_as_people_write_them() -> None:
    found = [parse_count(text) for text in ("124M", "7b", "1.5T", "300e9", " 12 ", "2k", 5)]
    assert found == [124e6, 7e9, 1.5e12, 300e9, 12, 2e3, 5]
    for bad in ("", "x", "-3", "0", "1.2.3", "7 billion", "1e99", "inf", "nan"):
        with pytest.raises(ValueError, match=r"is not a number|must be above 0"):
            parse_count(bad)


@pytest.mark.parametrize(
    ("params", "tokens", "gpu", "hours"),
    [
        (6.74e9, 2e12, "a100", 184_320),
        (69e9, 2e12, "a100", 1_720_320),
        (405e9, 15.6e12, "h100", 30_840_000),
    ],
)
def test_published_runs(params: float, tokens: float, gpu: str, hours: float) -> None:
    assert plan(params, tokens, 2048, gpu=gpu).gpu_hours == pytest.approx(hours, rel=0.25)


def test_short_plans_are_in_short_units() -> None:
    text = describe_plan(plan(1e6, 1e6, 1))
    assert "0.015 seconds on 1 x h100" in text and "GPU hours       4.2e-06" in text
    assert " hours on 1 x h100" in describe_plan(plan(1e8, 5e9, 1))
    assert " days on 1 x h100" in describe_plan(plan(1e9, 5e10, 1))


def test_plan_is_consistent() -> None:
    one, many = plan(7e9, 2e12, 64), plan(7e9, 2e12, 640)
    assert one.days == pytest.approx(10 * many.days) and one.gpu_hours == pytest.approx(many.gpu_hours)
    assert many.memory_bytes < one.memory_bytes and many.exchange_seconds > one.exchange_seconds
    assert plan(7e9, 2e12, 1).exchange_seconds == 0, "alone there is nobody to send to"
    assert not plan(70e9, 2e12, 1).fits and plan(70e9, 2e12, 64).fits
    assert plan(7e9, 2e12, 64, dollars_per_hour=1.0).dollars == pytest.approx(one.gpu_hours)
    assert "DOES NOT FIT" in describe_plan(plan(70e9, 2e12, 1)) and "405B" in describe_plan(
        plan(405e9, 1e12, 9)
    )
    assert all(name in "a100 h100 b200" for name in PROCESSORS)


def test_a_step_with_fewer_samples_than_gpus() -> None:
    """It is said in one more line, and only then."""
    few, enough = plan(1e12, 20e12, 16384), plan(1e12, 20e12, 16384, batch_tokens=16384 * 4096)
    said = describe_plan(few).splitlines()
    note = "a step of 4M tokens has 977 samples, fewer than GPUs; one for each takes 67.1M tokens"
    assert said[-1] == f"{'note':<16}{note}"
    assert len(describe_plan(enough).splitlines()) == len(said) - 1
    assert "note" not in describe_plan(plan(1e12, 20e12, 976)) and few.fits


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"gpu": "h10"}, "did you mean 'h100'"),
        ({"mfu": 0.0}, "mfu = 0.0"),
        ({"gpus": 0}, "gpus = 0"),
        ({"params": -1}, "params = -1"),
        ({"context": 0}, "context = 0"),
        ({"batch_tokens": 10}, "batch_tokens = 10"),
        ({"dollars_per_hour": -1}, "dollars_per_hour = -1"),
    ],
)
def test_what_cannot_be_planned(change: dict, saying: str) -> None:
    with pytest.raises(ValueError, match=saying):
        plan(**{"params": 7e9, "tokens": 2e12, "gpus": 8} | change)


def test_command() -> None:
    def run(*options: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "gptbook", "plan", *options], capture_output=True, text=True
        )

    done = run("--params", "7B", "--tokens", "2T", "--gpus", "1024", "--json")
    made = json.loads(done.stdout)
    assert made["params"] == 7e9 and made["gpus"] == 1024 and made["fits"]
    bad = run("--params", "seven", "--tokens", "2T", "--gpus", "8")
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "7B" in bad.stderr
