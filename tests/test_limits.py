"""Chapter 22: costs, skew, filters, selective answering, carries and chains, against other ways to count."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from gptbook import limits
from gptbook.config import GPTConfig
from gptbook.model import GPT, count_params, flops_per_token
from gptbook.tokenizer import CharTokenizer


def tiny(vocab_size: int, **dials) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig.tiny(vocab_size, context_length=24, d_model=16, n_head=2, **dials)).eval()


def by_seed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- cost ----------------------------------------------------------------------------------------

MACHINE = {"flops_per_second": 1e12, "bytes_per_second": 1e11}


def test_cost_of_a_token_by_hand() -> None:
    config = GPTConfig.tiny(40, n_kv_head=2)
    cost = limits.cost_per_token(config, 10, batch=3, hour_price=7.2, number_bytes=4, **MACHINE)
    cache = 2 * 2 * 2 * 16 * 10 * 3  # keys and values, layers, heads, width, tokens, texts
    assert cost.flops == 3 * flops_per_token(config, 10)
    assert cost.bytes_read == 4 * (count_params(config) + cache)
    assert cost.seconds == max(cost.flops / 1e12, cost.bytes_read / 1e11)
    assert cost.tokens_per_second == pytest.approx(3 / cost.seconds)
    assert cost.price == pytest.approx(1e6 / cost.tokens_per_second / 3600 * 7.2)


def test_what_bounds_the_speed_changes_with_the_batch() -> None:
    config = GPTConfig.llama()
    few, many = (limits.cost_per_token(config, 1, batch=b, **MACHINE) for b in (1, 100))
    assert (few.bound, many.bound) == ("memory", "arithmetic")  # equal at 2 * 1e12 / (2 * 1e11) = 10 texts
    assert many.tokens_per_second > few.tokens_per_second


@pytest.mark.parametrize(
    "change",
    [
        *({"length": 0}, {"batch": 0}, {"bytes_per_second": 0.0}, {"flops_per_second": -1.0}),
        *({"number_bytes": 0}, {"hour_price": -1.0}),
    ],
)
def test_impossible_machines_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        limits.cost_per_token(GPTConfig.tiny(), **({"length": 5} | MACHINE | change))


# ---- skew ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 3.0])
def test_sharpened_is_the_softmax_at_a_temperature(temperature: float) -> None:
    share = np.array([0.02, 0.3, 0.5, 0.9])
    logits = torch.tensor(np.log([share, 1 - share])) / temperature
    assert np.allclose(limits.sharpened(share, temperature), logits.softmax(0)[0].numpy(), atol=1e-12)


def test_greedy_knows_no_exception() -> None:
    assert limits.sharpened([0.0, 0.49, 0.5, 0.51, 1.0], 0).tolist() == [0, 0, 0.5, 1, 1]
    assert limits.sharpened([0.0, 1.0], 0.7).tolist() == [0, 1]
    for bad in ({"share": 1.1, "temperature": 1.0}, {"share": 0.5, "temperature": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            limits.sharpened(**bad)


def test_balanced_groups_count_the_same() -> None:
    groups = np.array(["a"] * 7 + ["b"] * 2 + ["c"])
    weights = limits.balance_weights(groups)
    sums = [weights[groups == name].sum() for name in "abc"]
    assert np.allclose(sums, 10 / 3) and weights.mean() == pytest.approx(1)
    with pytest.raises(ValueError, match="at least one"):
        limits.balance_weights([])


def test_effective_size() -> None:
    assert limits.effective_size(np.ones(9)) == pytest.approx(9)
    assert limits.effective_size([5, 0, 0]) == pytest.approx(1)
    weights = limits.balance_weights([0] * 70 + [1] * 30)
    assert limits.effective_size(weights) == pytest.approx(4 * 0.7 * 0.3 * 100)
    for bad in ([], [0.0, 0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="weights"):
            limits.effective_size(bad)


def test_skewed_stories_have_the_shares_that_were_set() -> None:
    stories = limits.skewed_stories(6000, seed=3)
    for role, share in limits.ROLE_SHARES.items():
        women = [woman for _, r, woman in stories if r == role]
        assert abs(np.mean(women) - share) < 5 * math.sqrt(share * (1 - share) / len(women))
    for story, role, woman in stories[:300]:
        words = story.split()
        assert ("she" in words) == woman and ("he" in words) == (not woman) and role in words
        told = set(words) & {*limits.WOMEN, *limits.MEN}
        assert not told or (told <= set(limits.WOMEN)) == woman
    named = np.mean([story[0].isupper() for story, *_ in stories])
    assert abs(named - 0.3) < 0.03
    assert limits.skewed_stories(5, seed=1) == limits.skewed_stories(9, seed=1)[:5]
    with pytest.raises(ValueError, match="shares"):
        limits.skewed_stories(5, named=1.5)


# ---- training and scoring rows -------------------------------------------------------------------


def test_text_rows_weigh_the_text_and_one_end() -> None:
    ids, weights = limits.text_rows([[1, 2], [3]], end=9, weights=[2.0, 0.5])
    assert ids.tolist() == [[9, 1, 2, 9], [9, 3, 9, 9]]
    assert weights.tolist() == [[2, 2, 2], [0.5, 0.5, 0]]
    with pytest.raises(ValueError, match="at least one text"):
        limits.text_rows([], end=0)


def test_fit_rows_learns_the_weighted_share() -> None:
    """The optimum of weighted likelihood: shares 3 to 1 with weights 1 to 3 become even."""
    ids, weights = torch.tensor([[0, 1]] * 3 + [[0, 2]]), torch.tensor([[1.0]] * 3 + [[3.0]])
    found = {}
    for name, w in (("plain", torch.ones(4, 1)), ("weighted", weights)):
        model = tiny(3)
        losses = limits.fit_rows(model, lambda g, w=w: (ids, w), 200)
        assert losses[-1] < losses[0] and not model.training
        found[name] = model(torch.tensor([[0]]))[0, 0].softmax(-1)[1].item()
    assert found["plain"] == pytest.approx(0.75, abs=0.03)
    assert found["weighted"] == pytest.approx(0.5, abs=0.03)


def test_fit_rows_reads_no_place_without_weight() -> None:
    a, b = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 1]])
    weights = torch.tensor([[1.0, 0.0]])
    ends = []
    for ids in (a, b):
        model = tiny(3)
        limits.fit_rows(model, lambda g, ids=ids: (ids, weights), 5)
        ends.append(model(torch.tensor([[0, 1]])))
    assert torch.equal(*ends)
    with pytest.raises(ValueError, match="steps"):
        limits.fit_rows(tiny(3), lambda g: (a, weights), -1)


def test_drawn_rows_keep_their_weights() -> None:
    rows = torch.arange(10)[:, None].expand(10, 2), torch.arange(10.0)[:, None]
    ids, weights = limits.drawn_from(rows, 50)(by_seed(0))
    assert (
        ids.shape == (50, 2)
        and torch.equal(ids[:, :1].float(), weights)
        and len(set(weights.flatten().tolist())) > 5
    )


def test_rows_right_is_greedy_decoding() -> None:
    from gptbook.sample import generate

    model = tiny(14)
    ids, weights = limits.addition_rows(60, (1, 1), by_seed(0))
    answers = generate(model, ids[:, :4].tolist(), 3, temperature=0)
    ids = ids.clone()
    for i in range(0, 60, 2):  # half of the rows: what the model would say, so that some are right
        n = int(weights[i].sum())
        ids[i, 4 : 4 + n] = torch.tensor(answers[i][4 : 4 + n])
    ends = (4 + weights.sum(1)).long().tolist()
    want = [answers[i][4 : ends[i]] == ids[i, 4 : ends[i]].tolist() for i in range(60)]
    assert limits.rows_right(model, (ids, weights)).tolist() == want and 0 < sum(want) < 60


# ---- unwanted text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "good", "caught", "alarms"), [(20, 80, 16, 2), (1, 999, 1, 20), (5, 5, 0, 0), (10, 90, 10, 9)]
)
def test_filter_outcome_by_counting(bad: int, good: int, caught: int, alarms: int) -> None:
    found = limits.filter_outcome(bad / (bad + good), caught / bad, alarms / good)
    left = bad - caught, good - alarms
    assert found.left == pytest.approx(left[0] / sum(left))
    assert found.kept == pytest.approx(sum(left) / (bad + good))
    if caught + alarms:
        assert found.precision == pytest.approx(caught / (caught + alarms))
    else:
        assert math.isnan(found.precision)


@pytest.mark.parametrize("bad", [(1.2, 0.5, 0.0), (0.5, -0.1, 0.0), (0.5, 0.5, 2.0), (0.5, 1.0, 1.0)])
def test_impossible_filters_are_refused(bad: tuple) -> None:
    with pytest.raises(ValueError):
        limits.filter_outcome(*bad)


# ---- false statements ----------------------------------------------------------------------------


def test_log_score_splits() -> None:
    rng = np.random.default_rng(0)
    q = rng.choice([0.0, 0.2, 0.5, 0.9, 1.0], size=500)
    y = np.where(q == 0, 0, np.where(q == 1, 1, rng.random(500) < 0.6)).astype(int)
    parts = limits.log_score_parts(q, y)
    inside = (q > 0) & (q < 1)
    by_hand = -np.where(y[inside] == 1, np.log(q[inside]), np.log(1 - q[inside])).sum() / 500
    assert parts.loss == pytest.approx(by_hand)
    assert parts.loss == pytest.approx(parts.calibration + parts.refinement)
    assert parts.calibration > 0.01 and parts.refinement > 0.01
    rates = {v: y[q == v].mean() for v in np.unique(q)}
    honest = limits.log_score_parts([rates[v] for v in q], y)
    assert honest.calibration == pytest.approx(0, abs=1e-12)
    assert math.isinf(limits.log_score_parts([1.0, 0.5], [0, 1]).loss)


@pytest.mark.parametrize(("q", "y"), [([], []), ([0.5], [0, 1]), ([1.5], [1]), ([0.5], [0.5])])
def test_bad_forecasts_are_refused(q: list, y: list) -> None:
    with pytest.raises(ValueError, match="forecasts"):
        limits.log_score_parts(q, y)


def test_threshold_of_the_costs() -> None:
    assert limits.abstain_threshold(1.0, 1.0) == 0
    assert limits.abstain_threshold(4.0, 1.0) == 0.75
    assert (
        limits.abstain_threshold(wrong=3.0, abstain=0.0, right=-1.0) == 0.75
    )  # a point, minus three, nothing
    assert limits.abstain_threshold(1.0, 2.0) == 0 and limits.abstain_threshold(1.0, -1.0) == 1
    p, (wrong, abstain, right) = 0.63, (2.0, 0.7, 0.1)
    t = limits.abstain_threshold(wrong, abstain, right)
    assert (p >= t) == (p * right + (1 - p) * wrong <= abstain)
    assert t * right + (1 - t) * wrong == pytest.approx(abstain)
    with pytest.raises(ValueError, match="must cost less"):
        limits.abstain_threshold(1.0, 0.5, 1.0)


def test_risk_coverage_by_counting() -> None:
    sure, right = [0.9, 0.2, 0.7, 0.7], [1, 0, 0, 1]
    curve = limits.risk_coverage(sure, right)
    assert curve.threshold.tolist() == [0.9, 0.7, 0.2]
    assert curve.coverage.tolist() == [0.25, 0.75, 1.0]
    assert np.allclose(curve.risk, [0, 1 / 3, 1 / 2])
    areas = []
    for order in itertools.permutations(range(4)):  # every order that the confidences allow
        if all(sure[a] >= sure[b] for a, b in itertools.pairwise(order)):
            errors = np.cumsum([1 - right[i] for i in order])
            areas.append((errors / np.arange(1, 5)).mean())
    assert curve.area == pytest.approx(np.mean(areas))
    with pytest.raises(ValueError, match="at least one"):
        limits.risk_coverage([], [])


# ---- sums ----------------------------------------------------------------------------------------


def chain_by_hand(a: str, b: str) -> int:
    """The longest carry chain of two equally long numbers, written as text: where each carry was made."""
    longest, made, column = 0, None, 0
    for x, y in zip(reversed(a), reversed(b)):
        total = int(x) + int(y)
        if total >= 10:
            made = column
        elif total < 9:
            made = None
        if made is not None:
            longest = max(longest, column - made + 1)
        column += 1
    return longest


def test_longest_carry() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(10**6, size=(2, 400))
    b[:50] = 10**6 - 1 - a[:50] + rng.integers(0, 3, size=50)  # many nines
    want = [chain_by_hand(f"{x:07d}", f"{y:07d}") for x, y in zip(a, b)]
    assert limits.longest_carry(a, b).tolist() == want and max(want) >= 4
    assert limits.longest_carry(999, 1) == 3 and limits.longest_carry(0, 0) == 0
    with pytest.raises(ValueError, match="not negative"):
        limits.longest_carry(-1, 5)


def test_carry_chain_probability_of_two_digits() -> None:
    lengths = limits.longest_carry(np.arange(100)[:, None], np.arange(100)[None, :])
    for k in (1, 2, 3):
        assert limits.carry_chain_probability(2, k) == Fraction(int((lengths >= k).sum()), 10_000)
    assert limits.carry_chain_probability(5, 6) == 0 and limits.carry_chain_probability(0, 1) == 0
    assert 0.3 < limits.carry_chain_probability(100, 3) < 0.4
    with pytest.raises(ValueError, match="at least"):
        limits.carry_chain_probability(3, 0)


@pytest.mark.parametrize("reverse", [False, True])
def test_addition_rows_are_right_sums(reverse: bool) -> None:
    letters = CharTokenizer("0123456789+=")
    assert letters.end_of_text == limits.SUM_END and letters.encode("+=") == [limits.PLUS, limits.EQUALS]
    ids, weights = limits.addition_rows(300, (1, 4), by_seed(1), reverse=reverse)
    assert ids.shape == (300, 16) and weights.shape == (300, 15)
    lengths = set()
    for row, w in zip(ids, weights):
        text = letters.decode(row.tolist())
        body, _, _ = text.partition("<|endoftext|>")
        left, total = body.split("=")
        a, b = left.split("+")
        turn = (lambda s: s[::-1]) if reverse else (lambda s: s)
        assert int(turn(a)) + int(turn(b)) == int(turn(total)) and len(a) == len(b)
        assert len(a) == 1 or "0" not in (turn(a)[0], turn(b)[0])
        lengths.add(len(a))
        learned = row[1:][w > 0].tolist()  # the answer and the end after it
        assert letters.decode(learned) == total + "<|endoftext|>" and set(w.tolist()) <= {0.0, 1.0}
    assert lengths == {1, 2, 3, 4}


@pytest.mark.parametrize("digits", [(0, 2), (3, 2), (1, 18)])
def test_impossible_lengths_are_refused(digits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="digits"):
        limits.addition_rows(4, digits, by_seed(0))


def test_seventeen_digits_are_exact() -> None:
    ids, _ = limits.addition_rows(20, (17, 17), by_seed(0))
    for row in ids:
        parts = split_at(row.tolist(), (limits.PLUS, limits.EQUALS, limits.SUM_END))
        a, b, total = ("".join(map(str, part)) for part in parts[:3])
        assert int(a) + int(b) == int(total) and len(a) == len(b) == 17


def split_at(row: list[int], marks: tuple[int, ...]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in row:
        if token in marks:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def test_accuracy_of_a_model_that_cannot_add() -> None:
    assert limits.addition_accuracy(tiny(14), 3, n=50) < 0.1


# ---- chains and choices --------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("depth", [1, 3, 6])
def test_chain_rows_ask_what_follows(steps: bool, depth: int) -> None:
    ids, weights = limits.chain_rows(80, (depth, depth), by_seed(depth), steps=steps)
    assert ids.shape == (80, 12 + (depth if steps else 1)) and weights.shape[1] == ids.shape[1] - 1
    for row, w in zip(ids.tolist(), weights):
        facts = dict(divmod(token - limits.FACT, 12) for token in row[:8])
        assert len(facts) == 8 and row[8] == limits.ASK and row[10] == limits.ANSWER
        walk = [row[9]]
        while walk[-1] in facts:
            walk.append(facts[walk[-1]])
        assert len(walk) == depth + 1
        answer = walk[1:] if steps else walk[-1:]
        learned = [token for token, weight in zip(row[1:], w) if weight > 0]
        assert learned == [*answer, limits.CHAIN_END]


def test_the_number_of_facts_and_ends_tells_nothing() -> None:
    """Names that stand only on the right of facts: the answer is one of several."""
    ids, _ = limits.chain_rows(200, (3, 3), by_seed(0), steps=False)
    pairs = [[divmod(token - limits.FACT, 12) for token in row[:8]] for row in ids.tolist()]
    ends = [len({b for _, b in facts} - {a for a, _ in facts}) for facts in pairs]
    assert np.mean(ends) > 2.5


@pytest.mark.parametrize("depths", [(0, 2), (1, 7), (3, 2)])
def test_impossible_depths_are_refused(depths: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="depths"):
        limits.chain_rows(4, depths, by_seed(0), steps=True)


def test_choose_takes_the_most_probable_and_says_the_price() -> None:
    model = tiny(4)
    texts = torch.tensor([[0, *text] for text in itertools.product(range(4), repeat=2)])
    with torch.no_grad():
        p = model(texts[:, :-1]).log_softmax(-1).gather(-1, texts[:, 1:, None])[..., 0].sum(1).exp()
    options = [(texts[i : i + 1], torch.ones(1, 2)) for i in (3, 7, 12)]
    which, price = limits.choose(model, options)
    assert (3, 7, 12)[which.item()] == max((3, 7, 12), key=lambda i: p[i])
    assert price.item() == pytest.approx(-math.log(p[[3, 7, 12]].sum()), abs=1e-5)
    every = [(texts[i : i + 1], torch.ones(1, 2)) for i in range(16)]
    assert limits.choose(model, every)[1].item() == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="two options"):
        limits.choose(model, options[:1])
