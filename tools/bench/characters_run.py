"""One training run on the characters of tinyshakespeare, as a process of its own: `characters.py` starts it and takes the time.

    python characters_run.py TEXT plain|ours|NAME

The first 90 % of the text are for training. ``plain`` is nanoGPT's example for a CPU with its own settings: GPT-2's
shape, 4 layers, 4 heads, width 128, context 64, batches of 12, 2,000 steps of AdamW with warm-up and a cosine.
``ours`` stops as soon as the loss on the whole held-out part is at the goal; NAME is a line of the story that chapter 13
tells. The last line is JSON.
"""

import json
import math
import sys
import time
from functools import partial

started = time.perf_counter()

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gptbook.config import GPTConfig, TrainConfig
from gptbook.model import GPT
from gptbook.training import choose_precision, make_optimizers, train_step


class Windows:
    """Random windows of a text, by number."""

    def __init__(self, ids: np.ndarray, batch: int, length: int):
        self.ids, self.shape = ids, (batch, length)

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        B, T = self.shape
        starts = np.random.default_rng(number).integers(0, len(self.ids) - T - 1, B)
        rows = self.ids[starts[:, None] + np.arange(T + 1)]
        return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def whole_loss(model: GPT, ids: np.ndarray, length: int, every: int = 1) -> float:
    """Mean loss over the whole text in windows that do not overlap: each character but the first is predicted once.
    With ``every``, an estimate from one window of so many."""
    n = (len(ids) - 1) // length * length
    x, y = torch.from_numpy(ids[:n]).view(-1, length), torch.from_numpy(ids[1 : n + 1]).view(-1, length)
    x, y = x[::every], y[::every]
    total = sum(
        F.cross_entropy(model(a).flatten(0, 1), b.flatten(), reduction="sum").item()
        for a, b in zip(x.split(64), y.split(64))
    )
    return total / y.numel()


def plain(train: np.ndarray, val: np.ndarray, vocab_size: int, goal: float) -> dict:
    torch.manual_seed(1337)
    steps, warmup, length = 2000, 100, 64
    model = GPT(
        GPTConfig.gpt2(
            vocab_size=vocab_size, context_length=length, n_layer=4, n_head=4, d_model=128, bias=False
        )
    )
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    batches = Windows(train, 12, length)
    for step in range(steps):
        lr = (
            1e-3 * (step + 1) / (warmup + 1)
            if step < warmup
            else 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) * 9e-4
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        x, y = map(torch.from_numpy, batches.batch(step))
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {"steps": steps, "val_loss": whole_loss(model.eval(), val, length)}


SHAPES = {
    "gpt2": {"position": "learned", "norm": "layernorm", "ffn": "gelu"},
    "ours": {"norm": "layernorm", "ffn": "relu2", "qk_norm": True},
}


def fast(
    train: np.ndarray, val: np.ndarray, vocab_size: int, goal: float, *, shape: str = "ours", length: int = 64, steps: int = 340,
    bf16: bool = True,
) -> dict:  # fmt: skip
    """Muon, and what goes with it; stops at the goal. The dials are those of the story in chapter 13."""
    torch.manual_seed(0)
    config = TrainConfig(
        corpus="-", out="-", context_length=length, batch_size=12, steps=steps, warmup=10, lr=6e-3, muon_lr=0.03, weight_decay=0.05,
        decay=0.6,
    )  # fmt: skip
    model = GPT(
        GPTConfig(
            vocab_size=vocab_size, context_length=length, n_layer=4, n_head=4, d_model=128, **SHAPES[shape]
        )
    )
    if shape == "ours":
        for block in model.blocks:  # at first a block adds nothing to the stream
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.ffn.down.weight)
    optimizers, batches = make_optimizers(model, config), Windows(train, 12, length)
    dtype = choose_precision(torch.device("cpu"))[0] if bf16 else torch.float32
    for step in range(steps):
        train_step(model, optimizers, batches, step, config, dtype)
        if step + 1 >= 0.8 * steps and (step + 1) % (steps // 20) == 0:
            loss = whole_loss(
                model.eval(), val, length, every=10
            )  # the whole takes as long as some twenty steps
            if loss <= goal + 0.02 or step + 1 == steps:
                loss = whole_loss(model, val, length)
            model.train()
            if loss <= goal:
                break
    return {"steps": step + 1, "val_loss": loss}


# The story of chapter 13: each line is named after its main change and keeps what came before, but most change more.
# With Muon come AdamW's rate and second decay, the weight decay, the schedule with its warm-up, GELU without the
# approximation by tanh, another seed, and the stop at the goal; the third line has four parts; and the number of steps
# was set anew for each line but that of bfloat16, which alone changes one thing.
STORY = {
    "the plain recipe": plain,
    "Muon for the matrices": partial(fast, shape="gpt2", steps=560, bf16=False),
    "rotary positions, QK-norm, ReLU squared, zero start": partial(fast, bf16=False),
    "bfloat16 products": fast,
    "context 128 instead of 64": partial(fast, length=128, steps=220),
}


if __name__ == "__main__":
    text = open(sys.argv[1], encoding="utf-8").read()
    letters = sorted(set(text))
    number = {letter: i for i, letter in enumerate(letters)}
    ids = np.array([number[letter] for letter in text], dtype=np.int64)
    cut = int(0.9 * len(ids))
    result = (STORY | {"plain": plain, "ours": fast})[sys.argv[2]](ids[:cut], ids[cut:], len(letters), 1.886)
    print(json.dumps(result | {"seconds": time.perf_counter() - started}))
