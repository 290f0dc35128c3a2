"""What happens to a run when the machine, the disk or somebody else does something to it."""

import errno
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from gptbook import training
from gptbook.cli import main
from gptbook.config import GPTConfig, TrainConfig
from gptbook.model import GPT
from gptbook.training import choose_compile, load_checkpoint, load_run, train
from gptbook.workshop.processes import only_one

TEXT = "".join(
    f"Line {i}: the cat sat on mat {i * i % 97} and thought of {i % 13} things.\n" for i in range(900)
)
SMALL = {
    "preset": "tiny", "n_layer": 1, "d_model": 32, "n_head": 2, "vocab_size": 300, "context_length": 32,
    "batch_size": 4, "steps": 12, "eval_every": 4, "eval_batches": 1, "warmup": 2, "threads": 1,
    "precision": "fp32",
}  # fmt: skip
QUIET = {"progress": False, "log": lambda line: None}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "lines.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def run(corpus: Path, tmp_path: Path) -> Path:
    """A finished run with three checkpoints' worth of history."""
    train(TrainConfig(corpus=str(corpus), out=str(tmp_path / "run"), **SMALL), **QUIET)
    return tmp_path / "run"


def options(corpus: Path, out: Path, **changes: object) -> list[str]:
    settings = SMALL | {"corpus": corpus, "out": out} | changes
    return [
        "train",
        *(part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))),
    ]


def final(folder: Path) -> dict[str, str]:
    """The SHA-256 of weights, optimiser and state at the end."""
    return json.loads((folder / "last.json").read_text())["sha256"]


# ---- stopped ---------------------------------------------------------------------------------------


