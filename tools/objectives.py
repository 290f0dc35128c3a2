"""Train chapter 16's models longer, with two seeds, and write nbs/results/objectives.json.

The definitions are the notebook's own: its cells are executed here up to
where they begin to train or measure.
Takes about ten minutes on one core.
"""

import json
from pathlib import Path

import numpy as np
import torch
from experiments import VERSIONS, commit

NBS = Path(__file__).resolve().parents[1] / "nbs"
STEPS, SEEDS = 1500, (1, 2)
PARTS = {  # what a cell contains -> where it is cut off
    "from gptbook import microworld": None,
    "from torch import Tensor, nn": None,
    "def options(": None,
    "OBJECTIVES = ": "models = {",
    "held = ": "def in_orders",
    "def read_text(": 'judge("causal"',
}


def definitions() -> dict:
    """The notebook's names, without its trained models."""
    cells = json.loads((NBS / "16_objectives.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict = {}
    exec("from gptbook.objectives import *", names)
    for part, cut in PARTS.items():
        source = next(source for source in sources if part in source)
        exec(source[: source.index(cut)] if cut else source, names)
    return names


def measure(names: dict, name: str, seed: int) -> dict:
    """Train one model; its excess over the entropy in nats a story, and the share of true stories."""
    kind = names["GPT"] if name == "causal" else names["MaskedLM"]
    model = names["learn"](names["build"](kind, seed), names["OBJECTIVES"][name], STEPS, seed)
    true = lambda ids: names["mw"].grade([names["read_text"](row) for row in ids]).true  # noqa: E731
    texts, sample, nothing = names["texts"], names["sample"], names["nothing"]
    with torch.no_grad():
        if name == "causal":
            loss = names["causal_loss"](model, texts, names["END"])
            excess = (names["P_texts"] * loss).sum().item() - names["H"]
            shares = {"from the left": true(names["write_causal"](model, names["N"]))}
        else:
            g = torch.Generator().manual_seed(0)
            orders = [torch.rand(sample.shape, generator=g).argsort(1) for _ in range(3)]
            losses = [-names["order_log_prob"](model, sample, order).mean().item() for order in orders]
            excess = float(np.mean(losses)) - names["own"]
            shares = {"random order": true(names["fill"](model, nothing))}
            shares["Gibbs, 4 sweeps"] = true(names["gibbs_sample"](model, nothing, 4, seed=4))
    return {"model": name, "seed": seed, "excess": excess, "true": shares}


if __name__ == "__main__":
    found = definitions()
    runs = [measure(found, name, seed) for seed in SEEDS for name in found["OBJECTIVES"]]
    record = {"steps": STEPS, "batch": found["BATCH"], **VERSIONS, "commit": commit(), "runs": runs}
    (NBS / "results" / "objectives.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
