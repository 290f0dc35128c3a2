"""The GPT in NumPy: every dial against PyTorch, its optimiser, and that it needs no PyTorch."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_layout import without

from gptbook.backprop import NumpyAdamW, NumpyGPT, parameter_shapes
from gptbook.config import FFNS, POSITIONS, GPTConfig
from gptbook.model import GPT, count_params

DIALS = list(
    product(
        ("layernorm", "rmsnorm"), FFNS, ("pre", "post"), (True, False), (True, False), (True, False), (1, 2)
    )
)


@pytest.mark.parametrize("position", POSITIONS)
def test_every_dial_against_torch(position: str) -> None:
    """Logits, loss and all gradients in float64, for all combinations of the dials."""
    for seed, (norm, ffn, place, bias, tie, qk_norm, kv) in enumerate(DIALS):
        config = GPTConfig(
            11, 6, 1, 2, kv, d_model=8, d_ff=12, position=position, norm=norm, ffn=ffn, norm_position=place,
            bias=bias, tie_embeddings=tie, qk_norm=qk_norm, norm_eps=1e-3, rope_theta=100.0,
        )  # fmt: skip
        torch.manual_seed(seed)
        theirs, ours = GPT(config).double(), NumpyGPT(config, dtype=np.float64)
        with torch.no_grad():
            for p in theirs.parameters():
                p.add_(0.2 * torch.randn_like(p))
        ours.params = {name: p.detach().numpy().copy() for name, p in theirs.named_parameters()}
        ids = torch.randint(11, (2, 7))
        logits = theirs(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        our_loss, grads = ours.loss_and_grads(ids[:, :-1].numpy(), ids[:, 1:].numpy())
        largest = max(p.grad.abs().max().item() for p in theirs.parameters())
        gap = max(np.abs(grads[n] - p.grad.numpy()).max() for n, p in theirs.named_parameters())
        assert gap <= 1e-12 * largest, config
        assert abs(our_loss - loss.item()) < 1e-12
        assert np.abs(ours.forward(ids[:, :-1].numpy())[0] - logits.detach().numpy()).max() < 1e-12


@pytest.mark.parametrize(
    "config",
    [
        GPTConfig.article(40, d_model=16, n_head=2, n_layer=2),
        GPTConfig.gpt2(d_model=16, n_head=2, n_layer=2),
        GPTConfig.tiny(40, n_kv_head=2, qk_norm=True),
    ],
)
def test_names_and_shapes_are_the_torch_model_s(config: GPTConfig) -> None:
    with torch.device("meta"):
        named = [(name, tuple(p.shape)) for name, p in GPT(config).named_parameters()]
    assert list(parameter_shapes(config).items()) == named
    assert sum(int(np.prod(shape)) for shape in parameter_shapes(config).values()) == count_params(config)


def test_starts_like_the_torch_model() -> None:
    config = GPTConfig.tiny(300, n_layer=4, bias=True, norm="layernorm")
    ours, theirs = NumpyGPT(config).params, dict(GPT(config).named_parameters())
    for name, p in ours.items():
        assert p.dtype == np.float32
        assert abs(float(p.mean()) - theirs[name].mean().item()) < 2e-3
        assert abs(float(p.std()) / max(theirs[name].std().item(), 1e-9) - 1) < 0.1 or p.std() == 0


def test_adamw_is_torch_s() -> None:
    rng = np.random.default_rng(0)
    params = {"matrix": rng.normal(size=(3, 4)), "gain": rng.normal(size=4)}
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params.values()]
    groups = [{"params": [theirs[0]], "weight_decay": 0.3}, {"params": [theirs[1]], "weight_decay": 0.0}]
    by_torch = torch.optim.AdamW(groups, lr=0.05, betas=(0.8, 0.9), eps=1e-6)
    ours = NumpyAdamW(params, lr=0.05, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    for _ in range(20):
        grads = {name: rng.normal(size=p.shape) for name, p in params.items()}
        for p, gradient in zip(theirs, grads.values()):
            p.grad = torch.from_numpy(gradient)
        by_torch.step()
        ours.step(grads)
    for p, other in zip(params.values(), theirs):
        assert np.abs(p - other.detach().numpy()).max() < 1e-13


def test_it_needs_no_torch() -> None:
    without(
        "torch",
        """
import numpy as np
from gptbook.backprop import NumpyAdamW, NumpyGPT
from gptbook.config import GPTConfig
model = NumpyGPT(GPTConfig.tiny(30))
optimizer = NumpyAdamW(model.params, lr=1e-2)
ids = np.resize(np.arange(7), (4, 17))
losses = []
for _ in range(30):
    loss, grads = model.loss_and_grads(ids[:, :-1], ids[:, 1:])
    optimizer.step(grads)
    losses.append(loss)
assert losses[-1] < 0.2 < 3 < losses[0], losses
""",
    )


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="dropout"):
        NumpyGPT(GPTConfig.tiny(10, dropout=0.1))
    model = NumpyGPT(GPTConfig.tiny(10, position="learned", context_length=4))
    with pytest.raises(ValueError, match="5 tokens"):
        model.forward(np.zeros((1, 5), dtype=int))


def test_gradients_start_from_zero_each_time() -> None:
    model = NumpyGPT(GPTConfig.tiny(10), dtype=np.float64)
    ids = np.array([[1, 2, 3]])
    first = {n: g.copy() for n, g in model.loss_and_grads(ids[:, :-1], ids[:, 1:])[1].items()}
    second = model.loss_and_grads(ids[:, :-1], ids[:, 1:])[1]
    assert all(np.array_equal(first[n], second[n]) for n in first)
