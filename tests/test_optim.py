"""Chapter 12: every optimiser step by step against PyTorch's, the schedules, and what is refused."""

import copy
import math
import sys
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gptbook.config import GPTConfig
from gptbook.model import GPT
from gptbook.optim import (
    NS_COEFFICIENTS,
    SGD,
    AdamW,
    Muon,
    hidden_matrices,
    orthogonalize,
    warmup_cosine,
    warmup_stable_decay,
)

# Tall, wide, square, a row and a column; several of a shape, so that there is something to batch.
MATRICES = [(12, 4), (4, 12), (6, 6), (12, 4), (6, 6), (1, 5), (5, 1), (7, 9)]
TENSORS = [(3, 4), (5,), (2, 2, 2), (1,)]


def parameters(shapes: list[tuple], dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    """The same for every list of the same shapes; now and then a parameter gets none."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 10.0 ** (i % 4 - 2)
        p.grad = None if (step + i) % 4 == 3 else grad.to(p.dtype)


def march(a: torch.optim.Optimizer, b: torch.optim.Optimizer, steps: int = 12) -> float:
    """The largest difference between the parameters of two optimisers after any step, under a schedule."""
    first, second = ([p for group in o.param_groups for p in group["params"]] for o in (a, b))
    base, gap = [(group, group["lr"]) for o in (a, b) for group in o.param_groups], 0.0
    assert not any(p is q or p.data_ptr() == q.data_ptr() for p in first for q in second)
    for step in range(steps):
        for group, lr in base:
            group["lr"] = lr * warmup_cosine(step, steps, 3)
        set_gradients(first, step), set_gradients(second, step)
        a.step(), b.step()
        gap = max(gap, *((p.double() - q.double()).abs().max().item() for p, q in zip(first, second)))
    return gap


# ---- SGD and Adam --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.3},
        {"momentum": 0.9},
        {"momentum": 0.5, "weight_decay": 0.3},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ],
)
def test_sgd_equals_torch(settings: dict) -> None:
    a, b = (
        SGD(parameters(TENSORS), lr=0.1, **settings),
        torch.optim.SGD(parameters(TENSORS), lr=0.1, **settings),
    )
    assert march(a, b) < 1e-14


def test_groups_have_their_own_settings() -> None:
    def groups(params: list) -> list[dict]:
        return [
            {"params": params[:2], "momentum": 0.9},
            {"params": params[2:], "lr": 0.02, "weight_decay": 0.5},
        ]

    a, b = SGD(groups(parameters(TENSORS)), lr=0.1), torch.optim.SGD(groups(parameters(TENSORS)), lr=0.1)
    assert march(a, b) < 1e-14


def test_adamw_without_decay_is_adam() -> None:
    settings = {"lr": 0.02, "betas": (0.9, 0.95), "weight_decay": 0.0}
    a, b = AdamW(parameters(TENSORS), **settings), torch.optim.Adam(parameters(TENSORS), **settings)
    assert march(a, b) < 1e-13


def test_adamw_in_one_kernel_is_the_same() -> None:
    settings = {"lr": 0.02, "betas": (0.9, 0.95), "weight_decay": 0.1}
    a, b = AdamW(parameters(TENSORS), fused=True, **settings), AdamW(parameters(TENSORS), **settings)
    assert march(a, b) < 1e-13


# ---- orthogonalisation ---------------------------------------------------------------------------


def by_singular_values(G: Tensor, steps: int) -> Tensor:
    U, S, Vt = torch.linalg.svd(G, full_matrices=False)
    a, b, c = NS_COEFFICIENTS
    x = S / G.norm(dim=(-2, -1))[..., None]
    for _ in range(steps):
        x = a * x + b * x**3 + c * x**5
    return U @ (x[..., None] * Vt)


@pytest.mark.parametrize("shape", [(12, 4), (4, 12), (6, 6), (1, 5), (3, 8, 5), (2, 3, 5, 8)])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_orthogonalize_acts_on_singular_values(shape: tuple, steps: int) -> None:
    torch.manual_seed(0)
    G = torch.randn(shape, dtype=torch.float64) * 1e3
    out = orthogonalize(G, steps)
    assert out.shape == G.shape and out.dtype == G.dtype
    assert torch.allclose(out, by_singular_values(G, steps), atol=1e-12)


def operations(m: int, n: int, dtype: torch.dtype, steps: int) -> int:
    with FlopCounterMode(display=False) as counter:
        orthogonalize(torch.randn(m, n), steps, dtype)
    return counter.get_total_flops()


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(("m", "n"), [(8, 8), (8, 12), (8, 13), (32, 8)])
def test_orthogonalize_takes_the_cheaper_way_where_it_is_exact(m: int, n: int, steps: int) -> None:
    """bf16 always goes step by step: on the squares its rounding explodes."""
    low, high = sorted((m, n))
    by_steps = steps * (4 * low**2 * high + 2 * low**3)
    on_squares = 4 * low**2 * high + (4 * steps - 3) * 2 * low**3
    assert operations(m, n, torch.float32, steps) == min(by_steps, on_squares)
    assert operations(m, n, torch.bfloat16, steps) == by_steps


@pytest.mark.parametrize("smallest", [1e-2, 1e-5, 0.0])
def test_orthogonalize_of_nearly_singular_matrices_in_float32(smallest: float) -> None:
    torch.manual_seed(0)
    U, _, Vt = torch.linalg.svd(torch.randn(48, 192, dtype=torch.float64), full_matrices=False)
    G = U * torch.linspace(1, smallest, 48, dtype=torch.float64) ** 3 @ Vt
    assert torch.allclose(orthogonalize(G.float()).double(), by_singular_values(G, 5), atol=1e-3)


def test_orthogonalize_leaves_its_input_alone_and_zero_zero() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        G = torch.randn(4, 6).to(dtype)
        before = G.clone()
        assert orthogonalize(G, dtype=torch.bfloat16).dtype == dtype
        assert torch.equal(G, before)
        assert orthogonalize(torch.zeros(4, 6, dtype=dtype)).abs().max() == 0


# ---- Muon ----------------------------------------------------------------------------------------

MUON = [
    {"adjust": "original", "nesterov": True},
    {"adjust": "original", "nesterov": False},
    {"adjust": "match_rms_adamw", "nesterov": True, "momentum": 0.8, "weight_decay": 0.0, "ns_steps": 3},
]


def both(settings: dict, params: list, theirs: list, dtype: torch.dtype) -> tuple:
    settings = {"lr": 0.05, "momentum": 0.95, "weight_decay": 0.3} | settings
    other = settings | {"adjust_lr_fn": settings["adjust"]}
    del other["adjust"]
    return Muon(params, dtype=dtype, **settings), torch.optim.Muon(theirs, **other)


@pytest.mark.parametrize("settings", MUON)
def test_muon_equals_torch_in_float64(settings: dict, monkeypatch) -> None:
    """PyTorch's with our iteration, checked above, in place of its own, which only knows bf16."""
    module = sys.modules["torch.optim._muon"]
    monkeypatch.setattr(
        module, "_zeropower_via_newtonschulz", lambda G, coefficients, steps, eps: orthogonalize(G, steps)
    )
    assert march(*both(settings, parameters(MATRICES), parameters(MATRICES), torch.float64)) < 1e-12


@pytest.mark.parametrize("settings", MUON)
def test_muon_equals_torch_in_bf16(settings: dict) -> None:
    """Within PyTorch's own rounding, which is measured; on most machines to the last bit."""
    ours, theirs = both(settings, *(parameters(MATRICES, torch.float32) for _ in range(2)), torch.bfloat16)
    exact, again = both(settings, parameters(MATRICES), parameters(MATRICES, torch.float32), torch.float64)
    rounding = march(exact, again)
    assert march(ours, theirs) <= rounding < 0.1


def test_muon_orthogonalizes_each_shape_once(monkeypatch) -> None:
    calls = []
    module = sys.modules[Muon.__module__]

    def counted(G: Tensor, *args) -> Tensor:
        calls.append(tuple(G.shape))
        return orthogonalize(G, *args)

    monkeypatch.setattr(module, "orthogonalize", counted)
    params = parameters(MATRICES)
    for p in params:
        p.grad = torch.ones_like(p)
    Muon(params, dtype=torch.float64).step()
    assert sorted(calls) == [(1, 7, 9), (2, 1, 5), (2, 6, 6), (3, 4, 12)]


def test_muon_batched_equals_one_by_one() -> None:
    params, single = parameters(MATRICES), parameters(MATRICES)
    together, alone = (
        Muon(params, dtype=torch.float64),
        Muon([{"params": [p]} for p in single], dtype=torch.float64),
    )
    assert march(together, alone) < 1e-12


def test_muon_keeps_its_mean_with_bf16_weights() -> None:
    for nesterov in (True, False):
        w = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
        w.grad = torch.full_like(w, 8.0)
        optimizer = Muon([w], momentum=0.5, nesterov=nesterov)
        optimizer.step()
        assert (optimizer.state[w]["momentum"] == 4).all() and (w.grad == 8).all()


@pytest.mark.parametrize(
    "make", [lambda p: Muon(p, dtype=torch.float64), lambda p: SGD(p, 0.1, momentum=0.9)]
)
def test_state_is_tensors_and_a_run_goes_on(make) -> None:
    """As the training engine stores it: every entry of every parameter's state as a tensor, by name."""
    params = parameters(MATRICES)
    optimizer = make(params)
    for step in range(5):
        set_gradients(params, step)
        optimizer.step()
    stored = save({f"{key}.{i}": t for i, p in enumerate(params) for key, t in optimizer.state[p].items()})
    twins = copy.deepcopy(params)
    again = make(twins)
    for name, tensor in load(stored).items():
        key, _, i = name.partition(".")
        again.state[twins[int(i)]][key] = tensor
    for step in range(5, 10):
        set_gradients(params, step), set_gradients(twins, step)
        optimizer.step(), again.step()
        assert all(torch.equal(p, q) for p, q in zip(params, twins))


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"bias": True, "position": "learned"}])
def test_hidden_matrices_are_those_of_the_blocks(changes: dict) -> None:
    model = GPT(GPTConfig.tiny(50, **changes))
    hidden = {id(p) for p in hidden_matrices(model)}
    for name, p in model.named_parameters():
        assert (id(p) in hidden) == (name.startswith("blocks.") and p.ndim == 2), name
    wrapped = nn.ModuleDict({"gpt": model})
    assert [id(p) for p in hidden_matrices(wrapped)] == [id(p) for p in hidden_matrices(model)]
    model.blocks[0].requires_grad_(False)
    assert len(hidden_matrices(model)) == len(hidden) // 2


