"""Training tokens per second: our default against Hugging Face's GPT-2.

    python tools/bench/training.py [--repeats 7]

Both take whole steps (forward, backward, clip, optimiser) on batches of 8 x 256 random tokens. Theirs is in float32
with AdamW, as a plain loop trains it. Ours is what `gptbook train` does by default in a run of some minutes: its shape,
Muon and AdamW, the precision that the engine chooses for this machine, and blocks translated by torch.compile where
that is possible. The steps before the clock starts pay for the translation. Each of the three advantages is given to
the other side, too, for comparison.
"""

import argparse
import itertools
import os
import tempfile
import time

os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()  # nothing was translated before

import numpy as np
import torch
from peers import BATCH, LENGTH, SIZES, medians, our_default, save, take_turns, their_gpt2

from gptbook.config import TrainConfig
from gptbook.model import GPT
from gptbook.training import choose_compile, choose_precision, make_optimizers, train_step


class RandomTokens:
    """Batches by number, as the engine's."""

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.random.default_rng(number).integers(0, SIZES["vocab_size"], (BATCH, LENGTH + 1))
        return rows[:, :-1].copy(), rows[:, 1:].copy()


def translate(blocks: torch.nn.ModuleList) -> None:
    for block in blocks:
        block.compile(dynamic=False)


def their_step(dtype: torch.dtype, compiled: bool = False):
    model, batches = their_gpt2().train(), RandomTokens()
    if compiled:
        translate(model.transformer.h)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    numbers = itertools.count()

    def step() -> None:
        x = torch.from_numpy(batches.batch(next(numbers))[0])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(x, labels=x).loss  # it shifts by one itself
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(dtype: torch.dtype, compiled: bool = False):
    torch.manual_seed(0)
    model, batches = GPT(our_default()), RandomTokens()
    if compiled:
        translate(model.blocks)
    config = TrainConfig(corpus="-", out="-", context_length=LENGTH, batch_size=BATCH)
    # one batch again and again is soon known by heart
    optimizers, numbers = make_optimizers(model, config), itertools.count()
    return lambda: train_step(model, optimizers, batches, next(numbers), config, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    device = torch.device("cpu")
    precision, why = choose_precision(device)
    compiled, why_compiled = choose_compile(device, long=True)
    name = f"{'bf16' if precision == torch.bfloat16 else 'fp32'}{', translated' * compiled}"
    pairs = [(name, "fp32", f"our default ({name}) against transformers GPT-2 fp32", 2.0)]
    for form in dict.fromkeys(("fp32", name.split(",")[0], name)):
        pairs.append((form, form, f"{form} both, the same GPT-2 of transformers; no goal was set", 0.0))
    sides = {}
    for ours, theirs, *_ in pairs:
        for side, form, make in (("gptbook", ours, our_step), ("transformers", theirs, their_step)):
            if f"{side} {form}" not in sides:
                dtype = torch.bfloat16 if form.startswith("bf16") else torch.float32
                sides[f"{side} {form}"] = make(dtype, form.endswith("translated"))
    first = {}
    for side, step in sides.items():
        started = time.perf_counter()
        step()
        first[side] = time.perf_counter() - started
    seconds = medians(take_turns(sides, repeats))
    rates = {side: BATCH * LENGTH / value for side, value in seconds.items()}
    rows = []
    for ours, theirs, compared, least in pairs:
        pair = rates[f"gptbook {ours}"], rates[f"transformers {theirs}"]
        rows.append(["training, tokens/s", compared, *pair, pair[0] / pair[1], least])
    if compiled:
        pair = [first[f"{side} {name}"] for side in ("gptbook", "transformers")]
        what = "the first step, in which the blocks are translated; no goal was set"
        rows.append(["training, seconds", what, *pair, pair[1] / pair[0], 0.0])
    save("training", {"tokens_per_second": rates, "precision": why, "compile": why_compiled, "rows": rows})
    for side, rate in rates.items():
        print(f"training  {side:<30} {rate:7,.0f} tokens/s")
    print("training  ratios", *(f"{row[4]:.2f}" for row in rows))


if __name__ == "__main__":
    main()
