"""Pre-train the small base model of chapter 17 into gptbook/models/reader, a run with weights in float16.

Takes about an hour on one core. The pre-training itself happens in --work and resumes if it was stopped;
with --publish only what is there already is written out again.

    python tools/finetune_base.py [--work runs/reader] [--out gptbook/models/reader] [--publish]
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from gptbook.config import TrainConfig
from gptbook.data import TokenData, write_shard
from gptbook.finetune import reading_matter
from gptbook.tokenizer import load_tokenizer
from gptbook.training import read_metrics, train
from gptbook.workshop.files import read_json, sha256_file, write_json

DOCUMENTS = 60_000
SETTINGS = {
    "steps": 6000, "batch_size": 32, "vocab_size": 1536, "warmup": 50, "eval_every": 500, "preset": "story",
    "n_layer": 4, "n_head": 4, "d_model": 128, "context_length": 128, "threads": 1,
}  # fmt: skip
KEPT = {"train": 280_000, "val": 32_000}  # tokens of its text that come with it, for `--replay` and `eval`


def pretrain(work: Path) -> None:
    """Write the documents, one file each, and train on them."""
    reading = work / "reading"
    reading.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(reading_matter(DOCUMENTS)):
        (reading / f"{i:05d}.txt").write_text(text, encoding="utf-8")
    run = work / "run"
    resume = (run / "last.json").is_file()
    train(TrainConfig(corpus=str(reading), out=str(run), **SETTINGS), resume=resume, overwrite=not resume)


def publish(run: Path, out: Path) -> None:
    """The run's best checkpoint in float16, without the optimiser's state and this machine's paths."""
    shutil.rmtree(out, ignore_errors=True)
    pointer = read_json(run / "best.json")
    source, target = (folder / "checkpoints" / pointer["checkpoint"] for folder in (run, out))
    target.mkdir(parents=True)
    weights = {name: t.to(torch.float16) for name, t in load_file(source / "model.safetensors").items()}
    save_file(weights, target / "model.safetensors")
    save_file({}, target / "optimizer.safetensors")
    for name in ("config.json", "state.json"):
        shutil.copy(source / name, target / name)
    (out / "data").mkdir()
    tokenizer, sizes = load_tokenizer(run / "tokenizer.json"), {}
    for split, most in KEPT.items():
        ids = TokenData(run / "data", split).read(0, most)
        ids = ids[: np.flatnonzero(ids == tokenizer.end_of_text)[-1] + 1]  # whole documents
        write_shard(out / "data" / f"{split}-00000.bin", ids)
        sizes[split] = len(tokenizer.decode_bytes(ids[ids != tokenizer.end_of_text].tolist()))
    documents = {split: [] for split in KEPT}
    write_json(out / "data" / "corpus.json", {"name": "reading", "bytes": sizes, "documents": documents})
    shutil.copy(run / "tokenizer.json", out / "tokenizer.json")
    looks = [json.dumps(line) + "\n" for line in read_metrics(run) if "val_loss" in line]
    (out / "metrics.jsonl").write_text("".join(looks))
    paths = {"corpus": "reading", "out": out.name}
    info = read_json(run / "run.json")
    write_json(out / "run.json", info | {"train": info["train"] | paths})
    sums = {path.name: sha256_file(path) for path in sorted(target.iterdir())}
    for which in ("best", "last"):
        write_json(out / f"{which}.json", pointer | {"sha256": sums})
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(json.dumps({"out": out.name, "megabytes": round(size / 1e6, 1), "step": pointer["step"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/reader"))
    parser.add_argument("--out", type=Path, default=Path("gptbook/models/reader"))
    parser.add_argument("--publish", action="store_true")
    arguments = parser.parse_args()
    if not arguments.publish:
        pretrain(arguments.work)
    publish(arguments.work / "run", arguments.out)


if __name__ == "__main__":
    main()
