"""Many processes train what one process trains: DDP and FSDP2 over gloo, with AdamW and with Muon."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import ROOT
from safetensors.torch import load_file

from gptbook.training import _try_compiler, load_checkpoint

TEXT = "".join(
    f"Line {i}: the cat sat on mat {i * i % 97} and thought of {i % 13} things.\n" for i in range(900)
)
KINDS = [(optimizer, parallel) for optimizer in ("adamw", "muon") for parallel in ("ddp", "fsdp")]


def together(processes: int, *arguments: object, before: Sequence[str] = ()) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    if processes == 1:
        command = [sys.executable]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*before, *command, *map(str, arguments)],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten steps of four batches by one process, and by two in all ways; and five such steps by two."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "lines.txt").write_text(TEXT, encoding="utf-8")
    train_all(folder, 1, [f"{optimizer}-auto-4-10" for optimizer in ("adamw", "muon")])
    train_all(
        folder, 2, [f"{optimizer}-{parallel}-2-{steps}" for optimizer, parallel in KINDS for steps in (10, 5)]
    )
    return folder


def train_all(folder: Path, processes: int, tasks: list[str]) -> None:
    done = together(processes, ROOT / "tests" / "many_processes.py", folder, folder / "lines.txt", *tasks)
    assert done.returncode == 0, done.stderr[-4000:]


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_alike(one: Path, other: Path) -> None:
    """The same losses to 1e-5, and in the end nearly the same weights and running means."""
    lines = metrics(one), metrics(other)
    assert len(lines[0]) == len(lines[1]) == 10
    for a, b in zip(*lines):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5), a["step"]
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    folders = [load_checkpoint(run, "last")[0] for run in (one, other)]
    for name in ("model", "optimizer"):
        a, b = (load_file(path / f"{name}.safetensors") for path in folders)
        assert a.keys() == b.keys()
        assert max((a[key] - b[key]).abs().max().item() for key in a) < 1e-4


@pytest.mark.parametrize(("optimizer", "parallel"), KINDS)
def test_two_processes_train_what_one_does(optimizer: str, parallel: str, folder: Path) -> None:
    assert_alike(folder / f"{optimizer}-auto-1-10", folder / f"{optimizer}-{parallel}-2-10")


@pytest.mark.parametrize("processes", [1, 4])
def test_what_two_wrote_one_and_four_resume(processes: int, folder: Path) -> None:
    """Five steps by two processes and five by one or four are ten steps by one."""
    train_all(
        folder, processes, [f"+{optimizer}-{parallel}-2-10.{processes}" for optimizer, parallel in KINDS]
    )
    for optimizer, parallel in KINDS:
        resumed = folder / f"{optimizer}-{parallel}-{processes}-10.{processes}"
        assert_alike(folder / f"{optimizer}-auto-1-10", resumed)


def test_minutes_are_the_same_number_of_steps_for_all(folder: Path, tmp_path: Path) -> None:
    """Each process measures another number; what the main one found is what all take."""
    program = ROOT / "tests" / "many_processes.py"
    done = together(2, program, tmp_path, folder / "lines.txt", "minutes")
    assert done.returncode == 0, done.stderr[-4000:]
    said = re.findall(r"process \d: \d+ steps", done.stdout)  # the two may write into one line
    assert sorted(said) == ["process 0: 4 steps", "process 1: 4 steps"]
    assert json.loads((tmp_path / "minutes" / "run.json").read_text())["fixed_steps"] == 4
    assert [m["step"] for m in metrics(tmp_path / "minutes")] == [1, 2, 3, 4]


def test_only_the_main_process_makes_the_whole_model(folder: Path, tmp_path: Path) -> None:
    """With fsdp, at the start, and of the best checkpoint at the end; the others have its shapes ("meta")."""
    done = together(2, ROOT / "tests" / "many_processes.py", tmp_path, folder / "lines.txt", "parts")
    assert done.returncode == 0, done.stderr[-4000:]
    assert sorted(re.findall(r"process \d: [^;]+", done.stdout)) == [
        "process 0: meta cpu cpu",
        "process 1: meta",
    ]


def test_all_translate_or_none(folder: Path, tmp_path: Path) -> None:
    """One process has no compiler: the other one does without it, too."""
    program = ROOT / "tests" / "many_processes.py"
    done = together(2, program, tmp_path, folder / "lines.txt", "compiler")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == "compile: off, as not every process can".split()


def test_a_step_keeps_its_size_before_the_first_checkpoint(folder: Path, tmp_path: Path) -> None:
    """A run that two processes began and that was stopped before it had saved anything goes on alone."""
    run = tmp_path / "run"
    sizes = "--preset tiny --n-layer 1 --vocab-size 300 --context-length 32 --batch-size 2 --steps 3"
    train = ["-m", "gptbook", "train", "--corpus", folder / "lines.txt", "--out", run, *sizes.split()]
    done = together(2, *train, "--threads", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    first = metrics(run)
    for name in ("best", "last"):
        (run / f"{name}.json").unlink()
    done = together(1, *train, "--threads", "1", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"steps: 3 of {2 * 2 * 32} tokens" in done.stdout
    assert [line["loss"] for line in metrics(run)] == pytest.approx(
        [line["loss"] for line in first], abs=0.01
    )


def test_the_command_says_what_it_does(folder: Path, tmp_path: Path) -> None:
    sizes = "--preset tiny --vocab-size 300 --context-length 32 --batch-size 2"
    options = f"{sizes} --steps 6 --eval-every 3 --threads 1".split()
    command = [
        "-m",
        "gptbook",
        "train",
        "--corpus",
        folder / "lines.txt",
        "--out",
        tmp_path / "run",
        *options,
    ]
    done = together(2, *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("processes: 2; each holds the whole model (ddp)") == 1
    assert done.stdout.count("held-out loss") == 1
    done = together(2, *command)  # the folder is taken: one line, from one process
    assert done.returncode != 0 and done.stderr.count("gptbook: ") == 1 and "holds another run" in done.stderr


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_translated_blocks_train_together(parallel: str, folder: Path, tmp_path: Path) -> None:
    """As untranslated ones do, but for rounding; the held-out loss, too, which is taken untranslated."""
    missing = _try_compiler()
    if missing:
        pytest.skip(missing)
    sizes = "--preset tiny --n-layer 1 --vocab-size 300 --context-length 32 --batch-size 2"
    options = f"{sizes} --steps 4 --eval-every 2 --threads 1 --precision fp32 --parallel {parallel}".split()
    lines = []
    for chosen in ("on", "off"):
        out = tmp_path / chosen
        where = ["--corpus", folder / "lines.txt", "--out", out, "--compile", chosen]
        done = together(2, "-m", "gptbook", "train", *where, *options)
        assert done.returncode == 0 and f"compile: {chosen}, as asked" in done.stdout, done.stderr[-4000:]
        lines.append([(line["loss"], line.get("val_loss")) for line in metrics(out)])
    assert lines[0] != lines[1], "nothing was translated"
    for translated, plain in zip(*lines, strict=True):
        assert translated == pytest.approx(plain, abs=1e-4)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that limits files")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_disk_full(parallel: str, folder: Path, tmp_path: Path) -> None:
    """No file may grow beyond 60 kB, and the checkpoint is larger: one process says so, in one line."""
    sizes = "--preset tiny --vocab-size 300 --n-layer 2 --d-model 32 --context-length 32 --batch-size 2"
    options = f"{sizes} --steps 6 --eval-every 3 --threads 1 --parallel {parallel}".split()
    train = ["-m", "gptbook", "train", "--corpus", folder / "lines.txt", "--out", tmp_path / "run", *options]
    done = together(2, *train, before=["sh", "-c", 'ulimit -f 120; exec "$@"', "sh"])  # of 512 bytes each
    own = [line for line in done.stderr.splitlines() if line.startswith("gptbook: ")]
    assert done.returncode != 0 and len(own) == 1, done.stderr[-4000:]
    assert own[0].endswith("model.safetensors: File too large")
    assert "[rank" not in done.stderr, "a traceback"
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def worker_of(run: Path, rank: int) -> int | None:
    """The process that has this rank in a run, by its command line and environment."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            started = (entry / "environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in started and str(run).encode() in (entry / "cmdline").read_bytes():
                return int(entry.name)
        except OSError:
            continue
    return None


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find the worker")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_dies_ends_the_run_which_resumes(rank: int, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = "--preset tiny --vocab-size 300 --context-length 32 --batch-size 2 --steps 300 --eval-every 5"
    train = ["-m", "gptbook", "train", "--corpus", folder / "lines.txt", "--out", run, *options.split()]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launch, *map(str, train), "--threads", "1"]
    log = tmp_path / "stderr"
    with open(log, "w") as file:
        started = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=file)
    deadline = time.monotonic() + 300
    while not (run / "previous.json").is_file():  # two checkpoints are there, and most steps still to come
        assert time.monotonic() < deadline and started.poll() is None, log.read_text()[-2000:]
        time.sleep(0.02)
    victim = worker_of(run, rank)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    assert started.wait(timeout=300) != 0, "a run that lost a worker must not look finished"
    said = log.read_text()
    assert "gptbook: another process of this run has ended; repeat the command with --resume" in said or (
        "Signal 9 (SIGKILL)" in said
    ), said[-3000:]
    assert "Traceback" not in "".join(line for line in said.splitlines() if line.startswith("[rank"))
    saved = json.loads((run / "last.json").read_text())["step"]
    assert 0 < saved < 300
    done = together(2, *train, "--threads", "1", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [m["step"] for m in metrics(run)] == list(range(1, 301))
