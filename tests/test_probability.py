"""Chapter 1: distributions, and the n-gram model against a slow reference written on its own."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptbook.probability import (
    NGram,
    best_ngram,
    bits_per_byte,
    cross_entropy,
    draw,
    entropy,
    kl_divergence,
    perplexity,
)


def reference(documents, order, vocab_size):
    """Witten-Bell by dictionaries: prob(context tuple, token) -> float."""
    table = defaultdict(Counter)
    for doc in documents:
        for i, w in enumerate(doc):
            for k in range(order):
                if k <= i:
                    table[tuple(doc[i - k : i])][w] += 1

    def prob(context, w):
        context = tuple(context)[-(order - 1) :] if order > 1 else ()
        p = 1.0 / vocab_size
        for k in range(len(context) + 1):
            c = table.get(context[len(context) - k :])
            if c:
                p = (c[w] + len(c) * p) / (sum(c.values()) + len(c))
        return p

    return prob


def random_documents(seed, vocab_size, n=6):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(vocab_size, 0.4))
    return [rng.choice(vocab_size, size=rng.integers(1, 60), p=p) for _ in range(n)]


# ---- distributions -------------------------------------------------------------------------------


def normalised(weights):
    w = np.asarray(weights, float)
    return w / w.sum()


weight = st.one_of(st.just(0.0), st.floats(1e-3, 1.0))
weights = st.lists(weight, min_size=5, max_size=5).filter(lambda w: sum(w) > 0)


@given(weights, weights)
@settings(deadline=None)
def test_kl_is_not_negative_and_completes_the_budget(a, b):
    p, q = normalised(a), normalised(b)
    kl = kl_divergence(p, q)
    assert kl >= -1e-12
    assert kl_divergence(p, p) == 0
    assert 0 <= entropy(p) + 1e-12 and entropy(p) <= np.log(5) + 1e-12
    if np.any((p > 0) & (q == 0)):
        assert kl == np.inf and cross_entropy(p, q) == np.inf
    else:
        assert cross_entropy(p, q) == pytest.approx(entropy(p) + kl, abs=1e-12)


def test_entropy_values_and_shapes():
    assert entropy([0.5, 0.5]) == pytest.approx(np.log(2))
    assert entropy([1.0, 0.0]) == 0
    assert cross_entropy([0.5, 0.5], [0.9, 0.1]) == pytest.approx(-0.5 * np.log(0.09))
    p = np.random.default_rng(0).dirichlet(np.ones(7), size=(2, 3))
    assert entropy(p).shape == (2, 3)
    assert kl_divergence(p, np.full(7, 1 / 7)) == pytest.approx(np.log(7) - entropy(p))


def test_units():
    assert perplexity(np.log(12)) == pytest.approx(12)
    assert bits_per_byte(10 * np.log(256), 10) == pytest.approx(8)


@pytest.mark.parametrize("bad", [[0.5, 0.6], [1.5, -0.5], [np.nan, 1.0], 1.0])
def test_not_a_distribution(bad):
    with pytest.raises(ValueError):
        entropy(bad)
    with pytest.raises(ValueError):
        kl_divergence([0.5, 0.5], bad)


def test_draw_never_takes_what_is_impossible():
    rng = np.random.default_rng(0)
    p = np.array([0.0, 0.3, 0.0, 0.7, 0.0])
    for temperature in (0.0, 1e-6, 0.5, 1.0, 3.0):
        assert {draw(p, rng, temperature) for _ in range(300)} <= {1, 3}
    assert draw(p, rng, 0.0) == draw(p, rng, 1e-6) == 3


# ---- the n-gram model ----------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 6])
@pytest.mark.parametrize("vocab_size", [3, 11, 70_000])
def test_logprobs_against_dictionaries(order, vocab_size):
    small = min(vocab_size, 11)
    shift = vocab_size - small  # tokens at the upper end: the packed keys must not collide
    train = [d + shift for d in random_documents(1, small)]
    test = [d + shift for d in random_documents(2, small)]
    model = NGram(order, vocab_size).fit(train)
    for k in range(1, order + 1):
        prob = reference([d.tolist() for d in train], k, vocab_size)
        expected = [np.log(prob(d[:i].tolist(), int(w))) for d in test for i, w in enumerate(d)]
        np.testing.assert_allclose(model.logprobs(test, order=k), expected, rtol=0, atol=1e-12)
    assert model.nats(test) == pytest.approx(-sum(expected), abs=1e-9)
    by_order = model.nats_by_order(test)
    assert list(by_order) == list(range(1, order + 1)) and by_order[order] == pytest.approx(model.nats(test))


def test_next_probs_sum_to_one_and_agree_with_logprobs():
    model = NGram(4, 9).fit(random_documents(3, 9))
    rng = np.random.default_rng(4)
    for n in [0, 1, 2, 3, 4, 9, 30]:
        context = rng.integers(0, 9, n)
        for k in range(1, 5):
            p = model.next_probs(context, order=k)
            assert p.shape == (9,) and p.min() > 0 and p.sum() == pytest.approx(1, abs=1e-12)
            scored = [model.logprobs(np.append(context, w), order=k)[-1] for w in range(9)]
            np.testing.assert_allclose(np.log(p), scored, rtol=0, atol=1e-12)


def test_unseen_context_uses_the_shorter_one():
    model = NGram(3, 4).fit([0, 1, 0, 1, 2])
    np.testing.assert_array_equal(model.next_probs([3, 3]), model.next_probs([], order=1))
    np.testing.assert_array_equal(model.next_probs([3, 0]), model.next_probs([0], order=2))
    np.testing.assert_array_equal(model.next_probs([1, 2]), model.next_probs([], order=1))
    # (1, 2) was seen, but only at the end
    assert model.seen([0, 1, 2, 3, 3]).tolist() == [False, False, True, False, False]
    assert model.seen([0, 1, 2, 3, 3], order=2).tolist() == [False, True, True, False, False]


def test_order_one_is_smoothed_counting():
    model = NGram(1, 5).fit([0, 0, 0, 1])
    expected = (np.array([3, 1, 0, 0, 0]) + 2 / 5) / 6
    np.testing.assert_allclose(model.next_probs(), expected, rtol=1e-15)
    np.testing.assert_allclose(model.next_probs([4, 3]), expected, rtol=1e-15)
    np.testing.assert_allclose(model.logprobs([2, 0]), np.log(expected[[2, 0]]), rtol=1e-15)


def test_contexts_stay_inside_documents():
    apart, together = NGram(2, 3).fit([[0, 1], [2, 0]]), NGram(2, 3).fit([0, 1, 2, 0])
    assert together.next_probs([1])[2] > apart.next_probs([1])[2]
    np.testing.assert_array_equal(apart.next_probs([1]), apart.next_probs([], order=1))  # 1 was always last
    score = together.logprobs([[0, 1], [2]])
    np.testing.assert_array_equal(score, np.concatenate([together.logprobs([0, 1]), together.logprobs([2])]))
    assert score[2] != together.logprobs([0, 1, 2])[2]
    # the order of documents, and empty ones, do not matter
    shuffled = NGram(2, 3).fit([[2, 0], [], [0, 1]])
    np.testing.assert_array_equal(shuffled.next_probs([0]), apart.next_probs([0]))


def test_forms_of_input_are_equal():
    text = b"to be or not to be"
    array = np.frombuffer(text, np.uint8)
    forms = [text, bytearray(text), list(text), tuple(text), array, [text], [list(text)]]
    scores = [NGram(3, 256).fit(f).logprobs(f) for f in forms]
    for s in scores[1:]:
        np.testing.assert_array_equal(s, scores[0])
    rows = np.arange(6).reshape(2, 3)
    by_rows, by_list = NGram(2, 6).fit(rows), NGram(2, 6).fit(list(rows))
    np.testing.assert_array_equal(by_rows.logprobs(rows), by_list.logprobs(list(rows)))
    assert by_rows.logprobs([]).shape == (0,) and by_rows.nats([]) == 0
    model = NGram(2, 4).fit([0, 1])
    assert model.fit([2, 3]) is model
    fresh = NGram(2, 4).fit([2, 3])  # fitted again, not added
    np.testing.assert_array_equal(model.next_probs([0]), fresh.next_probs([0]))


def test_order_longer_than_every_document():
    model = NGram(9, 4).fit([[0, 1], [2]])
    prob = reference([[0, 1], [2]], 9, 4)
    assert model.logprobs([0, 1, 3])[2] == pytest.approx(np.log(prob([0, 1], 3)), abs=1e-12)


def test_sampling_is_seeded_and_follows_next_probs():
    model = NGram(3, 6).fit(random_documents(5, 6))
    a, b = model.sample(50, np.random.default_rng(7)), model.sample(50, 7)
    np.testing.assert_array_equal(a, b)
    assert a.dtype == np.int64 and not np.array_equal(a, model.sample(50, 8))
    n, rng = 6000, np.random.default_rng(9)
    for temperature in (1.0, 0.5):
        p = model.next_probs([1, 0]) ** (1 / temperature)
        p /= p.sum()
        draws = [model.sample(1, rng, context=[1, 0], temperature=temperature)[0] for _ in range(n)]
        found = np.bincount(draws, minlength=6)
        assert ((found - n * p) ** 2 / (n * p)).sum() < 25.7  # chi-square, 5 degrees of freedom: 1 in 10,000
    greedy = model.sample(20, rng, temperature=0.0)
    assert all(w == np.argmax(model.next_probs(greedy[:i])) for i, w in enumerate(greedy))


def test_a_sampled_text_has_the_entropy_that_it_should():
    """Second and later tokens depend on those drawn before: pairs must follow P(a) P(b | a)."""
    model, rng, n = NGram(2, 3).fit([0, 1, 0, 2, 0, 1, 1]), np.random.default_rng(1), 6000
    pairs = np.array([model.sample(2, rng) for _ in range(n)])
    joint = np.array([model.next_probs()[a] * model.next_probs([a]) for a in range(3)]).ravel()
    found = np.bincount(pairs @ [3, 1], minlength=9)
    assert ((found - n * joint) ** 2 / (n * joint)).sum() < 31.8  # 8 degrees of freedom, 1 in 10,000


def test_best_ngram():
    rng, chain = np.random.default_rng(0), [0]
    rows = [[0.7, 0.1, 0.1, 0.1], [0, 0, 0.5, 0.5], [0.9, 0.1, 0, 0], [0.2, 0.6, 0.1, 0.1]]
    for _ in range(4000):  # a first-order chain: order 2 must win
        chain.append(int(rng.choice(4, p=rows[chain[-1]])))
    order, nats = best_ngram(chain[:3000], chain[3000:], 4)
    assert order == 2
    assert nats == pytest.approx(NGram(2, 4).fit(chain[:3000]).nats(chain[3000:]) / len(chain[3000:]))
    assert best_ngram(chain[:3000], chain[3000:], 4, orders=[3, 5])[0] == 3
    assert best_ngram([0, 0], [1], 2, orders=[1])[0] == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NGram(0, 5), "order must be an integer of at least 1, got 0"),
        (lambda: NGram(2.0, 5), "order"),
        (lambda: NGram(2, 0), "vocab_size"),
        (lambda: NGram(2, 5).logprobs([1]), "fit"),
        (lambda: NGram(2, 5).fit([]), "no tokens"),
        (lambda: NGram(2, 5).fit([[], []]), "no tokens"),
        (lambda: NGram(2, 5).fit([1, 5]), "token 5 is outside 0 .. 4"),
        (lambda: NGram(2, 5).fit([-1, 0]), "token -1"),
        (lambda: NGram(2, 5).fit([0.5, 1.0]), "integers"),
        (lambda: NGram(2, 256).fit("text"), "encode"),
        (lambda: NGram(2, 256).fit(["text", "more"]), "encode"),
        (lambda: NGram(2, 5).fit([1]).logprobs([5]), "token 5"),
        (lambda: NGram(2, 5).fit([1]).logprobs([1], order=3), "order must be from 1 to 2, got 3"),
        (lambda: NGram(2, 5).fit([1]).logprobs([1], order=0), "order"),
        (lambda: NGram(2, 5).fit([1]).next_probs([[1], [2]]), "one row"),
        (lambda: NGram(2, 5).fit([1]).sample(-1, 0), "n must"),
        (lambda: NGram(2, 5).fit([1]).sample(1, 0, temperature=-1), "temperature"),
        (lambda: NGram(2, 5).fit([1]).sample(1, 0, temperature=float("nan")), "temperature"),
        (lambda: NGram(2, 2**60).fit(np.arange(10)), "overflow"),
        (lambda: best_ngram([1], [1], 5, orders=[]), "orders"),
        (lambda: best_ngram([1], [1], 5, orders=[0, 2]), "order"),
        (lambda: best_ngram([1], [], 5), "held-out"),
        (lambda: bits_per_byte(1.0, 0), "n_bytes"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
