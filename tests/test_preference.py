"""Chapter 18: log-probabilities of answers, losses against loops and closed forms, what training finds."""

import copy
import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptbook.config import GPTConfig
from gptbook.finetune import Packed
from gptbook.model import GPT
from gptbook.preference import (
    RewardModel,
    dpo_loss,
    group_advantages,
    grpo_loss,
    kl_estimate,
    lay_out,
    preference_loss,
    sequence_logprobs,
    token_logprobs,
    train_dpo,
    train_grpo,
    train_reward,
    write_answers,
)

V, STOP = 5, 4
PROMPTS = [[0, 1], [2], [3, 3, 1]]


def shaken(seed: int = 0, std: float = 0.3) -> GPT:
    """A small random model in float64, with weights large enough that every token is felt."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig.tiny(V, context_length=12, n_layer=1, d_model=16, n_head=2))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * std)
    return model.double().eval()


@pytest.fixture(scope="module")
def model() -> GPT:
    return shaken()


def every_answer(length: int = 1) -> list[list[int]]:
    """All answers of up to ``length`` tokens and the stop, and those that are cut."""
    free = range(V - 1)
    ended = [[*t, STOP] for n in range(length) for t in product(free, repeat=n)]
    return ended + [list(t) for t in product(free, repeat=length)]


def example(prompt: list[int], answer: list[int]) -> tuple[list[int], list[bool]]:
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


# ---- rows and log-probabilities ------------------------------------------------------------------


def test_rows_keep_their_order_and_are_filled_on_the_right() -> None:
    rows = lay_out([example([1], [2, 3]), example([0, 0], [1]), example([2], [4])], padding=9)
    assert rows.ids.tolist() == [[1, 2, 3], [0, 0, 1], [2, 4, 9]]
    assert rows.learned.tolist() == [[False, True, True], [False, False, True], [False, True, False]]
    assert rows.documents.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_rows_refuse_what_cannot_be_laid_out() -> None:
    with pytest.raises(ValueError, match="no examples"):
        lay_out([])
    with pytest.raises(ValueError, match="mark"):
        lay_out([([1, 2], [True])])


def test_logprobs_are_those_of_plain_logits(model: GPT) -> None:
    ids, mask = example([0, 1, 2], [3, 1, 4])
    log_p = model(torch.tensor([ids]))[0].log_softmax(-1)
    by_hand = [log_p[t, ids[t + 1]] for t in range(2, 5)]
    rows = lay_out([(ids, mask)])
    assert torch.allclose(token_logprobs(model, rows)[0], torch.stack([by_hand[0] * 0] * 2 + by_hand))
    assert torch.allclose(sequence_logprobs(model, rows)[0], torch.stack(by_hand).sum())


def test_padding_changes_nothing(model: GPT) -> None:
    """Whatever the padding token is, and whoever else is in the batch."""
    one = example([0, 1], [2, 4])
    alone = sequence_logprobs(model, lay_out([one]))
    for padding in range(V):
        both = sequence_logprobs(model, lay_out([one, example([3] * 4, [1, 2, 3, 4])], padding))
        assert torch.allclose(both[:1], alone, atol=1e-12)


def test_probabilities_of_all_answers_sum_to_one(model: GPT) -> None:
    rows = lay_out([example([0, 1], answer) for answer in every_answer(3)])
    assert abs(sequence_logprobs(model, rows).exp().sum().item() - 1) < 1e-10


def test_answers_come_from_the_policy(model: GPT) -> None:
    prompt = [2, 0]
    rows, answers = write_answers(model, [prompt], 1, [STOP], count=4000, seed=3)
    counts = torch.bincount(torch.tensor([a[0] for a in answers]), minlength=V).double()
    expected = model(torch.tensor([prompt]))[0, -1].softmax(-1) * 4000
    assert (
        ((counts - expected) ** 2 / expected).sum()
    ).item() < 18.5  # one in a thousand, 4 degrees of freedom
    assert len(rows) == 4000 and rows.learned.sum() == 4000


def test_answers_stand_by_their_prompts(model: GPT) -> None:
    rows, answers = write_answers(model, PROMPTS, 4, [STOP], count=3, seed=0)
    for i, answer in enumerate(answers):
        prompt = PROMPTS[i // 3]
        n = len(prompt) + len(answer)
        assert rows.ids[i, :n].tolist() == prompt + answer
        assert rows.learned[i].tolist() == [len(prompt) <= t < n for t in range(rows.ids.shape[1])]
        assert STOP not in answer[:-1] and (answer[-1] == STOP or len(answer) == 4)


def test_answers_need_prompts(model: GPT) -> None:
    with pytest.raises(ValueError, match="at least one"):
        write_answers(model, [], 4, [STOP])


# ---- losses --------------------------------------------------------------------------------------


def test_preference_loss() -> None:
    a, b = torch.tensor([0.3, -1.0, 5.0]), torch.tensor([0.1, 2.0, -5.0])
    by_hand = np.mean([math.log1p(math.exp(-(x - y))) for x, y in zip(a.tolist(), b.tolist())])
    assert abs(preference_loss(a, b).item() - by_hand) < 1e-6
    assert abs(preference_loss(a + 7, b + 7).item() - by_hand) < 1e-5  # only differences count
    assert torch.isfinite(preference_loss(torch.tensor([-1e4]), torch.tensor([1e4])))


def test_dpo_loss_and_gradient() -> None:
    g = torch.Generator().manual_seed(0)
    lw, ll, rw, rl = torch.randn(4, 6, generator=g, dtype=torch.float64)
    lw.requires_grad_(True)
    loss = dpo_loss(lw, ll, rw, rl, 0.3)
    delta = 0.3 * ((lw - rw) - (ll - rl))
    assert torch.allclose(loss, -torch.log(1 / (1 + torch.exp(-delta))).mean())
    (gradient,) = torch.autograd.grad(loss, lw)
    assert torch.allclose(gradient, -0.3 * torch.sigmoid(-delta) / 6)
    assert abs(dpo_loss(rw, rl, rw, rl, 0.3).item() - math.log(2)) < 1e-12


def test_dpo_s_optimum_is_the_tilted_reference() -> None:
    rng = np.random.default_rng(1)
    ref, r, beta = torch.tensor(rng.dirichlet(np.ones(4))), torch.tensor(rng.normal(size=4)), 0.7
    i, j = torch.triu_indices(4, 4, 1)
    chance = torch.sigmoid(r[i] - r[j])
    theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        log_pi = theta.log_softmax(0)
        each = [
            c * dpo_loss(log_pi[a], log_pi[b], ref.log()[a], ref.log()[b], beta)
            + (1 - c) * dpo_loss(log_pi[b], log_pi[a], ref.log()[b], ref.log()[a], beta)
            for a, b, c in zip(i, j, chance)
        ]
        value = torch.stack(each).mean()
        value.backward()
        return value

    optimizer.step(loss)
    star = ref * (r / beta).exp()
    assert (theta.detach().softmax(0) - star / star.sum()).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimates_are_unbiased(kind: str) -> None:
    rng = np.random.default_rng(0)
    p, q = (torch.tensor(rng.dirichlet(np.ones(7))) for _ in range(2))
    true = (p * (p / q).log()).sum()
    assert torch.allclose((p * kl_estimate(p.log(), q.log(), kind)).sum(), true)
    assert not torch.allclose((p * kl_estimate(p.log(), q.log(), "k2")).sum(), true, rtol=1e-2)
    assert (kl_estimate(p.log(), q.log(), "k3") >= 0).all()


def test_kl_estimates_as_losses() -> None:
    theta, other = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta.requires_grad_(True)
    log_p, log_q = theta.log_softmax(0), other.log_softmax(0)
    p = log_p.exp().detach()

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, theta, retain_graph=True)[0]

    forward = gradient((log_p.exp() * (log_p - log_q)).sum())
    backward = gradient((log_q.exp() * (log_q - log_p)).sum())
    by_loss = {k: gradient(p @ kl_estimate(log_p, log_q, k)) for k in ("k1", "k2", "k3")}
    assert by_loss["k1"].abs().max() < 1e-12
    assert torch.allclose(by_loss["k2"], forward) and torch.allclose(by_loss["k3"], backward)
    assert not torch.allclose(forward, backward, rtol=0.1)


def test_kl_estimate_knows_its_kinds() -> None:
    with pytest.raises(ValueError, match=r"k4.*k1, k2, k3"):
        kl_estimate(torch.zeros(2), torch.zeros(2), "k4")


def test_group_advantages() -> None:
    r = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0], [5.0, 1.0, 1.0, 1.0]])
    a = group_advantages(r)
    assert a[0].tolist() == [1.0, -1.0, -1.0, 1.0]
    assert (a[1] == 0).all()  # no 0 / 0
    assert torch.allclose(a.sum(1), torch.zeros(3), atol=1e-6)
    assert torch.allclose(a[2].std(correction=0), torch.tensor(1.0))
    assert torch.allclose(group_advantages(r, scale=False)[2], torch.tensor([3.0, -1.0, -1.0, -1.0]))
    assert torch.equal(group_advantages(r, baseline=False, scale=False), r)
    for bad, words in ((torch.ones(3), "prompts"), (torch.ones(3, 1), "at least two")):
        with pytest.raises(ValueError, match=words):
            group_advantages(bad)


def grpo_by_loops(new, old, advantages, learned, ref, beta, clip, mean) -> float:
    total = 0.0
    for i in range(len(new)):
        parts = []
        for t in range(new.shape[1]):
            if learned[i, t]:
                ratio, u = math.exp(new[i, t] - old[i, t]), ref[i, t] - new[i, t]
                kept = min(ratio * advantages[i], min(max(ratio, 1 - clip), 1 + clip) * advantages[i])
                parts.append(kept - beta * (math.exp(u) - 1 - u))
        total += sum(parts) / (len(parts) if mean else 1)
    return -total / len(new)


@pytest.mark.parametrize("mean", [False, True])
def test_grpo_loss_against_loops(mean: bool) -> None:
    g = torch.Generator().manual_seed(0)
    new, old, ref = (-torch.rand(4, 5, generator=g, dtype=torch.float64) for _ in range(3))
    learned = torch.arange(5) < torch.tensor([[2], [5], [1], [4]])
    a = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    ours = grpo_loss(new, old, a, learned, ref=ref, beta=0.3, length_mean=mean).item()
    assert abs(ours - grpo_by_loops(new, old, a, learned, ref, 0.3, 0.2, mean)) < 1e-12


def test_what_has_gone_far_enough_gets_no_gradient() -> None:
    old, learned = torch.zeros(4, 1), torch.ones(4, 1, dtype=torch.bool)
    new = torch.tensor([[1.3], [0.7], [1.3], [0.7]]).log().requires_grad_(True)
    grpo_loss(new, old, torch.tensor([1.0, 1.0, -1.0, -1.0]), learned).backward()
    assert (new.grad[:, 0] != 0).tolist() == [False, True, True, False]


def test_the_expected_grpo_gradient_is_the_policy_gradient() -> None:
    """Over all groups of two answers, weighted by their probabilities: (1 - 1/G) times the exact gradient."""
    model = shaken(1)
    answers = every_answer(2)
    rows = lay_out([example([0, 1], answer) for answer in answers])
    r = torch.tensor([answer.count(2) - 0.3 * len(answer) for answer in answers], dtype=torch.float64)
    parameter = model.head.weight
    log_pi = sequence_logprobs(model, rows)
    pi = log_pi.exp().detach()
    (exact,) = torch.autograd.grad((log_pi.exp() * r).sum(), parameter)
    i, j = (
        index.flatten() for index in torch.meshgrid(torch.arange(len(r)), torch.arange(len(r)), indexing="ij")
    )
    advantages = group_advantages(torch.stack([r[i], r[j]], 1), scale=False)  # (groups, 2)
    weight = torch.zeros(
        len(r), dtype=torch.float64
    )  # the sum of the advantages of each answer over all groups
    weight.index_add_(0, i, pi[i] * pi[j] * advantages[:, 0] / 2)
    weight.index_add_(0, j, pi[i] * pi[j] * advantages[:, 1] / 2)
    new = token_logprobs(model, rows)
    loss = grpo_loss(new, new.detach(), weight, rows.learned[:, 1:]) * len(r)
    (given,) = torch.autograd.grad(-loss, parameter)
    assert torch.allclose(given, exact / 2, atol=1e-10) and exact.norm() > 1e-3


# ---- training ------------------------------------------------------------------------------------


def floats(seed: int = 0) -> GPT:
    return shaken(seed, std=0.05).float()


def test_reward_model_learns_a_visible_difference() -> None:
    """Answers with the token 2 are better; new pairs are ordered rightly, and padding is not read."""
    g = torch.Generator().manual_seed(0)

    def answers(count: int, token: int) -> Packed:
        free = torch.randint(2, (count, 3), generator=g).tolist()
        return lay_out([example([3], [*a[: 1 + i % 3], token, STOP]) for i, a in enumerate(free)])

    model = RewardModel(floats())
    better, worse = answers(64, 2), answers(64, 3)
    assert (model(better) == 0).all()  # all are equal at first
    losses = train_reward(model, better, worse, 40, lr=3e-3, batch_size=16)
    assert abs(losses[0] - math.log(2)) < 1e-6 and losses[-1] < 0.2
    assert (model(answers(30, 2)) > model(answers(30, 3))).double().mean() > 0.95
    one = lay_out([example([3], [0, 2, STOP])])
    more = lay_out([example([3], [0, 2, STOP]), example([3], [1] * 7)], padding=1)
    assert torch.allclose(model(one), model(more)[:1], atol=1e-5)


def test_dpo_raises_what_is_preferred() -> None:
    reference = floats()
    policy = copy.deepcopy(reference)
    better, worse = (lay_out([example([0, 1], [token, STOP])] * 8) for token in (2, 3))
    lines = train_dpo(policy, reference, better, worse, 30, beta=0.5, batch_size=8)
    assert abs(lines[0]["loss"] - math.log(2)) < 1e-5 and lines[-1]["loss"] < 0.4
    assert lines[0]["better"] == pytest.approx(0, abs=1e-5) and lines[-1]["better"] > lines[-1]["worse"] + 1
    before, after = (sequence_logprobs(m, better) - sequence_logprobs(m, worse) for m in (reference, policy))
    assert (after > before + 1).all()


def test_dropout_is_off_in_policy_and_reference() -> None:
    """The first loss of DPO is ln 2, and GRPO's first divergence nothing, also for models that train."""
    torch.manual_seed(0)
    policy = GPT(GPTConfig.tiny(V, context_length=12, dropout=0.5))
    rows = [lay_out([example([0], [a, STOP]) for _ in range(4)]) for a in (1, 2)]
    (line,) = train_dpo(policy, copy.deepcopy(policy), *rows, 1, beta=1.0)
    assert line["loss"] == pytest.approx(math.log(2), abs=1e-6)
    policy.train()
    (line,) = train_grpo(
        policy, PROMPTS, lambda prompt, answer: 1.0, 1, max_new_tokens=2, stop_tokens=[STOP],
        reference=copy.deepcopy(policy),
    )  # fmt: skip
    assert abs(line["kl"]) < 1e-6


