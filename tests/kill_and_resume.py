"""Train a run that is killed again and again, and resume it: run by test_faults in a process of its own.

    python tests/kill_and_resume.py FOLDER CORPUS KILLS

Prints where it was killed. Each attempt is a child, forked before any tensor exists, and dies by SIGKILL:
KILLS of them at random moments, counted from the start of the program or from the first step. In random
order with these, as many as `WRITES` has names die at a random change of a folder, and as many inside a
write, when half of the bytes are in the file. With KILLS of 0 it is not disturbed at all. A child that comes
seven steps far dies there; as it has saved at most five of them, the run cannot end before it was killed that
often.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from gptbook import training
from gptbook.config import TrainConfig
from gptbook.workshop import files

SETTINGS = {
    "preset": "tiny", "n_layer": 1, "d_model": 32, "n_head": 2, "vocab_size": 300, "context_length": 32,
    "batch_size": 4, "steps": 180, "eval_every": 5, "eval_batches": 1, "warmup": 5, "dropout": 0.1,
    "optimizer": "muon", "threads": 1, "precision": "fp32",
}  # fmt: skip


CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")
WRITES = (
    "model.safetensors",
    "last.json",
    "optimizer.safetensors",
    "state.json",
    "metrics.jsonl",
    "config.json",
    "last.json",
)
STEPS = 7  # of one child, at most
STEPPED = b"*"  # a child says so after its first step


def die(place: str, pipe: int) -> None:
    os.write(pipe, place.encode())
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_change(number: int, pipe: int) -> None:
    """At this event that changes a folder, before it happens."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        count += event in CHANGES
        if event in CHANGES and count == number:
            die(f"{event} {arguments[0]}", pipe)

    sys.addaudithook(hook)


def die_in_write(name: str, pipe: int) -> None:
    """Inside the first write to the file of this name, when half of its bytes are there."""
    real = files._Output.write

    def write(file: files._Output, data: bytes) -> int | None:
        if name in Path(file.name).name:
            real(file, bytes(data)[: len(data) // 2])
            die(f"half of {file.name}", pipe)
        return real(file, data)

    files._Output.write = write


def attempt(folder: Path, corpus: str, pipe: int | None) -> None:
    """Start or resume the run; without a pipe, to its end."""
    first = None

    def step(line: dict) -> None:
        nonlocal first
        if first is None and pipe is not None:
            os.write(pipe, STEPPED)
        first = first or line["step"]
        if pipe is not None and line["step"] - first + 1 == STEPS:
            die(f"after step {line['step']}", pipe)

    resume = (folder / "run.json").is_file()
    config = TrainConfig(corpus=corpus, out=str(folder), **SETTINGS)
    training.train(config, resume=resume, progress=False, log=lambda line: None, on_step=step)


def run(folder: Path, corpus: str, kills: int) -> int:
    rng, places, writes = random.Random(0), [], iter(WRITES)
    kinds = ["moment"] * kills + ["change", "write"] * (len(WRITES) if kills else 0)
    rng.shuffle(kinds)
    for kind in [*kinds, None]:  # the last is left to its end
        change, moment, stepping = rng.randrange(1, 25), rng.uniform(0, 0.5), rng.random() < 0.5
        write = next(writes) if kind == "write" else ""
        reader, pipe = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if kind == "change":
                    die_at_change(change, pipe)
                if kind == "write":
                    die_in_write(write, pipe)
                attempt(folder, corpus, pipe if kind else None)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        os.close(pipe)
        if kind == "moment":
            if stepping:
                os.read(reader, 1)
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        said = os.read(reader, 1000).lstrip(STEPPED).decode()
        place = said or f"{moment:.2f} s after the {'first step' if stepping else 'start'}"
        os.close(reader)
        if os.WIFSIGNALED(status):
            places.append((kind, place))
        elif os.WEXITSTATUS(status):
            return 1
    print(json.dumps(places))
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
