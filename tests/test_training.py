"""Chapters 13 and 15: what one step of training computes, and what an evaluation reports."""

import json
import math
import sys
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptbook import training
from gptbook.config import GPTConfig, TrainConfig
from gptbook.data import Batches, TokenData
from gptbook.evaluate import evaluate_model, open_run
from gptbook.model import GPT
from gptbook.sample import generate
from gptbook.training import MODELS, book_model, train, train_step
from gptbook.workshop.processes import World

V, T = 19, 8


class Row:
    """Tokens in memory, to be read as those of a corpus are."""

    def __init__(self, size: int):
        self.ids = np.random.default_rng(0).integers(V, size=size)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, length: int) -> np.ndarray:
        return self.ids[start : start + length]


def model_in_float64(**dials) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig.tiny(V, n_layer=1, d_model=16, **dials)).double()


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_accumulated_batches_are_one_large_batch(accumulate: int) -> None:
    """The same loss and gradient. Plain descent shows the gradient's size, to which Adam is blind."""
    stepped = []
    for n in (1, accumulate):
        config = TrainConfig(corpus="", out="", batch_size=6 // n, accumulate=n, context_length=T, clip=1e3)
        model, batches = model_in_float64(), Batches(Row(300), 6 // n, T)
        optimizer = torch.optim.SGD([{"params": model.parameters(), "max_lr": 1.0}], lr=1.0)
        lines = [train_step(model, [optimizer], batches, step, config, torch.float32) for step in range(3)]
        stepped.append((lines, torch.cat([p.detach().flatten() for p in model.parameters()])))
    (whole, weights), (parts, others) = stepped
    for a, b in zip(whole, parts):
        assert b == pytest.approx(a, rel=1e-5)  # the loss is taken in float32
    torch.testing.assert_close(others, weights, rtol=0, atol=1e-6)


def loss_of_documents_alone(model: GPT, x: torch.Tensor, y: torch.Tensor, end: int) -> float:
    """Mean loss over the predictions of rows (B, T), each document of a row given to the model by itself."""
    total = 0.0
    for row, targets in zip(x, y):
        starts = [0, *[i for i in range(1, len(row)) if row[i] == end], len(row)]
        for a, b in pairwise(starts):
            total += F.cross_entropy(model(row[None, a:b])[0].float(), targets[a:b], reduction="sum").item()
    return total / y.numel()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_masked_documents_are_documents_alone(accumulate: int) -> None:
    """With ``end_of_text``, packed documents have the mean loss of each by itself; without, they have not."""
    model, row = model_in_float64(), Row(300)
    row.ids[row.ids % 5 == 3] = 3  # the end of a text, in a fifth of the places
    config = TrainConfig(corpus="", out="", batch_size=4, accumulate=accumulate, context_length=T)
    batches = Batches(row, 4, T)
    pairs = [tuple(map(torch.from_numpy, batches.batch(k))) for k in range(accumulate)]
    assert all((x[:, 1:] == 3).any() for x, _ in pairs), "no row has two documents"
    with torch.no_grad():
        alone = sum(loss_of_documents_alone(model, x, y, end=3) for x, y in pairs) / accumulate
    found = {}
    for end in (3, None):
        copy = deepcopy(model)
        optimizer = torch.optim.SGD([{"params": copy.parameters(), "max_lr": 1.0}], lr=1.0)
        line = train_step(copy, [optimizer], batches, 0, config, torch.float32, end_of_text=end)
        found[end] = line["loss"]
    assert found[3] == pytest.approx(alone, abs=1e-6)
    assert abs(found[None] - alone) > 1e-4


def test_bits_per_byte_count_bytes() -> None:
    """The text's negative log-probability in bits, divided by its bytes; not by its tokens."""
    model, data = model_in_float64(context_length=40).eval(), Row(41)
    with torch.no_grad():
        ids = torch.from_numpy(data.ids)
        nats = F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="sum").item()
    for n_bytes in (41, 137):
        found = evaluate_model(model, data, n_bytes)
        assert found.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
        assert (found.tokens, found.bytes) == (40, n_bytes)
        assert found.loss == pytest.approx(nats / 40, rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(nats / 40), rel=1e-5)


# ---- runs --------------------------------------------------------------------------------------------

SMALL = {
    "preset": "tiny", "n_layer": 1, "d_model": 32, "n_head": 2, "vocab_size": 300, "context_length": 32,
    "batch_size": 4, "steps": 6, "eval_every": 3, "eval_batches": 1, "warmup": 2, "threads": 1,
    "precision": "fp32",
}  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> dict:
    """Of a small run on a folder of short documents."""
    (tmp_path / "texts").mkdir()
    for i in range(200):
        text = f"Line {i}: the cat sat on mat {i * i % 97} and thought of {i % 13} things.\n"
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
    return SMALL | {"corpus": str(tmp_path / "texts"), "out": str(tmp_path / "run")}


def quietly(settings: dict, **arguments: object) -> training.Run:
    return train(TrainConfig(**settings), **{"progress": False, "log": lambda line: None} | arguments)


def test_document_mask_of_a_run(settings: dict) -> None:
    """Its losses, also the held-out one, are those of the documents by themselves."""
    run = quietly(settings | {"document_mask": True})
    torch.manual_seed(0)
    model, end = GPT(run.config.model_config(run.tokenizer.vocab_size)), run.tokenizer.end_of_text
    batches = Batches(TokenData(run.folder / "data", "train"), 4, 32)
    x, y = map(torch.from_numpy, batches.batch(0))
    with torch.no_grad():
        alone, packed = loss_of_documents_alone(model, x, y, end), F.cross_entropy(model(x).mT, y).item()
    assert run.metrics[0]["loss"] == pytest.approx(alone, abs=1e-5)
    assert abs(packed - alone) > 1e-4
    held_out = Batches(TokenData(run.folder / "data", "val"), 4, 32, seed=0)
    x, y = map(torch.from_numpy, held_out.batch(0))
    with torch.no_grad():
        alone = loss_of_documents_alone(run.model, x, y, end)
        packed = F.cross_entropy(run.model(x).mT, y).item()
    best = min(line["val_loss"] for line in run.metrics if "val_loss" in line)
    assert best == pytest.approx(alone, abs=1e-5) and abs(packed - alone) > 1e-4
    parts = open_run(run.folder)
    with torch.no_grad():
        again = F.cross_entropy(parts.model(x).mT, y).item()
    assert again == pytest.approx(alone, abs=1e-5), "an evaluation reads them as the training did"
    written = generate(parts.model, x[:1, :5], 8, temperature=0)
    assert torch.equal(written, generate(run.model, x[:1, :5], 8, temperature=0)), "writing is left as it is"


def test_minutes_are_measured_once(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many steps fit is stored before the first step, and a resumed run takes that number and measures no
    more, in a shorter or a longer time."""
    measured, real = [], training._fit_steps

    def fit_steps(engine: object, seconds: float) -> int:
        assert real(engine, 0.05) >= 1, "the real one works, and its model is thrown away"
        measured.append(seconds)
        return 7 if len(measured) == 1 else 11

    def stop(line: dict) -> None:
        if line["step"] == 4:
            raise RuntimeError("enough")

    monkeypatch.setattr(training, "_fit_steps", fit_steps)
    timed = settings | {"minutes": 0.5}
    with pytest.raises(RuntimeError, match="enough"):
        quietly(timed, on_step=stop)
    stored = json.loads((Path(settings["out"]) / "run.json").read_text())
    assert stored["fixed_steps"] == stored["train"]["steps"] == 7
    assert len(measured) == 1 and 0 < measured[0] <= 30
    resumed = quietly({"corpus": timed["corpus"], "out": timed["out"]}, resume=True)
    assert len(measured) == 1
    assert resumed.config.steps == 7 and [m["step"] for m in resumed.metrics] == list(range(1, 8))
    # the same as a run that was told so
    told = quietly(settings | {"steps": 7, "out": settings["out"] + "-told"})
    assert [m["loss"] for m in told.metrics] == [m["loss"] for m in resumed.metrics]


def test_minutes_are_measured_with_the_step_of_the_start(
    settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun by two processes, stopped while steps are measured, resumed by one: a step has two batches."""
    measured = []

    def fit_steps(engine: training._Engine, seconds: float) -> int:
        measured.append(engine.config.accumulate)
        if len(measured) == 1:
            raise RuntimeError("enough")
        return 3

    monkeypatch.setattr(training, "_fit_steps", fit_steps)
    with pytest.raises(RuntimeError, match="enough"):
        quietly(settings | {"minutes": 0.5})
    record = Path(settings["out"]) / "run.json"
    by_one = json.loads(record.read_text())
    assert by_one["batches"] == by_one["train"]["accumulate"] == 1
    record.write_text(json.dumps(by_one | {"batches": 2}))
    resumed = quietly({"corpus": settings["corpus"], "out": settings["out"]}, resume=True)
    assert measured == [1, 2] and resumed.config.accumulate == 2 and len(resumed.metrics) == 3
    assert json.loads(record.read_text())["train"] == by_one["train"] | {"steps": 3}


@pytest.mark.parametrize(
    ("shell", "progress", "shown"),
    [
        (None, None, False),  # a file
        (SimpleNamespace(), None, False),  # IPython in a terminal, with its output in a file
        (SimpleNamespace(kernel=object()), None, True),  # a notebook
        (SimpleNamespace(kernel=object()), False, False),
        (None, True, True),
    ],
)
def test_a_notebook_shows_a_bar(
    shell: object, progress: bool | None, shown: bool, settings: dict, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    quietly(settings, progress=progress)
    said = capsys.readouterr()
    assert ("6/6" in said.err) == shown and "\x1b" not in said.err + said.out
    assert shown or not said.err


# ---- the models that come with the book ------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.parent.name for path in MODELS.glob("*/run.json")))
def test_book_models(name: str) -> None:
    """Each is small, and model and tokenizer belong together."""
    model, tokenizer = book_model(name)
    assert not model.training and model.config.vocab_size == tokenizer.vocab_size
    assert sum(path.stat().st_size for path in (MODELS / name).rglob("*")) < 5_000_000


def test_unknown_book_model() -> None:
    with pytest.raises(ValueError, match=r"'raeder'.*reader"):
        book_model("raeder")


def test_a_run_that_was_being_replaced_is_resumed(settings: dict) -> None:
    """Stopped between the two renames of --overwrite, the old run waits beside its place."""
    old = quietly(settings)
    old.folder.rename(training.replaced_folder(old.folder))
    again = quietly(settings, resume=True)
    assert again.metrics == old.metrics and not training.replaced_folder(old.folder).exists()


def test_a_run_older_than_a_setting_is_read(settings: dict) -> None:
    folder = quietly(settings).folder
    info = json.loads((folder / "run.json").read_text())
    del info["train"]["fused"]
    (folder / "run.json").write_text(json.dumps(info))
    assert training.read_run(folder).fused == "off"
    del info["train"]["lr"]
    (folder / "run.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="damaged"):
        training.read_run(folder)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch):
    """torch.compile as it would be on another machine; what was found out about this one is forgotten."""
    training._try_compiler.cache_clear()
    monkeypatch.setattr(training.shutil, "which", lambda name: name)
    yield lambda result: monkeypatch.setattr(torch, "compile", lambda f, **settings: lambda x: result(x))
    training._try_compiler.cache_clear()


def test_long_runs_are_translated(compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    compiler(torch.sin)
    assert not training.choose_compile(cpu)[0] and "the run is short" in training.choose_compile(cpu)[1]
    assert training.choose_compile(cpu, long=True)[0]
    assert training.choose_compile(cpu, "off", long=True) == (False, "off, as asked")
    assert training.choose_compile(cpu, "on") == (True, "on, as asked")


def test_one_kernel_for_adamw() -> None:
    """By default on a GPU only; what is asked for is taken."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert training.choose_fused(cuda)[0] and not training.choose_fused(cpu)[0]
    assert training.choose_fused(cpu, "on") == (True, "on, as asked")
    assert not training.choose_fused(cuda, "off")[0]
    model = GPT(GPTConfig(vocab_size=8, n_layer=1, n_head=1, d_model=8))
    (adamw,) = training.make_optimizers(
        model, TrainConfig(corpus="-", out="-", optimizer="adamw", fused="on")
    )
    assert adamw.fused


def test_what_keeps_from_translating_is_named(compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(x: torch.Tensor) -> None:
        raise RuntimeError(
            "CppCompileError: C++ compile error\nfatal error: Python.h: No such file or directory"
        )

    compiler(fail)
    chosen, why = training.choose_compile(torch.device("cpu"), long=True)
    assert not chosen and why.startswith("off, as the C++ compiler cannot be used: ") and "Python.h" in why
    with pytest.raises(ValueError, match="--compile on is not possible: the C\\+\\+ compiler cannot be used"):
        training.choose_compile(torch.device("cpu"), "on")
    training._try_compiler.cache_clear()
    monkeypatch.setattr(training.shutil, "which", lambda name: None)
    assert "no C++ compiler" in training.choose_compile(torch.device("cpu"), long=True)[1]


@pytest.mark.parametrize(
    ("changes", "long"),
    [
        ({"minutes": 3.0}, True),
        ({"minutes": 2.9, "preset": "gpt2"}, False),
        ({"preset": "small", "steps": 900}, True),
        ({"preset": "small", "steps": 300}, False),
        ({"preset": "small", "steps": 300, "accumulate": 4}, True),
        ({"preset": "tiny", "steps": 900}, False),
    ],
)
def test_which_runs_are_long(changes: dict, long: bool) -> None:
    config = TrainConfig(corpus="shakespeare", out="-", **changes)
    assert training._is_long(config, 4096) == long


def test_held_out_loss_is_not_translated(tmp_path: Path) -> None:
    """Blocks that are translated for training are called as they are for the held-out text."""
    config, cpu = TrainConfig(corpus="-", out="-"), torch.device("cpu")
    engine = training._Engine(config, tmp_path, World(cpu), cpu, torch.float32, True, None)
    engine.model = GPT(GPTConfig.tiny(V)).eval()
    ids = torch.randint(V, (2, T + 1))
    engine.held_out = [(ids[:, :-1], ids[:, 1:])]
    translated = []
    for block in engine.model.blocks:
        block.compile(backend=lambda graph, inputs: translated.append(graph) or graph.forward)
    loss = engine.held_out_loss()
    assert not translated
    assert training.mean_loss(engine.model, engine.held_out) == pytest.approx(loss) and translated