# ---- schedules -----------------------------------------------------------------------------------


def test_warmup_stable_decay_at_its_corners() -> None:
    at = [warmup_stable_decay(s, 20, 4, 5, 0.1) for s in range(20)]
    assert at[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and at[5:15] == [1.0] * 10
    assert at[15:] == pytest.approx([0.82, 0.64, 0.46, 0.28, 0.1])
    assert warmup_stable_decay(30, 20, 4, 5, 0.1) == pytest.approx(0.1)
    assert warmup_stable_decay(19, 20, 4, 5) == 0
    assert [warmup_stable_decay(s, 3, 0, 0) for s in range(3)] == [1.0] * 3
    assert [warmup_stable_decay(s, 4, 2, 2) for s in range(4)] == [0.5, 1.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="do not fit into 8 steps"):
        warmup_stable_decay(0, 8, 4, 5)


def test_warmup_cosine_at_its_corners() -> None:
    at = [warmup_cosine(s, 20, 4, 0.1) for s in range(20)]
    assert at[:4] == [0.25, 0.5, 0.75, 1.0] and at[-1] == pytest.approx(0.1)
    assert at[11] == pytest.approx(0.55) and all(a > b for a, b in pairwise(at[3:]))
    assert math.isclose(warmup_cosine(99, 20, 4, 0.1), 0.1)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: SGD(p, lr=-1), "lr = -1"),
        (lambda p: SGD(p, lr=1, momentum=1.0), "momentum = 1.0"),
        (lambda p: SGD(p, lr=1, nesterov=True), "nesterov needs a momentum"),
        (lambda p: SGD(p, lr=1, weight_decay=-0.1), "weight_decay = -0.1"),
        (lambda p: Muon(p, lr=-1), "lr = -1"),
        (lambda p: Muon(p, momentum=-0.1), "momentum = -0.1"),
        (lambda p: Muon(p, weight_decay=-0.1), "weight_decay = -0.1"),
        (lambda p: Muon(p, ns_steps=-1), "ns_steps = -1"),
        (lambda p: Muon(p, adjust="orignal"), "did you mean 'original'"),
        (lambda p: Muon([*p, nn.Parameter(torch.ones(5))]), r"shape \(5,\)"),
        (lambda p: Muon(p).add_param_group({"params": [nn.Parameter(torch.ones(2, 2, 2))]}), r"\(2, 2, 2\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(parameters([(3, 4)]))


@pytest.mark.parametrize("fused", [False, True])
def test_a_copied_adamw_steps_as_the_first(fused: bool) -> None:
    w = nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    first = AdamW([w], fused=fused)
    first.step()
    second = copy.deepcopy(first)
    assert second.fused is fused
    (copied,) = second.param_groups[0]["params"]
    copied.grad = w.grad
    first.step()
    second.step()
    assert torch.equal(copied, w)
