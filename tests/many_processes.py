"""Train together, for test_processes: torchrun --nproc-per-node N many_processes.py FOLDER CORPUS TASK ...

A task is OPTIMIZER-PARALLEL-ACCUMULATE-STEPS: the run has ten steps and stops after STEPS of them. With "+"
in front, a copy of what two processes wrote is resumed. The runs are FOLDER/OPTIMIZER-PARALLEL-N-STEPS.
The task "minutes" is a run FOLDER/minutes with --minutes, for which each process measures another number;
"compiler" is a long run FOLDER/compiler of which only the main process has a compiler; "parts" is a run
FOLDER/parts with fsdp, and tells which process makes a whole model.
"""

import os
import shutil
import sys
from pathlib import Path

import torch.distributed as dist

from gptbook import training
from gptbook.config import TrainConfig

SETTINGS = {
    "preset": "tiny", "n_layer": 2, "d_model": 32, "n_head": 2, "vocab_size": 300, "context_length": 32,
    "batch_size": 4, "eval_every": 5, "eval_batches": 1, "warmup": 5, "steps": 10, "threads": 1,
    "precision": "fp32",
}  # fmt: skip


def train_for_minutes(folder: Path, corpus: str) -> None:
    """The processes try steps for other times, and process r finds that 4 + 3r fit; each prints how many it
    was to take."""
    rank, fit = int(os.environ["RANK"]), training._fit_steps

    def fit_steps(engine: training._Engine, seconds: float) -> int:
        fit(engine, 20 + 100 * rank)
        return 4 + 3 * rank

    training._fit_steps = fit_steps
    config = TrainConfig(corpus=corpus, out=str(folder / "minutes"), minutes=1.0, **SETTINGS)
    run = training.train(config, progress=False, log=lambda line: None)
    print(f"process {rank}: {run.config.steps} steps", flush=True)


def train_with_one_compiler(folder: Path, corpus: str) -> None:
    """Says what the main process does about it."""
    missing = None if os.environ["RANK"] == "0" else "there is no C++ compiler"
    training._try_compiler, training._is_long = lambda: missing, lambda config, vocab_size: True
    config = TrainConfig(corpus=corpus, out=str(folder / "compiler"), **SETTINGS)
    said: list[str] = []
    training.train(config, progress=False, log=said.append)
    print(*(line for line in said if line.startswith("compile")), sep="\n", flush=True)


def train_in_parts(folder: Path, corpus: str) -> None:
    """Prints on which devices each process made whole models."""
    make, made = training.GPT.init_weights, []

    def init_weights(model: training.GPT) -> None:
        made.append(model.embedding.weight.device.type)
        make(model)

    training.GPT.init_weights = init_weights
    config = TrainConfig(corpus=corpus, out=str(folder / "parts"), parallel="fsdp", **SETTINGS)
    training.train(config, progress=False, log=lambda line: None)
    print(f"process {os.environ['RANK']}: {' '.join(made)};", flush=True)


OTHERS = {"minutes": train_for_minutes, "compiler": train_with_one_compiler, "parts": train_in_parts}


def main(folder: Path, corpus: str, tasks: list[str]) -> None:
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        dist.init_process_group("gloo")  # once for all tasks
    for task in tasks:
        if task in OTHERS:
            OTHERS[task](folder, corpus)
            continue
        optimizer, parallel, accumulate, steps = task.lstrip("+").split("-")
        out, resume = folder / f"{optimizer}-{parallel}-{size}-{steps}", task.startswith("+")
        if resume and os.environ.get("RANK", "0") == "0":
            shutil.copytree(folder / f"{optimizer}-{parallel}-2-5", out)
        if size > 1:
            dist.barrier()
        config = TrainConfig(
            corpus=corpus,
            out=str(out),
            optimizer=optimizer,
            parallel=parallel,
            accumulate=int(accumulate),
            **SETTINGS,
        )

        def stop(line: dict, steps: int = int(steps.partition(".")[0])) -> None:
            if line["step"] == steps:
                raise KeyboardInterrupt

        try:
            training.train(config, resume=resume, progress=False, log=lambda line: None, on_step=stop)
        except KeyboardInterrupt:
            if size > 1:
                dist.barrier()
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