def test_answers_stay_within_the_context(model: GPT) -> None:
    with pytest.raises(ValueError, match="the context 12"):
        write_answers(model, PROMPTS, 10, [STOP])


def test_grpo_finds_the_rewarded_answer() -> None:
    policy = floats()
    reward = lambda prompt, answer: float(answer[0] == (prompt[-1] + 1) % 3)  # noqa: E731
    lines = train_grpo(
        policy, [[0], [1], [2]], reward, 60, max_new_tokens=1, stop_tokens=[STOP], prompts_per_step=6, lr=1e-2
    )
    assert np.mean([line["reward"] for line in lines[:3]]) < 0.5 < 0.9 < lines[-1]["reward"]
    assert lines[0]["step"] == 1 and lines[0]["length"] == 1 and lines[0]["kl"] == 0


@pytest.mark.parametrize("kl", ["reward", "k2"])
def test_grpo_with_a_penalty_finds_the_tilted_reference(kl: str) -> None:
    """One token, so that the optimum ref * exp(r / beta) / Z can be written down."""
    reference = floats(3)
    policy = copy.deepcopy(reference)
    beta = 0.5
    train_grpo(
        policy, [[0]], lambda prompt, answer: float(answer[0] == 1), 80, max_new_tokens=1, stop_tokens=[STOP],
        reference=reference, beta=beta, kl=kl, prompts_per_step=1, group=256, scale=False, lr=3e-3,
    )  # fmt: skip
    with torch.no_grad():
        ref, pi = (m(torch.tensor([[0]]))[0, -1].softmax(-1) for m in (reference, policy))
    star = ref * (F.one_hot(torch.tensor(1), V) / beta).exp()
    star = star / star.sum()
    assert (star - ref).abs().max() > 0.3 and (pi - star).abs().max() < 0.08


