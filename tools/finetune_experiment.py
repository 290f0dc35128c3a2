"""The longer version of chapter 17's experiments: writes nbs/results/finetune.json, which the chapter reads.

A base larger than the chapter's is pre-trained (about four minutes on one core) and fine-tuned on all
tasks at once; then the score against the number of examples is measured on single tasks, with and without
pre-training. Each stage leaves its result in the working folder and is not repeated: an interrupted
experiment goes on where it stopped.

    python tools/finetune_experiment.py [--work runs/finetune-experiment] [--out nbs/results/finetune.json]
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gptbook.config import FinetuneConfig, TrainConfig
from gptbook.finetune import (
    CHAT_TOKENS,
    ChatTemplate,
    all_tasks,
    answers,
    finetune,
    fit_answers,
    grow_vocabulary,
    pack,
    reading_matter,
    score,
)
from gptbook.model import GPT
from gptbook.training import load_run, train
from gptbook.workshop.files import read_json, write_json
from gptbook.workshop.tasks import nearest_answer

BASE = {
    "documents": 6000, "steps": 250, "batch_size": 32, "vocab_size": 1536, "warmup": 20, "eval_every": 100,
    "n_layer": 4, "n_head": 4, "d_model": 128, "context_length": 128,
}  # fmt: skip
TUNE = {"examples": 120, "epochs": 4, "batch_size": 16, "lr": 3e-3, "val_fraction": 0.02}
LABELS = {
    "tasks": ["style transfer", "English to Chinese", "question answering"], "sizes": [8, 32, 128],
    "seeds": [0], "steps": 60, "batch_size": 8, "lr": 2e-3,
}  # fmt: skip
N_TEST = 40


def stage(work: Path, name: str, compute: Callable[[], dict]) -> dict:
    """The result of a stage, computed only if it is not there yet."""
    path = work / f"{name}.json"
    if not path.is_file():
        started = time.perf_counter()
        write_json(path, compute())
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    return read_json(path)


def pretrain(work: Path) -> dict:
    if not (work / "base" / "best.json").is_file():
        reading = work / "reading"
        reading.mkdir(exist_ok=True)
        for i, text in enumerate(reading_matter(BASE["documents"])):
            (reading / f"{i:05d}.txt").write_text(text, encoding="utf-8")
        settings = {name: value for name, value in BASE.items() if name != "documents"}
        train(
            TrainConfig(corpus=str(reading), out=str(work / "base"), precision="fp32", threads=1, **settings),
            overwrite=True,
        )
    model, _ = load_run(work / "base")
    checkpoint = work / "base" / "checkpoints" / read_json(work / "base" / "best.json")["checkpoint"]
    return {
        "parameters": model.num_params(),
        "val_loss": read_json(checkpoint / "state.json")["best_loss"],
    }


def tune(work: Path) -> dict:
    lines = [item.example for task in all_tasks() for item in task.items(TUNE["examples"])]
    data = work / "lessons.jsonl"
    data.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    settings = {name: value for name, value in TUNE.items() if name != "examples"}
    config = FinetuneConfig(
        run=str(work / "base"),
        data=str(data),
        out=str(work / "tuned"),
        precision="fp32",
        threads=1,
        **settings,
    )
    finetune(config, overwrite=True)
    return read_json(work / "tuned" / "run.json")["finetune"]["base_loss"]


def compare(work: Path) -> dict:
    base, tuned = load_run(work / "base"), load_run(work / "tuned")
    table = {}
    for task in all_tasks():
        items = task.items(N_TEST, "test")
        table[task.name] = {
            "nearest": score(task, items, nearest_answer(task.items(TUNE["examples"]), items)),
            "base": score(task, items, answers(*base, items, framed=False)),
            "tuned": score(task, items, answers(*tuned, items)),
        }
        print(task.name, table[task.name], flush=True)
    return table


def few_labels(work: Path, name: str, n: int, seed: int, pretrained: bool) -> dict:
    model, tokenizer = load_run(work / "base")
    tokenizer = tokenizer.with_special_tokens(CHAT_TOKENS)
    torch.manual_seed(seed)
    model = grow_vocabulary(model if pretrained else GPT(model.config), tokenizer.vocab_size)
    task = next(task for task in all_tasks() if task.name == name)
    template = ChatTemplate(tokenizer)
    examples = [template.example(item.example["messages"]) for item in task.items(n, seed=seed)]
    fit_answers(
        model, pack(examples, 128, tokenizer.end_of_text), LABELS["steps"],
        lr=LABELS["lr"], batch_size=LABELS["batch_size"], seed=seed,
    )  # fmt: skip
    items = task.items(N_TEST, "test")
    return {"right": score(task, items, answers(model, tokenizer, items))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/finetune-experiment"))
    parser.add_argument("--out", type=Path, default=Path("nbs/results/finetune.json"))
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    base = stage(work, "base_result", lambda: pretrain(work))
    forgotten = stage(work, "tune_result", lambda: tune(work))
    table = stage(work, "tasks_result", lambda: compare(work))
    labels: dict = {}
    for name in LABELS["tasks"]:
        for kind in ("pretrained", "scratch"):
            for n in LABELS["sizes"]:
                for seed in LABELS["seeds"]:
                    key = f"labels-{name.replace(' ', '-')}-{kind}-{n}-{seed}"
                    found = stage(
                        work, key, lambda a=(name, n, seed, kind == "pretrained"): few_labels(work, *a)
                    )
                    labels.setdefault(name, {}).setdefault(kind, {}).setdefault(str(n), []).append(
                        found["right"]
                    )
    versions = {
        "python": platform.python_version(), "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip
    config = {"base": BASE, "tune": TUNE, "labels": LABELS, "test": N_TEST, "seed": 0}
    write_json(
        arguments.out,
        {
            "config": config,
            "versions": versions,
            "base": base,
            "base_loss": forgotten,
            "tasks": table,
            "labels": labels,
        },
    )


if __name__ == "__main__":
    main()
