"""One training run on the characters of tinyshakespeare, as a process of its own: `characters.py` starts it and takes the time.

    python characters_run.py TEXT NAME [--steps N] [--seed S]

The first 90 % of the text are for training. NAME is "the plain recipe" or another line of the story that chapter 13 tells.
The last line of what it prints is JSON, with the loss on the whole held-out part.
"""

import argparse
import json
import math
import time
from typing import Any

started = time.perf_counter()

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gptbook.config import GPTConfig, TrainConfig
from gptbook.model import GPT
from gptbook.training import choose_precision, make_optimizers, train_step

PLAIN, GOAL = "the plain recipe", 1.886
STEPS, WARMUP, LENGTH, BATCH, RATE = 2000, 100, 64, 12, 1e-3  # of the plain recipe
SIZES = {"n_layer": 4, "n_head": 4, "d_model": 128}


class Windows:
    """Random windows of a text, by number."""

    def __init__(self, ids: np.ndarray, batch: int, length: int, seed: int):
        self.ids, self.shape, self.seed = ids, (batch, length), seed

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        B, T = self.shape
        starts = np.random.default_rng((self.seed, number)).integers(0, len(self.ids) - T - 1, B)
        rows = self.ids[starts[:, None] + np.arange(T + 1)]
        return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def whole_loss(model: GPT, ids: np.ndarray, length: int) -> float:
    """Mean loss over the whole text in windows that do not overlap: each character but the first is predicted once."""
    n = (len(ids) - 1) // length * length
    x, y = torch.from_numpy(ids[:n]).view(-1, length), torch.from_numpy(ids[1 : n + 1]).view(-1, length)
    total = sum(
        F.cross_entropy(model(a).flatten(0, 1), b.flatten(), reduction="sum").item()
        for a, b in zip(x.split(64), y.split(64))
    )
    return total / y.numel()


def plain(ids: np.ndarray, vocab_size: int, steps: int, seed: int) -> GPT:
    """nanoGPT's example for a CPU with its own settings, written with what PyTorch has."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig.gpt2(vocab_size=vocab_size, context_length=LENGTH, bias=False, **SIZES))
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))
    batches = Windows(ids, BATCH, LENGTH, seed)
    for step in range(steps):
        lr = (
            RATE * (step + 1) / (WARMUP + 1)
            if step < WARMUP
            else RATE / 10 + 0.45 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP))) * RATE
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        x, y = map(torch.from_numpy, batches.batch(step))
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def changed(ids: np.ndarray, vocab_size: int, steps: int, seed: int, changes: dict[str, Any]) -> GPT:
    """The same recipe in this package's training step, with changes: fields of the two configs, or ``zero_start``."""
    torch.manual_seed(seed)
    run = {
        "context_length": LENGTH, "batch_size": BATCH, "optimizer": "adamw", "lr": RATE, "beta2": 0.99, "precision": "fp32",
        "schedule": "cosine", "warmup": WARMUP, "min_lr_ratio": 0.1, "weight_decay": 0.1,
    }  # fmt: skip
    run |= {name: value for name, value in changes.items() if name in TrainConfig.__dataclass_fields__}
    config = TrainConfig(corpus="-", out="-", steps=steps, seed=seed, **run)
    shape = {"position": "learned", "norm": "layernorm", "ffn": "gelu_tanh"}  # GPT-2 without biases
    shape |= {name: value for name, value in changes.items() if name not in run and name != "zero_start"}
    model = GPT(GPTConfig(vocab_size=vocab_size, context_length=config.context_length, **SIZES, **shape))
    if changes.get("zero_start"):
        for block in model.blocks:  # at first a block adds nothing to the stream
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.ffn.down.weight)
    optimizers = make_optimizers(model, config)
    batches = Windows(ids, config.batch_size, config.context_length, seed)
    dtype, _ = choose_precision(torch.device("cpu"), config.precision)
    for step in range(steps):
        train_step(model, optimizers, batches, step, config, dtype)
    return model


FALL = {"schedule": "stable", "warmup": 10, "decay": 0.6, "min_lr_ratio": 0.05}
# Each line adds one change to those above it.
STORY: dict[str, dict[str, Any]] = {
    "the recipe in our training step": {},
    "a constant rate, then a fall": FALL,
    "AdamW's rate 4e-3 for 1e-3": {"lr": 4e-3},
    "Muon for the matrices": {"optimizer": "muon", "muon_lr": 0.03},
    "rotary positions": {"position": "rope"},
    "QK-norm": {"qk_norm": True},
    "ReLU squared for GELU": {"ffn": "relu2"},
    "blocks that begin at zero": {"zero_start": True},
    "bfloat16 products": {"precision": "auto"},
}
# And this was tried on top of the whole story.
TRIED: dict[str, dict[str, Any]] = {
    "context 128 for 64": {"context_length": 128},
}
OURS = "QK-norm"  # the fastest line; what comes after it did not help


def changes_of(name: str) -> dict[str, Any]:
    """All changes of a line."""
    found: dict[str, Any] = {}
    for line, change in STORY.items():
        found |= change
        if line == name:
            return found
    return found | TRIED[name]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("name")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    text = open(arguments.text, encoding="utf-8").read()
    letters = sorted(set(text))
    number = {letter: i for i, letter in enumerate(letters)}
    ids = np.array([number[letter] for letter in text], dtype=np.int64)
    train, val = np.split(ids, [int(0.9 * len(ids))])
    settings = (train, len(letters), arguments.steps, arguments.seed)
    model = plain(*settings) if arguments.name == PLAIN else changed(*settings, changes_of(arguments.name))
    loss = whole_loss(model.eval(), val, model.config.context_length)
    result = {"steps": arguments.steps, "val_loss": loss, "seconds": time.perf_counter() - started}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
