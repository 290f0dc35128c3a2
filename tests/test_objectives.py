"""Chapter 16: who sees whom, what is hidden, likelihoods summed over all texts, what the samplers draw."""

import math
from itertools import permutations, product

import pytest
import torch

from gptbook.config import GPTConfig
from gptbook.model import GPT
from gptbook.objectives import (
    MaskedLM,
    any_order_loss,
    causal_loss,
    fill,
    gibbs_sample,
    mask_tokens,
    masked_loss,
    order_log_prob,
    pseudo_log_likelihood,
)

V, T = 3, 3
EVERY = torch.tensor(list(product(range(V), repeat=T)))
ORDERS = list(permutations(range(T)))


def shaken(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """In float64, with weights large enough that every token is felt."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model.double().eval()


CONFIG = GPTConfig.tiny(V, context_length=T, d_model=16, n_head=2, position="learned")


@pytest.fixture(scope="module")
def model() -> MaskedLM:
    return shaken(MaskedLM(CONFIG))


def in_order(model: MaskedLM, order: tuple[int, ...]) -> torch.Tensor:
    """ln q_order of every text."""
    return order_log_prob(model, EVERY, torch.tensor(order).expand(len(EVERY), T))


# ---- the model -----------------------------------------------------------------------------------


def test_it_sees_both_sides(model: MaskedLM) -> None:
    for j in range(T):
        other = EVERY.clone()
        other[:, j] = (EVERY[:, j] + 1) % V
        moved = (model(other) - model(EVERY)).abs().amax(dim=(0, 2))
        assert (moved > 1e-6).all()


def test_it_has_the_parameters_of_the_gpt_and_one_row_more() -> None:
    count = sum(p.numel() for p in MaskedLM(CONFIG).parameters())
    assert count == GPT(CONFIG).num_params() + CONFIG.d_model * (1 if CONFIG.tie_embeddings else 2)


def test_a_gpt_made_afterwards_still_sees_only_the_past(model: MaskedLM) -> None:
    """The hook belongs to the blocks of one model, not to the class."""
    gpt = shaken(GPT(model.body.config))
    other = EVERY.clone()
    other[:, 2] = (EVERY[:, 2] + 1) % V
    assert torch.equal(gpt(other)[:, :2], gpt(EVERY)[:, :2])


def test_its_weights_can_be_saved_and_loaded(model: MaskedLM) -> None:
    other = MaskedLM(CONFIG).double().eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(EVERY), model(EVERY))


def test_the_mask_is_read_and_never_predicted(model: MaskedLM) -> None:
    logits = model(torch.full((1, T), model.mask_id))
    assert logits.shape == (1, T, V) and model.mask_id == V


@pytest.mark.parametrize("position", ["rope", "none"])
def test_positions_that_an_empty_text_cannot_feel_are_refused(position: str) -> None:
    with pytest.raises(ValueError, match="learned, sinusoidal"):
        MaskedLM(CONFIG.replace(position=position))


# ---- masks ---------------------------------------------------------------------------------------


def test_shares_of_bert_s_recipe() -> None:
    ids = torch.randint(50, (400, 500), generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    inputs, selected = mask_tokens(ids, 0.15, 50, g, replace=0.1, keep=0.1)
    assert torch.equal(inputs[~selected], ids[~selected])
    n = selected.sum().item()
    assert abs(n / ids.numel() - 0.15) < 0.004
    hidden = (inputs[selected] == 50).double().mean().item()
    same = (inputs[selected] == ids[selected]).double().mean().item()
    assert abs(hidden - 0.8) < 0.01 and abs(same - (0.1 + 0.1 / 50)) < 0.01
    changed = inputs[selected & (inputs != 50) & (inputs != ids)]
    assert changed.min() == 0 and changed.max() == 49


def test_a_rate_for_each_text() -> None:
    ids = torch.zeros(2, 2000, dtype=torch.long)
    _, selected = mask_tokens(ids, torch.tensor([[0.1], [0.9]]), 5, torch.Generator().manual_seed(0))
    shares = selected.double().mean(1)
    assert abs(shares[0] - 0.1) < 0.03 and abs(shares[1] - 0.9) < 0.03


@pytest.mark.parametrize(
    ("rate", "recipe"), [(0.0, {}), (1.1, {}), (0.5, {"keep": 0.6, "replace": 0.6}), (0.5, {"keep": -0.1})]
)
def test_shares_that_are_none_are_refused(rate: float, recipe: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        mask_tokens(EVERY, rate, V, torch.Generator(), **recipe)


def test_the_loss_counts_selected_positions_only(model: MaskedLM) -> None:
    logits, selected = model(EVERY), torch.zeros_like(EVERY, dtype=torch.bool)
    selected[:, 1] = True
    expected = -logits[:, 1].log_softmax(-1).gather(1, EVERY[:, 1:2]).mean()
    assert torch.allclose(masked_loss(logits, EVERY, selected), expected)
    spoiled = logits.clone()
    spoiled[:, 0] += torch.randn(V)
    assert torch.equal(masked_loss(spoiled, EVERY, selected), masked_loss(logits, EVERY, selected))


def test_a_batch_without_a_selected_token_has_the_loss_zero_and_a_gradient() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = masked_loss(logits, torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


# ---- likelihoods ---------------------------------------------------------------------------------


def test_the_causal_loss_is_a_negative_log_likelihood() -> None:
    gpt = shaken(GPT(CONFIG))
    with torch.no_grad():
        assert abs(causal_loss(gpt, EVERY, 0).neg().exp().sum().item() - 1) < 1e-10


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_is_a_distribution(model: MaskedLM, order: tuple[int, ...]) -> None:
    assert abs(in_order(model, order).exp().sum().item() - 1) < 1e-10


def test_an_order_by_hand(model: MaskedLM) -> None:
    x = EVERY[17]
    total, shown = 0.0, torch.full((T,), V)
    for i in (2, 0, 1):
        total += model(shown[None])[0, i].log_softmax(-1)[x[i]].item()
        shown[i] = x[i]
    assert in_order(model, (2, 0, 1))[17].item() == pytest.approx(total, abs=1e-12)


def test_pseudo_log_likelihood_by_hand(model: MaskedLM) -> None:
    x, total = EVERY[11], 0.0
    for i in range(T):
        shown = x.clone()
        shown[i] = V
        total += model(shown[None])[0, i].log_softmax(-1)[x[i]].item()
    assert pseudo_log_likelihood(model, EVERY)[11].item() == pytest.approx(total, abs=1e-12)


def test_one_pass_estimates_the_mean_over_all_orders(model: MaskedLM) -> None:
    exact = -torch.stack([in_order(model, order) for order in ORDERS]).mean(0)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found = torch.stack([any_order_loss(model, EVERY, g) for _ in range(1500)])
    assert ((found.mean(0) - exact).abs() < 4.5 * found.std(0) / math.sqrt(1500)).all()


# ---- writing -------------------------------------------------------------------------------------


def share_of(texts: torch.Tensor) -> torch.Tensor:
    number = (texts * torch.tensor([V**2, V, 1])).sum(1)
    return torch.bincount(number, minlength=V**T).double()


def chi_square(texts: torch.Tensor, p: torch.Tensor) -> float:
    return ((share_of(texts) - p * len(texts)) ** 2 / (p * len(texts))).sum().item()


LIMIT = 54.1  # one in a thousand is above it, with 26 degrees of freedom


def test_filling_in_random_order_draws_from_the_mixture(model: MaskedLM) -> None:
    mixture = torch.stack([in_order(model, order).exp() for order in ORDERS]).mean(0)
    assert chi_square(fill(model, torch.full((10_000, T), V)), mixture) < LIMIT


def test_filling_from_the_left_draws_from_that_order(model: MaskedLM) -> None:
    left, other = in_order(model, (0, 1, 2)).exp(), in_order(model, (2, 1, 0)).exp()
    texts = fill(model, torch.full((10_000, T), V), order="left")
    assert chi_square(texts, left) < LIMIT < chi_square(texts, other)


def test_filling_all_at_once_draws_each_token_by_itself(model: MaskedLM) -> None:
    p = model(torch.full((1, T), V))[0].softmax(-1)
    independent = (p[0][:, None, None] * p[1][:, None] * p[2]).flatten().detach()
    assert chi_square(fill(model, torch.full((10_000, T), V), per_pass=T), independent) < LIMIT


def test_filling_leaves_what_is_there(model: MaskedLM) -> None:
    ids = torch.tensor([[1, V, 2], [V, 0, V], [0, 1, 2]])
    done = fill(model, ids, per_pass=2)
    assert torch.equal(done[ids != V], ids[ids != V]) and (done < V).all()
    assert (ids == V).sum() == 3, "the argument was changed"


def test_greedy_takes_the_best(model: MaskedLM) -> None:
    ids = torch.tensor([[1, V, 2]])
    best = model(ids)[0, 1].argmax().item()
    assert {fill(model, ids, greedy=True, seed=s)[0, 1].item() for s in range(5)} == {best}


def test_the_same_seed_writes_the_same(model: MaskedLM) -> None:
    nothing = torch.full((50, T), V)
    assert torch.equal(fill(model, nothing, seed=3), fill(model, nothing, seed=3))
    assert not torch.equal(fill(model, nothing, seed=3), fill(model, nothing, seed=4))


def test_gibbs_sampling_follows_its_kernel(model: MaskedLM) -> None:
    """Two sweeps from the left, against the exact distribution by matrices over all texts."""
    p = torch.zeros(V**T, dtype=torch.float64)
    p[0] = 1.0
    for i in (0, 1, 2) * 2:
        blank = EVERY.clone()
        blank[:, i] = V
        q = model(blank)[:, i].softmax(-1).detach()  # (27, V)
        after = torch.zeros_like(p)
        for value in range(V):
            to = EVERY.clone()
            to[:, i] = value
            number = (to * torch.tensor([V**2, V, 1])).sum(1)
            after.index_add_(0, number, p * q[:, value])
        p = after
    texts = gibbs_sample(model, torch.zeros(10_000, T, dtype=torch.long), 2, order="left")
    assert chi_square(texts, p) < LIMIT


@pytest.mark.parametrize(
    "call",
    [
        lambda m: fill(m, EVERY, per_pass=0),
        lambda m: fill(m, EVERY, order="right"),
        lambda m: gibbs_sample(m, EVERY, 1, order="right"),
    ],
)
def test_bad_arguments_are_refused(model: MaskedLM, call) -> None:
    with pytest.raises(ValueError, match=r"per_pass|order"):
        call(model)
