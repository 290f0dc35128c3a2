"""Train a run that is killed again and again, and resume it: run by test_faults in a process of its own.

    python tests/kill_and_resume.py FOLDER CORPUS KILLS

Prints how often and where it was killed. Each attempt is a child, forked before any tensor exists; it dies by
SIGKILL, every other time at a random moment, else at a random one of its writes to the disk.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from gptbook import training
from gptbook.config import TrainConfig

SETTINGS = {
    "preset": "tiny", "n_layer": 1, "d_model": 32, "n_head": 2, "vocab_size": 300, "context_length": 32,
    "batch_size": 4, "steps": 150, "eval_every": 5, "eval_batches": 1, "warmup": 5, "dropout": 0.1,
    "optimizer": "muon", "threads": 1, "precision": "fp32",
}  # fmt: skip


def attempt(folder: Path, corpus: str, writes: int | None) -> None:
    """Start or resume the run; die at the given write, if one is given."""
    count = 0

    def before_write(event: str, arguments: tuple) -> None:
        nonlocal count
        if writes is not None and event in (
            "os.rename",
            "os.mkdir",
            "os.rmdir",
            "os.remove",
            "shutil.rmtree",
        ):
            count += 1
            if count == writes:
                os.kill(os.getpid(), signal.SIGKILL)

    resume = (folder / "run.json").is_file()
    sys.addaudithook(before_write)
    config = TrainConfig(corpus=corpus, out=str(folder), **SETTINGS)
    training.train(config, resume=resume, progress=False, log=lambda line: None)


def run(folder: Path, corpus: str, kills: int) -> int:
    rng, killed, attempts = random.Random(0), [], 0
    while True:
        attempts += 1
        at_write = rng.randrange(1, 60) if attempts % 2 else None
        child = os.fork()
        if child == 0:
            try:
                attempt(folder, corpus, at_write if attempts <= kills else None)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        if attempts <= kills and at_write is None:
            time.sleep(rng.uniform(0.05, 1.0))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            last = folder / "last.json"
            killed.append(
                (at_write, last.read_text().split('"step": ')[1].split(",")[0] if last.is_file() else "0")
            )
        elif os.WEXITSTATUS(status):
            return 1
        else:
            break
    print("killed", len(killed), "times at (write, checkpoint)", killed)
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
