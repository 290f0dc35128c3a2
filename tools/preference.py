"""Run chapter 18's experiments on stories with two more seeds, and write nbs/results/preference.json.

The code is the notebook's own: its cells about stories are executed here with another SEED.
Takes about three minutes on one core.
"""

import json
from pathlib import Path

import matplotlib
import numpy as np
from experiments import VERSIONS, commit

NBS = Path(__file__).resolve().parents[1] / "nbs"
SEEDS = (1, 2)
PARTS = {  # what a cell contains -> where it is cut off
    "from gptbook import microworld": None,
    "def imitate(": None,
    "def tell_story(": None,
    "def read_story(": None,
    "pool, told = ": None,
    "dpo_lines, grpo_lines": "assert policies[",
    "def chase_points(": "smooth = ",
}

IMPORTS = """
from collections.abc import Callable, Sequence
import torch
from torch import Tensor, nn
from gptbook.finetune import Packed
from gptbook.model import GPT
from gptbook.optim import AdamW, clip_gradients
from gptbook.preference import *
from gptbook.sample import generate
"""


def run(seed: int) -> dict:
    """What came out: the policies of the table, the runs on points, the reward model's share of pairs."""
    cells = json.loads((NBS / "18_preference.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict = {}
    exec(IMPORTS, names)
    for part, cut in PARTS.items():
        source = next(source for source in sources if part in source).replace("SEED = 0", f"SEED = {seed}")
        exec(source[: source.index(cut)] if cut else source, names)
    least = names["least"]
    policies = {name: {**v, "least": least(v["good"])} for name, v in names["policies"].items()}
    hacks = {}
    for name, lines in names["hacks"].items():
        good = float(np.mean(names["goals"][name][-3:]))
        points = float(np.mean([line["reward"] for line in lines[-3:]]))
        hacks[name] = {"good": good, "points": points, "KL": lines[-1]["kl"], "least": least(good)}
    return {"seed": seed, "accuracy": names["accuracy"], "policies": policies, "hacks": hacks}


if __name__ == "__main__":
    matplotlib.use("agg")
    record = {**VERSIONS, "commit": commit(), "runs": [run(seed) for seed in SEEDS]}
    text = json.dumps(record, indent=1, default=float)
    (NBS / "results" / "preference.json").write_text(text + "\n", encoding="utf-8")