def test_killed_twenty_times_and_resumed(corpus: Path, tmp_path: Path) -> None:
    """SIGKILL at twenty random moments, and at changes of folders and in writes; every bit ends as if
    undisturbed."""
    program = [sys.executable, str(ROOT / "tests" / "kill_and_resume.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name, kills in (("killed", 20), ("undisturbed", 0)):
        done = subprocess.run(
            [*program, str(tmp_path / name), str(corpus), str(kills)],
            env=environment,
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stderr
        print(done.stdout)
        places = json.loads(done.stdout)
        assert sum(kind == "moment" for kind, _ in places) == kills
        changes = sum(kind == "change" for kind, _ in places)
        writes = sum(kind == "write" and place.startswith("half of ") for kind, place in places)
        assert changes == writes == (7 if kills else 0)
    assert final(tmp_path / "killed") == final(tmp_path / "undisturbed")
    lines = [
        (tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("killed", "undisturbed")
    ]
    losses = [[json.loads(line)["loss"] for line in part] for part in lines]
    assert losses[0] == losses[1] and len(losses[0]) == 180
    left = {
        path.name
        for path in (tmp_path / "killed").rglob("*")
        if path.name.endswith((".tmp", ".new", ".parts"))
    }
    assert not left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_saves_and_resumes(number: int, corpus: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "gptbook",
        *options(corpus, tmp_path / "run", steps=3000, eval_every=3000),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8")
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume" in said
    step = json.loads((tmp_path / "run" / "last.json").read_text())["step"]
    assert 0 < step < 3000
    load_run(tmp_path / "run")

    def stop_soon(line: dict) -> None:
        if line["step"] == step + 5:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        config = TrainConfig(corpus=str(corpus), out=str(tmp_path / "run"))
        train(config, resume=True, on_step=stop_soon, **QUIET)


def test_compiled_run_resumes(corpus: Path, tmp_path: Path) -> None:
    """With --compile on, too, every bit is as if undisturbed, whatever the process had translated before."""
    try:
        choose_compile(torch.device("cpu"), "on")
    except ValueError as error:
        pytest.skip(str(error))
    compiled = {"compile": "on", "dropout": 0.1, "steps": 8}

    def start(name: str, stop: int | None = None, **changes: object) -> None:
        def stop_at(line: dict) -> None:
            if line["step"] == stop:
                raise RuntimeError("enough")

        config = TrainConfig(corpus=str(corpus), out=str(tmp_path / name), **SMALL | compiled | changes)
        train(config, on_step=stop_at, **QUIET)

    dynamo = pytest.importorskip("torch._dynamo")
    with dynamo.config.patch(recompile_limit=2):  # as after a few runs in a notebook
        start("other", steps=1, batch_size=3, context_length=24)
        with pytest.raises(RuntimeError, match="enough"):
            start("interrupted", stop=6)
    for name, more in (("interrupted", ["--resume"]), ("undisturbed", [])):
        command = [sys.executable, "-m", "gptbook", *options(corpus, tmp_path / name, **compiled), *more]
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr
    assert final(tmp_path / "interrupted") == final(tmp_path / "undisturbed")
    start("plain", compile="off")
    assert final(tmp_path / "plain") != final(tmp_path / "undisturbed"), "nothing was translated"


@pytest.mark.parametrize("option", [["--steps", "900"], ["--batch-size=16"], ["--optimizer", "muon"]])
def test_a_default_that_is_given_must_be_the_run_s(
    option: list[str], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """--steps 900, which is the default, on a run of 12 steps is refused as any other number is."""
    assert main(options(corpus, tmp_path / "run", optimizer="adamw")) == 0
    again = ["train", "--corpus", str(corpus), "--out", str(tmp_path / "run"), "--resume"]
    assert main([*again, *option]) == 2
    name = option[0].partition("=")[0]
    assert f"was started with {name} " in capsys.readouterr().err
    assert main([*again, "--steps", "12"]) == 0 and main(again) == 0


@pytest.mark.parametrize("change", [{"n_layer": 1_000_000}, {"batch_size": 1_000_000_000}])
def test_what_cannot_fit_is_refused_at_once(
    change: dict, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(options(corpus, tmp_path / "run", **change)) == 2
    assert re.search(r"needs [\d,]+ MB of memory or more, there are [\d,]+ MB here", capsys.readouterr().err)
    assert not (tmp_path / "run").exists(), "a smaller one may go there"


def test_a_container_may_have_less_memory(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("gptbook.training._LIMITS", (str(limit), str(tmp_path / "nothing")))
    limit.write_text("10000\n")
    assert main(options(corpus, tmp_path / "run")) == 2
    assert "there are 0 MB here" in capsys.readouterr().err
    limit.write_text("max\n")
    assert main(options(corpus, tmp_path / "run")) == 0


def test_two_processes_in_one_folder(run: Path, corpus: Path, capsys: pytest.CaptureFixture) -> None:
    with only_one(run):
        assert main(["train", "--corpus", str(corpus), "--out", str(run), "--resume"]) == 2
    assert "another process is working in" in capsys.readouterr().err


# ---- the disk ----------------------------------------------------------------------------------------


def assert_stopped_and_resumes(status: int, said: str, corpus: Path, folder: Path) -> None:
    """One line was said, the checkpoint of step 4 is whole, nothing else is left, the run goes on from it."""
    assert status == 1 and said.startswith("gptbook: ") and said.count("\n") == 1
    assert load_checkpoint(folder / "run", "last")[1]["step"] == 4
    assert [path.name for path in (folder / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    assert not [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".parts"))]
    train(TrainConfig(corpus=str(corpus), out=str(folder / "run")), resume=True, **QUIET)
    train(TrainConfig(corpus=str(corpus), out=str(folder / "whole"), **SMALL), **QUIET)
    assert final(folder / "run") == final(folder / "whole")
    assert [m["step"] for m in training.read_metrics(folder / "run")] == list(range(1, 13))


@pytest.mark.parametrize("place", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_disk_full(
    place: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The second checkpoint does not fit: one line is said, the first is whole, the run resumes from it."""
    real, writes = os.fsync, []

    def fsync(number: int) -> None:
        path = os.readlink(f"/proc/self/fd/{number}")
        if place in path:
            writes.append(path)
            if len(writes) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # like the system's, it has no name
        real(number)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc, to see which file is written")
    monkeypatch.setattr(os, "fsync", fsync)
    status, said = main(options(corpus, tmp_path / "run")), capsys.readouterr().err
    assert f"{place}: No space left" in said
    monkeypatch.setattr(os, "fsync", real)
    assert_stopped_and_resumes(status, said, corpus, tmp_path)


@pytest.mark.parametrize(("place", "more"), [("metrics.jsonl", 0), ("model.safetensors", 4000)])
def test_a_write_that_fails_names_its_file(
    place: str, more: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """After step 5 the system lets no file grow beyond the log's size, or a little more: a real refusal."""
    resource = pytest.importorskip("resource")
    before, real = resource.getrlimit(resource.RLIMIT_FSIZE), training.train_step

    def train_step(*arguments: object, **named: object) -> dict:
        if arguments[3] == 5:
            size = (tmp_path / "run" / "metrics.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + more, before[1]))
        return real(*arguments, **named)

    monkeypatch.setattr(training, "train_step", train_step)
    try:
        status = main(options(corpus, tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert f"{place}: File too large" in said
    monkeypatch.undo()
    assert_stopped_and_resumes(status, said, corpus, tmp_path)


def damage(path: Path, rng: random.Random) -> None:
    """One bit flipped, or the end cut off."""
    content = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        content = content[: rng.randrange(len(content))]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def test_a_hundred_damages_of_a_checkpoint_are_found(run: Path, corpus: Path) -> None:
    rng, checkpoint = random.Random(0), load_checkpoint(run, "last")[0]
    files = sorted(checkpoint.iterdir())
    config = TrainConfig(corpus=str(corpus), out=str(run))
    for number in range(100):
        path = files[number % len(files)]
        before = path.read_bytes()
        damage(path, rng)
        with pytest.raises(ValueError, match=f"{path.name} is damaged"):
            load_run(run, "last")
        if number < 8:
            with pytest.raises(ValueError, match="the one before it is whole: add --rollback"):
                train(config, resume=True, **QUIET)
        path.write_bytes(before)
    load_run(run, "last")
    damage(files[-1], rng)
    train(config, resume=True, rollback=True, **QUIET)  # from the previous one, which computes the last again
    load_run(run, "last")


def test_after_a_rollback_the_damaged_checkpoint_is_not_the_previous_one(
    run: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(corpus=str(corpus), out=str(run))
    before = json.loads((run / "previous.json").read_text())
    damage(sorted(load_checkpoint(run, "last")[0].iterdir())[-1], random.Random(0))

    def stop(line: dict) -> None:
        if line["step"] == before["step"] + 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, resume=True, rollback=True, on_step=stop, **QUIET)
    assert json.loads((run / "previous.json").read_text()) == before
    load_run(run, "last")
    load_run(run, "previous")
    train(config, resume=True, rollback=True, **QUIET)


def test_a_resumed_run_computes_where_it_did(run: Path, corpus: Path) -> None:
    """The device is one of the settings that a run keeps, whatever the default would be on this machine."""
    info = json.loads((run / "run.json").read_text())
    info["train"] |= {"device": "cpu", "steps": 13}
    (run / "run.json").write_text(json.dumps(info))
    said: list[str] = []
    train(TrainConfig(corpus=str(corpus), out=str(run)), resume=True, progress=False, log=said.append)
    assert any("device: cpu, as asked" in line for line in said), said


@pytest.mark.parametrize("name", ["run.json", "last.json", "best.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["[]", "{}", '{"checkpoint": 3}', "null", "{", "7"])
def test_damaged_descriptions(
    name: str, content: str, run: Path, corpus: Path, capsys: pytest.CaptureFixture
) -> None:
    (run / name).write_text(content)
    which = "last" if name == "last.json" else "best"
    assert main(["sample", str(run), "--checkpoint", which]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and name in said
    if name != "best.json":
        assert main(["train", "--corpus", str(corpus), "--out", str(run), "--resume"]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_settings_of_wrong_types(run: Path, capsys: pytest.CaptureFixture) -> None:
    for key, value in (
        ("steps", "12"),
        ("lr", [1]),
        ("corpus", None),
        ("preset", 3),
        ("n_layer", "x"),
        ("seed", 1.5),
    ):
        info = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(info | {"train": info["train"] | {key: value}}))
        assert main(["sample", str(run)]) == 2, key
        assert capsys.readouterr().err.count("\n") == 1
        (run / "run.json").write_text(json.dumps(info))


def test_a_bad_line_of_metrics_costs_that_line(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:3], "}{", "7", *lines[4:]]) + "\n")
    assert [m["step"] for m in training.read_metrics(run)] == [1, 2, 3, *range(5, 13)]


def test_a_finished_run_without_metrics_resumes(run: Path, corpus: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert main(["train", "--corpus", str(corpus), "--out", str(run), "--resume"]) == 0


# ---- malice ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "step-00000012/../..", "step-12", ""])
def test_a_pointer_that_leads_elsewhere(name: str, run: Path) -> None:
    pointer = json.loads((run / "best.json").read_text())
    (run / "best.json").write_text(json.dumps(pointer | {"checkpoint": name}))
    with pytest.raises(ValueError, match="does not describe a checkpoint"):
        load_run(run)


@pytest.mark.parametrize("files", [{"../run.json": "0" * 64}, {"config.json": 3}, {}, []])
def test_a_pointer_with_other_files(files: object, run: Path) -> None:
    pointer = json.loads((run / "best.json").read_text())
    (run / "best.json").write_text(json.dumps(pointer | {"sha256": files}))
    with pytest.raises(ValueError, match="does not describe a checkpoint"):
        load_run(run)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**15}, {"d_model": 2**40, "n_head": 2}, {"n_layer": 10**12}, {"vocab_size": "300"},
        {"d_model": None},
        {"n_layer": [1]}, {"position": {"type": "rope"}}, {"norm_eps": "nan"}, {"__class__": "x"},
    ],
)  # fmt: skip
def test_a_hostile_config(changes: dict, tmp_path: Path) -> None:
    model = GPT(GPTConfig.tiny(50))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=r"config\.json"):
        GPT.from_pretrained(tmp_path)


def header(content: bytes, change: Callable[[dict], object]) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    text = json.dumps(change(json.loads(content[8 : 8 + size]))).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h | {"norm.weight": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}},
        lambda h: h | {"norm.weight": {"dtype": "F32", "shape": [-64], "data_offsets": [0, 256]}},
        lambda h: h | {"norm.weight": {"dtype": "PICKLE", "shape": [64], "data_offsets": [0, 256]}},
        lambda h: h | {"norm.weight": "../../etc/passwd"},
        lambda h: {"../" + name: entry for name, entry in h.items()},
        lambda h: [1, 2, 3],
    ],
)
def test_a_hostile_header(change: Callable, tmp_path: Path) -> None:
    GPT(GPTConfig.tiny(50)).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(header(path.read_bytes(), change))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        GPT.from_pretrained(tmp_path)


def test_a_header_as_long_as_memory(tmp_path: Path) -> None:
    GPT(GPTConfig.tiny(50)).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        GPT.from_pretrained(tmp_path)


def test_nothing_is_unpickled() -> None:
    """No module of ours loads or saves with pickle, nor sends what would be pickled."""
    for path in (ROOT / "gptbook").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "pickle" not in text and "torch.load(" not in text and "torch.save(" not in text, path
        assert not re.search(r"(broadcast|gather|scatter)_object|(send|recv)_object", text), path


# ---- the numbers -----------------------------------------------------------------------------------


def diverging_at(step: int) -> Callable:
    calls, real = [0], training.clip_gradients

    def clip(params: object, max_norm: float) -> object:
        calls[0] += 1
        return real(params, max_norm) * (float("nan") if calls[0] == step else 1.0)

    return clip


def test_not_a_number(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(training, "clip_gradients", diverging_at(7))
    assert main(options(corpus, tmp_path / "run")) == 2
    assert "step 7: the loss or gradient is not finite" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "run", "last")[1]["step"] == 4
    load_run(tmp_path / "run")


def damaging_after(step: int, value: float) -> Callable:
    """A `train_step` after which, at this step, one weight has this value."""
    real = training.train_step

    def train_step(model: GPT, *arguments: object, **named: object) -> dict:
        line = real(model, *arguments, **named)
        if arguments[2] + 1 == step:
            with torch.no_grad():
                model.norm.weight[0] = value
        return line

    return train_step


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("step", "saying"),
    [(8, "the held-out loss is not finite"), (7, "the loss or gradient is"), (6, "a weight is not finite")],
)
def test_broken_weights_are_never_saved(
    step: int, saying: str, value: float, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Broken after a step that was finite: before an evaluation, another step or an interruption."""
    damaged = step - 1 if "gradient" in saying else step
    monkeypatch.setattr(training, "train_step", damaging_after(damaged, value))
    if "weight" in saying:
        steps = iter(range(1, 13))  # the flag is looked at once a step
        monkeypatch.setattr(training, "stop_requested", lambda: nullcontext(lambda: next(steps) == step))
    assert main(options(corpus, tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert f"gptbook: step {step}: {saying}" in said and "Traceback" not in said
    assert load_checkpoint(tmp_path / "run", "last")[1]["step"] == 4
    for which in ("best", "last"):
        model, _ = load_run(tmp_path / "run", which)
        assert all(p.isfinite().all() for p in model.parameters())
    monkeypatch.undo()
    assert main([*options(corpus, tmp_path / "run"), "--resume"]) == 0
    assert load_checkpoint(tmp_path / "run", "last")[1]["step"] == 12


def test_a_replacement_that_fails_early_replaces_nothing(
    run: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = final(run)
    monkeypatch.setattr(training, "clip_gradients", diverging_at(2))
    assert main([*options(corpus, run, seed=1), "--overwrite"]) == 2
    assert final(run) == before
    monkeypatch.undo()
    assert main([*options(corpus, run, seed=1), "--overwrite"]) == 0
    assert final(run) != before and [p.name for p in run.parent.iterdir()] == ["run"]