def test_grpo_repeats_itself() -> None:
    runs = []
    for seed in (0, 0, 1):
        policy = floats()
        train_grpo(
            policy,
            PROMPTS,
            lambda p, a: float(len(a)),
            2,
            max_new_tokens=4,
            stop_tokens=[STOP],
            seed=seed,
            updates=2,
        )
        runs.append(torch.cat([p.flatten() for p in policy.parameters()]))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_settings_that_cannot_be() -> None:
    model, rows = floats(), lay_out([example([0], [1])])
    common = {"max_new_tokens": 1, "stop_tokens": [STOP]}

    def zero(prompt: list[int], answer: list[int]) -> float:
        return 0.0

    with pytest.raises(ValueError, match="needs a reference"):
        train_grpo(model, [[0]], zero, 1, beta=0.1, **common)
    with pytest.raises(ValueError, match="no prompts"):
        train_grpo(model, [], zero, 1, **common)
    with pytest.raises(ValueError, match="k9"):
        train_grpo(model, [[0]], zero, 1, kl="k9", **common)
    with pytest.raises(ValueError, match="at least two"):
        train_grpo(model, [[0]], zero, 1, group=1, **common)
    with pytest.raises(ValueError, match="above 0"):
        train_dpo(model, None, rows, rows, 1, beta=0.0)
    with pytest.raises(ValueError, match="pair up"):
        train_dpo(model, None, rows, lay_out([example([0], [1])] * 2), 1, beta=0.1)
    with pytest.raises(ValueError, match="not a finite"):
        train_grpo(model, [[0]], lambda p, a: float("nan"), 1, **common)
