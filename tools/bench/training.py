"""Training tokens per second: our default against Hugging Face's GPT-2.

    python tools/bench/training.py [--repeats 7]

Both take whole steps (forward, backward, clip, optimiser) on batches of 8 x 256 random tokens. Theirs is in float32
with AdamW, as a plain loop trains it. Ours is what `gptbook train` does by default: its shape, Muon and AdamW, and the
precision that the engine chooses for this machine. Theirs in bfloat16 and ours in float32 are measured for comparison.
"""

import argparse
import itertools

import numpy as np
import torch
from peers import BATCH, LENGTH, SIZES, medians, our_default, save, take_turns, their_gpt2

from gptbook.config import TrainConfig
from gptbook.model import GPT
from gptbook.training import choose_precision, make_optimizers, train_step


class RandomTokens:
    """Batches by number, as the engine's."""

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.random.default_rng(number).integers(0, SIZES["vocab_size"], (BATCH, LENGTH + 1))
        return rows[:, :-1].copy(), rows[:, 1:].copy()


def their_step(dtype: torch.dtype):
    model, batches = their_gpt2().train(), RandomTokens()
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


def our_step(dtype: torch.dtype):
    torch.manual_seed(0)
    model, batches = GPT(our_default()), RandomTokens()
    config = TrainConfig(corpus="-", out="-", context_length=LENGTH, batch_size=BATCH)
    optimizers, numbers = (
        make_optimizers(model, config),
        itertools.count(),
    )  # one batch again and again is soon known by heart
    return lambda: train_step(model, optimizers, batches, next(numbers), config, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    chosen, why = choose_precision(torch.device("cpu"))
    sides = {"transformers fp32": their_step(torch.float32), "gptbook default": our_step(chosen)}
    if chosen == torch.bfloat16:
        sides |= {"transformers bf16": their_step(chosen), "gptbook fp32": our_step(torch.float32)}
    seconds = medians(take_turns(sides, repeats))
    rates = {name: BATCH * LENGTH / value for name, value in seconds.items()}
    rows = []
    for ours, theirs, compared, least in (
        ("default", "fp32", f"our default ({why.split(',')[0]}) against transformers GPT-2 fp32", 2.0),
        ("fp32", "fp32", "fp32 both, the same GPT-2 of transformers; no goal was set", 0.0),
        ("default", "bf16", "bf16 both, the same GPT-2 of transformers; no goal was set", 0.0),
    ):
        pair = rates.get(f"gptbook {ours}"), rates.get(f"transformers {theirs}")
        if all(pair):
            rows.append(["training, tokens/s", compared, *pair, pair[0] / pair[1], least])
    save("training", {"tokens_per_second": rates, "precision": why, "rows": rows})
    for name, rate in rates.items():
        print(f"training  {name:<18} {rate:7,.0f} tokens/s")
    print("training  ratios", *(f"{row[4]:.2f}" for row in rows))


if __name__ == "__main__":
    main()
