"""Lessons, the training on whole stories, the scaling law, and the recorded experiments."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from gptbook import microworld
from gptbook.emergence import (
    Lesson,
    ScalingLaw,
    fit_scaling,
    story_batches,
    story_loss,
    story_model,
    story_tokenizer,
    tell_stories,
    train_on_stories,
)
from gptbook.evaluate import StoryJudge, evaluate_run, story_rows, story_scores
from gptbook.microworld import REMINDERS, told_within
from gptbook.tokenizer import BPETokenizer
from gptbook.training import book_model

SHORT = {"people": (1, 3), "things": (1, 2), "events": (0, 1), "questions": (2, 3)}
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "nbs" / "results" / "emergence.jsonl"


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return story_tokenizer()


def test_bounds_hold_inside_and_only_there() -> None:
    before = microworld.sample(3), microworld.logprob(microworld.sample(3))
    with pytest.raises(RuntimeError), told_within(**SHORT):
        short = [microworld.sample(i) for i in range(200)]
        assert all(math.isfinite(microworld.logprob(story)) for story in short[:20])
        total = sum(p for p, _ in microworld.next_sentences(microworld.World()))
        assert math.isclose(total, 1)
        raise RuntimeError
    assert (microworld.sample(3), microworld.logprob(microworld.sample(3))) == before
    lines = [story.split("\n") for story in short]
    assert {len(asked) - 1 for asked in lines} == {2, 3}
    assert max(len(microworld.sentences(asked[0])) for asked in lines) <= 3 + 2 + 1
    with told_within(questions=(1, 1)):
        one = microworld.sample(3)
    assert not math.isfinite(microworld.logprob(one))  # the whole language asks at least twice
    with pytest.raises(ValueError, match="bounds"), told_within(dragons=(1, 2)):
        pass


def test_lessons(tokenizer: BPETokenizer) -> None:
    def told(lesson: Lesson, seed: int = 0) -> list[bytes]:
        batches = [*story_batches(tokenizer, lesson, seed)]
        assert len(batches) == lesson.steps
        return [row[row >= 0].numpy().tobytes() for batch in batches for row in batch]

    again, fresh = told(Lesson(6, 4, 8, SHORT)), told(Lesson(3, 4, None, SHORT))
    assert set(Counter(again).values()) == {3} and len(set(again)) == 8
    assert len(set(fresh)) == len(fresh) == 12 and set(again) != set(fresh)
    assert told(Lesson(3, 4, None, SHORT)) == fresh != told(Lesson(3, 4, None, SHORT), seed=1)


def test_a_batch_has_stories_of_about_one_length(tokenizer: BPETokenizer) -> None:
    lengths = [(batch >= 0).sum(1) for batch in story_batches(tokenizer, Lesson(40, 4))]
    assert max(x.max() - x.min() for x in lengths[:-1]) < 60 and len({x.max().item() for x in lengths}) > 10


def test_a_language_without_some_kinds_of_event() -> None:
    with told_within(without=REMINDERS):
        plain = [microworld.sample(i) for i in range(200)]
        assert all(math.isfinite(microworld.logprob(story)) for story in plain[:20])
    told = [microworld.sample(i) for i in range(200)]
    assert not any(" still " in story for story in plain) and any(" still " in story for story in told)
    with pytest.raises(ValueError, match="without"), told_within(without=("dance",)):
        pass


def test_training_on_stories(tokenizer: BPETokenizer) -> None:
    model, looked = story_model(tokenizer.vocab_size, n_layer=1, d_model=16, n_head=1), []
    assert abs(model.embedding.weight.std().item() - 1) < 0.02
    assert torch.equal(
        model.head.weight, story_model(tokenizer.vocab_size, n_layer=1, d_model=16, n_head=1).head.weight
    )
    rows = tell_stories(tokenizer, 0, 16, **SHORT)
    padded = torch.nn.functional.pad(rows, (0, 9), value=-1)
    torch.testing.assert_close(story_loss(model, rows), story_loss(model, padded))
    before = story_loss(model, rows).item()
    lesson, fast = Lesson(30, 8, 16, SHORT), {"lr": 3e-3, "muon_lr": 0.02, "decay": 0.3}
    train_on_stories(
        model, story_batches(tokenizer, lesson), 30, watch=(0, 10, 30), look=looked.append, **fast
    )
    assert looked == [0, 10, 30] and not model.training
    assert story_loss(model, rows).item() < before - 0.3


def test_scaling_law() -> None:
    truth = ScalingLaw(E=50.0, A=800.0, B=3000.0, a=0.5, b=0.4)
    n, d = (grid.ravel() for grid in np.meshgrid(2.0 ** np.arange(12, 19, 2), 2.0 ** np.arange(12, 20, 2)))
    found = fit_scaling(n, d, truth.loss(n, d), np.arange(0.1, 1.01, 0.1))
    assert (
        math.isclose(found.E, 50, rel_tol=1e-6) and math.isclose(found.a, 0.5) and math.isclose(found.b, 0.4)
    )
    assert math.isclose(found.A, 800, rel_tol=1e-6) and math.isclose(found.B, 3000, rel_tol=1e-6)
    params, tokens = truth.optimal(1e12)
    around = [truth.loss(params * x, 1e12 / 6 / (params * x)) for x in (0.9, 1, 1.1)]
    assert math.isclose(6 * params * tokens, 1e12) and around[1] == min(around)
    with pytest.raises(ValueError, match="4 runs"):
        fit_scaling(n[:4], d[:4], n[:4])


def test_the_recorded_experiments_are_whole() -> None:
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    kinds = Counter(line["experiment"] for line in lines)
    assert kinds["ablation"] == 6 * 10 + 4, "six seeds each, four of them twice"
    assert kinds["scaling"] == 2 * 30 and kinds["size"] == 3 * 3
    assert kinds["objectives"] == 3 * 3 + 3 + 2, "three seeds each, longer ones, other rates"
    assert all(re.fullmatch(r"[0-9a-f]{7,}(\+changes)?", line["commit"]) for line in lines)
    for seed in range(6):
        ends = {}
        for name in ("drill", "story", "no drill"):
            found = [line for line in lines if (line["experiment"], line["seed"]) == (name, seed)]
            ends[name] = found[-1]
            assert len(found) >= (19 if seed < 3 else 5)
            assert found[-1]["step"] == found[-1]["lesson"]["steps"]
            assert [line["step"] for line in found] == sorted({line["step"] for line in found})
        assert ends["drill"]["stories"] + ends["story"]["stories"] == ends["no drill"]["stories"]
        if seed == 0:  # the book's model
            assert ends["story"]["told_apart"] > ends["story"]["told_apart_chance"] + 0.3


def test_the_story_model_is_the_one_that_was_measured() -> None:
    """Loaded from float16, it does on a few stories what the recorded measurement says."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    told = [line for line in lines if line["experiment"] == "story" and line["seed"] == 0]
    last = max(told, key=lambda line: line["step"])
    model, tokenizer = book_model("story")
    found = StoryJudge(tokenizer, "en", 200, known=frozenset()).read(model)
    assert abs(found["nats_above_entropy"] - last["nats_above_entropy"]) < 0.1
    assert abs(found["answered"] - last["answered"]) < 0.02


def test_stories_that_do_not_fill_a_batch_are_refused(tokenizer: BPETokenizer) -> None:
    with pytest.raises(ValueError, match="do not fill a batch"):
        next(story_batches(tokenizer, Lesson(steps=5, batch_size=64, stories=32)))


def test_the_story_run_is_measured_as_it_was_trained() -> None:
    """A story in a row, from position 0 on; the stories of the run's split are windows of whole text."""
    model, tokenizer = book_model("story")
    rows = story_rows([microworld.sample(i, "en", "val") for i in range(100)], tokenizer)
    nats, _ = story_scores(model, rows)
    found = evaluate_run(ROOT / "gptbook" / "models" / "story")
    assert found.tokens == pytest.approx((rows[:, 1:] >= 0).sum().item(), abs=1)
    assert found.loss == pytest.approx(nats.sum().item() / found.tokens, abs=0.005)
