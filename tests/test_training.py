"""Chapters 13 and 15: what one step of training computes, and what an evaluation reports."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptbook.config import GPTConfig, TrainConfig
from gptbook.data import Batches
from gptbook.evaluate import evaluate_model
from gptbook.model import GPT
from gptbook.training import MODELS, book_model, train_step

V, T = 19, 8


class Row:
    """Tokens in memory, to be read as those of a corpus are."""

    def __init__(self, size: int):
        self.ids = np.random.default_rng(0).integers(V, size=size)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, length: int) -> np.ndarray:
        return self.ids[start : start + length]


def model_in_float64(**dials) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig.tiny(V, n_layer=1, d_model=16, **dials)).double()


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_accumulated_batches_are_one_large_batch(accumulate: int) -> None:
    """The same loss and gradient. Plain descent shows the gradient's size, to which Adam is blind."""
    stepped = []
    for n in (1, accumulate):
        config = TrainConfig(corpus="", out="", batch_size=6 // n, accumulate=n, context_length=T, clip=1e3)
        model, batches = model_in_float64(), Batches(Row(300), 6 // n, T)
        optimizer = torch.optim.SGD([{"params": model.parameters(), "max_lr": 1.0}], lr=1.0)
        lines = [train_step(model, [optimizer], batches, step, config, torch.float32) for step in range(3)]
        stepped.append((lines, torch.cat([p.detach().flatten() for p in model.parameters()])))
    (whole, weights), (parts, others) = stepped
    for a, b in zip(whole, parts):
        assert b == pytest.approx(a, rel=1e-5)  # the loss is taken in float32
    torch.testing.assert_close(others, weights, rtol=0, atol=1e-6)


def test_bits_per_byte_count_bytes() -> None:
    """The text's negative log-probability in bits, divided by its bytes; not by its tokens."""
    model, data = model_in_float64(context_length=40).eval(), Row(41)
    with torch.no_grad():
        ids = torch.from_numpy(data.ids)
        nats = F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="sum").item()
    for n_bytes in (41, 137):
        found = evaluate_model(model, data, n_bytes)
        assert found.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
        assert (found.tokens, found.bytes) == (40, n_bytes)
        assert found.loss == pytest.approx(nats / 40, rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(nats / 40), rel=1e-5)


# ---- the models that come with the book ------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.parent.name for path in MODELS.glob("*/run.json")))
def test_book_models(name: str) -> None:
    """Each is small, and model and tokenizer belong together."""
    model, tokenizer = book_model(name)
    assert not model.training and model.config.vocab_size == tokenizer.vocab_size
    assert sum(path.stat().st_size for path in (MODELS / name).rglob("*")) < 5_000_000


def test_unknown_book_model() -> None:
    with pytest.raises(ValueError, match=r"'raeder'.*reader"):
        book_model("raeder")
