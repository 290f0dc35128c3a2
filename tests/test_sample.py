"""Sampling: what each setting promises, on models small enough to enumerate. Others: test_parity.py."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import regex
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gptbook.sample as sampling
from gptbook.attention import KVCache
from gptbook.config import GPTConfig
from gptbook.model import GPT
from gptbook.pretrained import Int8Linear, quantize_int8
from gptbook.sample import (
    Choices,
    DecodingModel,
    Pattern,
    Row,
    Step,
    _Matrix,
    beam_search,
    draw_tokens,
    generate,
    generate_stream,
    generate_text,
    penalize_counts,
    random_rotation,
    speculative,
    stream_text,
)
from gptbook.tokenizer import BPETokenizer, CharTokenizer

TEXT = "the cat sat on the mat, and the hat was 12 or 345 feet away: 猫坐在垫子上。é" * 3
END = "<|endoftext|>"
TOKENIZER = BPETokenizer.train(TEXT, vocab_size=290, special_tokens=(END,))


def tiny(vocab_size: int = TOKENIZER.vocab_size, context: int = 64, seed: int = 0, **dials) -> GPT:
    """A model in float64 with large random weights: texts that do not repeat themselves, no ties."""
    sizes = {"n_layer": 2, "n_head": 2, "d_model": 16, "vocab_size": vocab_size, "context_length": context}
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**sizes | dials)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.5)
    return model


@torch.no_grad()
def log_probs(model: GPT, text: list[int], start: int) -> Tensor:
    """Log-probabilities of the tokens from ``start`` on, by one pass over the whole text."""
    logits = model(torch.tensor([text]))[0, :-1].log_softmax(-1)
    return logits[torch.arange(len(text) - 1), text[1:]][start - 1 :]


def chi_square(counts: Counter, expected: dict) -> float:
    """The statistic, in standard deviations from its mean; cells of fewer than five are put together."""
    assert counts.keys() <= expected.keys()
    n, small, cells = sum(counts.values()), [0.0, 0.0], []
    for cell, p in expected.items():
        if n * p < 5:
            small = [small[0] + counts[cell], small[1] + n * p]
        else:
            cells.append((counts[cell], n * p))
    cells += [tuple(small)] if small[1] else []
    df = len(cells) - 1
    return (sum((o - e) ** 2 / e for o, e in cells) - df) / math.sqrt(2 * df)


SETTINGS = [
    {"temperature": 0},
    {"temperature": 1.3, "top_k": 40},
    {"top_p": 0.9, "min_p": 0.01},
    {"repetition_penalty": 1.3, "presence_penalty": 0.2, "frequency_penalty": 0.1, "logit_bias": {3: 2.0}},
]


# ---- one token -----------------------------------------------------------------------------------


def test_draws_have_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, float("-inf"), 2.0, 0.5]])
    generator = torch.Generator().manual_seed(0)
    counts = Counter(draw_tokens(logits, [generator]).item() for _ in range(20_000))
    p = logits[0].double().softmax(-1)
    assert abs(chi_square(counts, {i: v for i, v in enumerate(p.tolist()) if v})) < 4
    assert 3 not in counts


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_no_token_left_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="no token is left"):
        draw_tokens(torch.full((1, 4), bad), [torch.Generator()])
    for temperature in (0, 1):
        with pytest.raises(ValueError, match="no token is left"):
            generate(
                tiny(), [[1]], 2, temperature=temperature,
                processors=[lambda logits, rows: torch.full_like(logits, bad)],
            )  # fmt: skip


@pytest.mark.parametrize("token", [-1, TOKENIZER.vocab_size])
def test_tokens_that_the_model_does_not_know_are_refused(token: int) -> None:
    with pytest.raises(ValueError, match=f"at least 0 and below {TOKENIZER.vocab_size}"):
        generate(tiny(), [[1, token]], 2)


def test_counted_penalties_by_hand() -> None:
    row = Row([0, 0, 0, 1], prompt=3)  # token 0 was only in the prompt, then 1 was written
    row += [2, 2]
    changed = penalize_counts(torch.zeros(1, 5), [row], presence=0.5, frequency=0.25)
    assert changed.tolist() == [[0, -0.75, -1.0, 0, 0]]
    plain = penalize_counts(torch.zeros(1, 5), [list(row)], presence=0.5, frequency=0.25)
    assert plain.tolist() == [[-1.25, -0.75, -1.0, 0, 0]]


# ---- whole texts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal", "none"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_text_does_not_depend_on_its_batch(position: str, settings: dict) -> None:
    """Prompts of several lengths together and alone, twice as far as the context reaches."""
    model = tiny(context=16, position=position)
    prompts = [[5], [7, 8, 9, 10, 11, 12, 13], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]]
    together = generate(model, prompts, 30, seed=3, **settings)
    assert together == generate(model, prompts, 30, seed=3, **settings), "the same seed, the same text"
    for i, prompt in enumerate(prompts):
        assert generate(model, [prompt], 30, seed=3 + i, **settings)[0] == together[i]
    if settings.get("temperature") != 0:
        assert together != generate(model, prompts, 30, seed=4, **settings)


@pytest.mark.parametrize("position", ["rope", "learned", "none"])
def test_log_probs_are_those_of_one_pass(position: str) -> None:
    model = tiny(position=position)
    prompts = [[5, 6], [7, 8, 9]]
    texts, values = generate(
        model, prompts, 20, temperature=0.7, top_k=5, repetition_penalty=1.2, return_log_probs=True
    )
    for prompt, text, value in zip(prompts, texts, values):
        assert len(value) == 20
        torch.testing.assert_close(
            torch.tensor(value), log_probs(model, text, len(prompt)), atol=1e-5, rtol=0, check_dtype=False
        )


def test_tensor_in_tensor_out() -> None:
    model, ids = tiny(), torch.tensor([[1, 2], [3, 4]])
    out = generate(model, ids, 5)
    assert out.shape == (2, 7) and torch.equal(out[:, :2], ids)
    assert generate(model, ids[0], 5).tolist() == out[0].tolist()
    assert generate(model, ids, 0).tolist() == ids.tolist()


def test_stop_tokens_end_a_row_and_are_kept() -> None:
    model = tiny(vocab_size=5)
    rows = generate(model, [[0], [1], [2]], 50, stop_tokens=[3])
    assert all(3 not in row[:-1] for row in rows) and any(row[-1] == 3 and len(row) < 51 for row in rows)
    free = generate(model, [[0], [1], [2]], 50)
    assert all(full[: len(row)] == row for row, full in zip(rows, free)), "only the end differs"


def test_processors_come_first_in_their_order() -> None:
    calls = []

    def note(name: str) -> Callable:
        def processor(logits: Tensor, rows: list[list[int]]) -> Tensor:
            calls.append((name, [list(row) for row in rows]))
            return logits + 1.0

        return processor

    model = tiny()
    made = list(generate_stream(model, [[1], [2, 3]], 2, temperature=0, processors=[note("a"), note("b")]))
    assert [name for name, _ in calls] == ["a", "b", "a", "b"]
    assert calls[0][1] == [[1], [2, 3]] and calls[2][1] == [[1, made[0].tokens[0]], [2, 3, made[0].tokens[1]]]
    with torch.no_grad():
        torch.testing.assert_close(
            made[0].logits[0].double(), model(torch.tensor([[1]]))[0, -1], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("settings", "saying"),
    [
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.1}, "top_p = 1.1"),
        ({"min_p": -1}, "min_p = -1"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0"),
        ({"logit_bias": {5000: 1.0}}, "outside 0"),
        ({"max_new_tokens": -1}, "max_new_tokens = -1"),
        ({"sinks": -1}, "sinks = -1"),
    ],
)
def test_settings_out_of_range(settings: dict, saying: str) -> None:
    with pytest.raises(ValueError, match=regex.escape(saying)):
        generate(tiny(), [[1]], **settings)


def test_prompts_that_cannot_be() -> None:
    for rows in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one token"):
            generate(tiny(), rows)
    with pytest.raises(ValueError, match="context of 16"):
        generate(tiny(context=16, position="learned"), [[1] * 17])


# ---- past the context ----------------------------------------------------------------------------


def test_sliding_equals_recomputing_with_one_layer_only() -> None:
    """With one layer a key does not depend on what was before it; with two it does."""
    for n_layer, same in ((1, True), (2, False)):
        model = tiny(context=8, n_layer=n_layer)
        made = list(generate_stream(model, [[1, 2, 3]], 40, temperature=0, sinks=0))
        text = [1, 2, 3, *(s.tokens[0] for s in made)]
        with torch.no_grad():
            again = [model(torch.tensor([text[max(0, n - 8) : n]]))[0, -1] for n in range(3, 43)]
        gap = max((a - s.logits[0]).abs().max().item() for a, s in zip(again, made))
        assert (gap < 1e-4) == same, gap


@pytest.mark.parametrize("sinks", [1, 2, 4])
def test_with_one_layer_the_first_tokens_stand_before_the_window(sinks: int) -> None:
    """As if the text were its first tokens and then, without a gap, its last; also in a batch."""
    prompts = [[1, 2, 3, 4, 5], [6, 5], [2, 4, 6, 1, 3, 5, 7, 2]]
    for n_layer, same in ((1, True), (2, False)):
        model = tiny(context=8, n_layer=n_layer)
        made = list(generate_stream(model, prompts, 40, temperature=0, sinks=sinks))
        gaps = []
        for i, prompt in enumerate(prompts):
            text = [*prompt, *(s.tokens[i] for s in made)]
            for n, step in enumerate(made, start=len(prompt)):
                seen = text[:n] if n <= 8 else text[:sinks] + text[n - (8 - sinks) : n]
                with torch.no_grad():
                    gaps.append((model(torch.tensor([seen]))[0, -1] - step.logits[i]).abs().max().item())
        assert (max(gaps) < 1e-4) == same, max(gaps)


def test_of_a_long_prompt_the_last_tokens_are_read() -> None:
    model, text = tiny(context=8), [1, 2, 3, 4, 5, 6, 7, 1, 3, 2, 4]
    assert (
        generate(model, [text], 5, temperature=0)[0][11:]
        == generate(model, [text[-8:]], 5, temperature=0)[0][8:]
    )


def test_memory_of_a_long_text_is_bounded() -> None:
    model = tiny(context=8)
    reader = sampling._Reader(model, [[1, 2, 3]], 1000)
    storage = reader.whole[0][0]
    assert storage.shape[2] == 16, "twice the context, however long the text becomes"
    for n in range(50):
        reader.read(torch.tensor([n % 7]))
        assert reader.cache[0].length <= 8
        assert reader.cache[0].k.untyped_storage().data_ptr() == storage.untyped_storage().data_ptr()


# ---- texts, stops, streams -----------------------------------------------------------------------


def steps(tokens: list[int]) -> Iterator[Step]:
    """As from a model that writes just these."""
    return (Step([t], [False], torch.zeros(1, 1)) for t in tokens)


@given(
    st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=30),
    st.lists(st.text(min_size=1, max_size=3), max_size=3),
)
def test_a_stream_joined_is_the_text(tokens: list[int], stop: list[str]) -> None:
    tokens = [t for t in tokens if t != TOKENIZER.end_of_text]
    ends = [s.encode() for s in stop]
    whole = TOKENIZER.decode_bytes(tokens)
    cut = min((whole.find(end) for end in ends if end in whole), default=None)
    pieces = list(sampling._pieces(steps(tokens), TOKENIZER, ends))
    assert all(pieces) and "".join(pieces) == whole[:cut].decode(errors="replace")


def test_a_stream_holds_back_no_more_than_it_must() -> None:
    ids = TOKENIZER.encode("the cat 猫 sat")
    for i in range(len(ids)):
        written = "".join(sampling._pieces(steps(ids[: i + 1]), TOKENIZER, [b"zzz"]))
        assert written == TOKENIZER.decode_bytes(ids[: i + 1]).decode(errors="replace")
    ids = TOKENIZER.encode("the the")
    first = next(sampling._pieces(steps(ids), TOKENIZER, [b"x"]))
    assert first == TOKENIZER.decode(ids[:1]), "certain at once"


def test_stop_texts_between_and_inside_tokens() -> None:
    model, letters = tiny(), {id: 3.0 for id in TOKENIZER.encode("the cat sat on the mat 猫坐")}
    free = generate_text(model, TOKENIZER, "the", 60, seed=1, logit_bias=letters)[3:]
    stops = {free[i : i + n] for n in (1, 2, 3) for i in range(40)}
    stops = {stop for stop in stops if stop and "�" not in stop}  # part of a character, shown as one
    assert max(map(len, stops)) == 3
    for stop in stops:
        stopped = generate_text(model, TOKENIZER, "the", 60, seed=1, logit_bias=letters, stop=[stop])
        assert stopped == "the" + free[: free.find(stop)]
        assert (
            "".join(stream_text(model, TOKENIZER, "the", 60, seed=1, logit_bias=letters, stop=[stop]))
            == stopped[3:]
        )
    _, settings = sampling._text_settings(TOKENIZER, ["zqz"], {})
    z, q = TOKENIZER.encode("z"), TOKENIZER.encode("q")
    ended = [settings["stop"](0, row) for row in (z, z + q, z + q + z, q + z)]
    assert ended == [False, False, True, False], "a row ends with the token that completes a stop text"
    with pytest.raises(ValueError, match="list of texts"):
        generate_text(model, TOKENIZER, "the", stop="at")
    with pytest.raises(ValueError, match="empty stop text"):
        generate_text(model, TOKENIZER, "the", stop=[""])


# ---- constraints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts", [["yes", "no"], ["the cat", "the cat sat", "then"], ["猫", "坐着", "é"], [""], ["", "a"]]
)
def test_choices_write_one_of_the_texts(texts: list[str]) -> None:
    model, found = tiny(context=128), set()
    for seed in range(12):
        written = generate_text(
            model, TOKENIZER, "on", 40, seed=seed, temperature=3.0, processors=[Choices(TOKENIZER, texts)]
        )
        found.add(written[2:])
    assert found <= set(texts) and (len(found) > 1 or len(texts) == 1)


@pytest.mark.parametrize(
    "pattern", [r"\d{1,3} (cats?|mats)", r"[ab]{2,4}", "猫{1,2}。?", r"(the|on) [^x]{1,3}!"]
)
def test_patterns_write_a_match(pattern: str) -> None:
    model, found = tiny(context=128), set()
    for seed in range(8):
        written = generate_text(
            model, TOKENIZER, "on", 60, seed=seed, temperature=3.0, processors=[Pattern(TOKENIZER, pattern)]
        )[2:]
        assert regex.fullmatch(pattern, written), written
        found.add(written)
    assert len(found) > 1


@pytest.mark.parametrize("pattern", [r"\d{1,3} (cats?|mats)", "(猫|the) ?[a-z]+", r"é|[^a-y]{2}"])
def test_allowed_tokens_by_brute_force(pattern: str) -> None:
    """Of the tokens that end with a whole character, just those after which the text can become a match."""
    constraint = Pattern(TOKENIZER, pattern)
    for done in ("", "1", "12 ", "12 cat", "the", "猫 c", "é"):
        if regex.fullmatch(pattern, done, partial=True) is None:
            continue
        allowed = set(constraint.allowed(done.encode()))
        for id in range(TOKENIZER.vocab_size):
            if id == TOKENIZER.end_of_text:
                expected = regex.fullmatch(pattern, done) is not None
            else:
                try:
                    text = done + TOKENIZER.token_bytes(id).decode()
                except UnicodeDecodeError:
                    continue
                expected = regex.fullmatch(pattern, text, partial=True) is not None
            assert (id in allowed) == expected, (done, id)


def test_constraints_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="cannot be used"):
        Pattern(TOKENIZER, "(")
    with pytest.raises(ValueError, match="at least one text"):
        Choices(TOKENIZER, [])
    with pytest.raises(ValueError, match="list of"):
        Choices(TOKENIZER, "yes")


def test_a_road_that_tokens_cannot_finish_is_not_begun() -> None:
    letters = CharTokenizer.train("abc")
    choices = Choices(letters, ["ax", "b", "ac"])
    assert [letters.decode([id]) for id in choices.allowed(b"")] == ["a", "b"]
    assert [letters.decode([id]) for id in Choices(letters, ["ax", "b"]).allowed(b"")] == ["b"]
    with pytest.raises(ValueError, match="no token of this vocabulary"):
        Choices(letters, ["ax"])


def test_a_constraint_divides_step_by_step() -> None:
    """Its probabilities are those of the chapter's formula for Q, and not the conditional ones."""
    letters = BPETokenizer.train("abc", vocab_size=257, special_tokens=(END,))
    model, texts = tiny(vocab_size=letters.vocab_size, seed=1), ["a", "ab", "ba", "cc"]
    choices = Choices(letters, texts)
    expected = {}
    for text in texts:
        ids, total = [*letters.encode(text), letters.end_of_text], 0.0
        for n, id in enumerate(ids):
            with torch.no_grad():
                logits = model(torch.tensor([[letters.end_of_text, *ids[:n]]]))[0, -1]
            allowed = choices.allowed(letters.decode_bytes(ids[:n]))
            total += (logits[id] - logits[allowed].logsumexp(0)).item()
        expected[text] = math.exp(total)
    assert sum(expected.values()) == pytest.approx(1)
    rows = generate(
        model, [[letters.end_of_text]] * 1500, 3, processors=[choices], stop_tokens=[letters.end_of_text]
    )
    counts = Counter(letters.decode(row[1:]).removesuffix(END) for row in rows)
    assert abs(chi_square(counts, expected)) < 4


# ---- beams, drafts -------------------------------------------------------------------------------


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_beam_as_wide_as_everything_is_exact(length_penalty: float) -> None:
    model, prompt = tiny(vocab_size=3), [0, 1]
    texts = [
        [*prompt, *new]
        for n in range(1, 5)
        for new in itertools.product(range(3), repeat=n)
        if 2 not in new[:-1] and (new[-1] == 2 or n == 4)
    ]
    scores = {tuple(t): log_probs(model, t, 2).sum().item() / (len(t) - 2) ** length_penalty for t in texts}
    found = beam_search(model, prompt, 4, num_beams=81, length_penalty=length_penalty, stop_tokens=[2])
    best = max(scores, key=scores.get)
    assert found[0][0] == list(best) and found[0][1] == pytest.approx(scores[best], abs=1e-5)
    assert all(score == pytest.approx(scores[tuple(text)], abs=1e-5) for text, score in found)


def test_one_beam_is_greedy_and_processors_are_used() -> None:
    model = tiny(seed=2)
    greedy = generate(model, torch.tensor([1, 2, 3]), 20, temperature=0).tolist()
    assert beam_search(model, torch.tensor([1, 2, 3]), 20, num_beams=1)[0][0] == greedy
    words = Choices(TOKENIZER, ["mat", "hat"])
    found = beam_search(
        model,
        TOKENIZER.encode("the "),
        8,
        num_beams=2,
        processors=[words],
        stop_tokens=[TOKENIZER.end_of_text],
    )
    assert {TOKENIZER.decode(t).removesuffix(END) for t, _ in found} <= {"the mat", "the hat"}


def enumerate_texts(
    model: GPT, prompt: list[int], n: int, temperature: float
) -> dict[tuple[int, ...], float]:
    """The probability of each continuation by n tokens."""
    found = {(): 1.0}
    for _ in range(n):
        grown = {}
        for text, p in found.items():
            with torch.no_grad():
                q = (model(torch.tensor([[*prompt, *text]]))[0, -1] / temperature).softmax(-1)
            grown |= {(*text, token): p * q[token].item() for token in range(len(q))}
        found = grown
    return found


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("exact", [True, False])
def test_speculative_texts_have_the_targets_distribution(
    monkeypatch: pytest.MonkeyPatch, k: int, exact: bool
) -> None:
    """Chi-square over all texts of three tokens, sharp enough to find the rule that most write first."""
    target, draft = tiny(vocab_size=3, seed=1), tiny(vocab_size=3, seed=2, n_layer=1, d_model=8)
    if not exact:  # after a rejection, draw from p instead of what p has more than q
        monkeypatch.setattr(sampling, "residual", lambda p, q: p)
    counts = Counter()
    for seed in range(1200):
        text, passes = speculative(target, draft, torch.tensor([0, 1]), 3, k=k, temperature=1.5, seed=seed)
        assert sum(passes) == 3
        counts[tuple(text.tolist()[2:])] += 1
    deviation = chi_square(counts, enumerate_texts(target, [0, 1], 3, 1.5))
    assert abs(deviation) < 4 if exact else deviation > 6


def test_speculative_greedy_is_the_targets_text() -> None:
    target, draft = tiny(seed=1), tiny(seed=2, n_layer=1)
    ids = torch.tensor([1, 2, 3])
    expected = generate(target, ids, 40, temperature=0)
    for k in (1, 2, 5):
        text, passes = speculative(target, draft, ids, 40, k=k, temperature=0)
        assert torch.equal(text, expected) and sum(passes) == 40
    text, passes = speculative(target, target, ids, 40, k=4, temperature=0)
    assert torch.equal(text, expected) and passes == [5] * 8, (
        "a draft that is always right gives k + 1 at a time"
    )
    stop = expected[10].item()
    text, _ = speculative(target, draft, ids, 40, temperature=0, stop_tokens=[stop])
    assert text.tolist() == expected.tolist()[: expected.tolist().index(stop, 3) + 1]


def test_speculative_refuses_what_cannot_be() -> None:
    model = tiny()
    for draft, n, saying in (
        (tiny(vocab_size=9), 5, "vocabularies"),
        (model, 100, "context is 64"),
    ):
        with pytest.raises(ValueError, match=saying):
            speculative(model, draft, torch.tensor([1]), n)
    with pytest.raises(ValueError, match="k must be"):
        speculative(model, model, torch.tensor([1]), 5, k=0)


# ---- a model prepared for writing ----------------------------------------------------------------

SHAPES = {
    "gpt2": {
        "position": "learned",
        "norm": "layernorm",
        "ffn": "gelu_tanh",
        "bias": True,
        "tie_embeddings": True,
    },
    "llama": {"n_head": 4, "n_kv_head": 2, "norm_eps": 0.1},
    "qwen3": {"n_head": 4, "n_kv_head": 1, "qk_norm": True, "norm_eps": 0.1},
    "first": {"position": "sinusoidal", "norm": "layernorm", "norm_position": "post", "ffn": "relu"},
    "plain": {"position": "none", "norm": "rmsnorm", "norm_position": "post", "ffn": "relu2"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_prepared_model_is_the_same_function(shape: str) -> None:
    """Also in a batch of different lengths, past the context, and with several tokens at once."""
    model = tiny(context=12, **SHAPES[shape])
    prepared, prompts = DecodingModel(model), [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    for mine, other in zip(
        generate_stream(prepared, prompts, 30, seed=1),
        generate_stream(model, prompts, 30, seed=1),
        strict=True,
    ):
        assert mine.tokens == other.tokens
        assert torch.allclose(mine.logits, other.logits, atol=1e-4, rtol=1e-5)
    caches = model.new_cache(2, 12), model.new_cache(2, 12)
    ids, padding = torch.randint(20, (2, 8)), torch.tensor([2, 0])
    with torch.no_grad():
        for part in (ids[:, :4], ids[:, 4:5], ids[:, 5:7], ids[:, 7:]):
            one = prepared(part, cache=caches[0], padding=padding)
            two = model(part, cache=caches[1], padding=padding)
            assert one.shape == two.shape and torch.allclose(one, two, atol=1e-10)
    assert all(torch.allclose(a.k, b.k) and torch.allclose(a.v, b.v) for a, b in zip(*caches))


X86 = torch.backends.quantized.engine in ("x86", "fbgemm")


def wide(seed: int = 0, **dials) -> GPT:
    """A model with matrices large enough for shorter forms."""
    torch.manual_seed(seed)
    shape = {"context_length": 64, "n_layer": 2, "n_head": 2, "d_model": 256} | dials
    return GPT(GPTConfig(512, **shape)).eval()


def distance(model: GPT, precision: str) -> float:
    """How far the prepared model's logits are from the model's own, when one text is read token by token: the
    root mean square relative to their spread."""
    ids, logits = torch.arange(100, 120)[None], []
    for form in (model, DecodingModel(model, precision)):
        with torch.inference_mode():
            cache = form.new_cache(1, 20)
            logits.append(
                torch.stack([form(token.view(1, 1), cache=cache)[0, 0].float() for token in ids[0]])
            )
    return ((logits[1] - logits[0]).std() / logits[0].std()).item()


def test_a_prepared_model_in_16_bits() -> None:
    """Only where there is a product for it, and not for matrices that float16 cannot hold."""
    model = wide()
    assert distance(model, "fp32") < 1e-5
    if not X86:
        assert distance(model, "auto") < 1e-5
        with pytest.raises(ValueError, match="fp16"):
            DecodingModel(model, "fp16")
        return
    assert 1e-5 < distance(model, "fp16") < 5e-3
    with torch.no_grad():
        model.head.weight.mul_(1e6)  # beyond 65,504
    assert distance(model, "fp16") < 5e-3 and distance(model, "auto") < 5e-2


@pytest.mark.skipif(not X86, reason="this processor has no product for it")
def test_a_prepared_model_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is turned has no outliers; other norms than RMSNorm, and other places, keep 16 bits."""
    model = wide(ffn="gelu", bias=True)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                p.add_(0.02 * torch.randn_like(p))
    assert 1e-5 < distance(model, "fp16") < 5e-3 < distance(model, "int8") < 5e-2
    with torch.no_grad():
        model.embedding.weight[:, 7].mul_(50)  # one coordinate of the stream is far larger than the others
    assert distance(model, "int8") < 3e-2
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "random_rotation", torch.eye)
        assert distance(model, "int8") > 0.2
    for dials in ({"norm": "layernorm"}, {"norm_position": "post"}):
        other = wide(**dials)
        assert DecodingModel(other, "int8").turn is None
        assert distance(other, "int8") == distance(other, "fp16") < 5e-3
    assert DecodingModel(quantize_int8(model), "int8").turn is None
    broken = wide()
    with torch.no_grad():
        broken.blocks[0].ffn.up.weight[3, 3] = float("nan")
    prepared = DecodingModel(broken, "int8")  # bytes would make a number of it
    assert prepared(torch.tensor([[7]]), cache=prepared.new_cache(1, 4)).isnan().any()
    for able in (True, False):  # a processor that multiplies bytes, and another
        monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda able=able: able)
        assert (DecodingModel(model).turn is not None) == able
    assert distance(model, "int8") < 6e-2  # in seven bits, as the other does it
    monkeypatch.setattr("gptbook.sample.choose_precision", lambda device: (torch.float32, "no bf16"))
    assert DecodingModel(model).new_cache(1, 8)[0].k.dtype == torch.float32


@pytest.mark.skipif(not X86, reason="other processors add up eight rows otherwise than one")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_prepared_model_writes_alone_what_it_writes_in_a_batch(precision: str) -> None:
    prepared = DecodingModel(wide(d_model=384, n_head=6, qk_norm=True), precision)
    begins = [[token] for token in range(16)]
    together = generate(prepared, begins, 40, temperature=0, return_log_probs=True)
    for begin, text, log_probs in zip(begins, *together):
        alone = generate(prepared, [begin], 40, temperature=0, return_log_probs=True)
        assert alone[0][0] == text
        # a number that one of the two rounds to the next of its 8 bits moves this by some thousandths
        assert alone[1][0] == pytest.approx(log_probs, abs=1e-4)


@pytest.mark.skipif(not X86, reason="this processor has no product for it")
@pytest.mark.parametrize("width", [200, 392, 856, 384])
def test_the_products_in_8_bits_are_right_for_any_width(width: int) -> None:
    """One kernel of PyTorch reads beyond a row whose width is no multiple of sixteen, and says nothing."""
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(width, 1024), torch.nn.functional.normalize(torch.randn(3, width))
    turn = random_rotation(width)
    with torch.no_grad():
        assert (Int8Linear(linear.weight, linear.bias)(x) - linear(x)).std() < 0.02 * linear(x).std()
        y = _Matrix(linear, ("fp16",), before=turn)(x @ turn)
        assert (y - linear(x)).std() < 0.04 * linear(x).std()


def test_a_random_rotation_keeps_lengths_and_leaves_no_entry_large() -> None:
    turn = random_rotation(300)
    assert torch.allclose(turn @ turn.T, torch.eye(300), atol=1e-5)
    assert torch.equal(turn, random_rotation(300)) and not torch.allclose(turn, random_rotation(300, seed=1))
    entries = turn * 300**0.5  # each row is a unit vector that was turned
    assert 0.95 < entries.std() < 1.05 and entries.abs().max() < 6
    assert (entries.abs() > sampling.REACH).float().mean() < 2e-4


@pytest.mark.parametrize(("width", "rows"), [(256, 1024), (1024, 256)])
def test_by_columns_is_the_same_product(monkeypatch: pytest.MonkeyPatch, width: int, rows: int) -> None:
    """It is for one text, a matrix with more rows than columns, and a processor without AVX-512."""
    torch.manual_seed(0)
    linear, gain = torch.nn.Linear(width, rows), torch.rand(width) + 0.5
    matrix = _Matrix(linear, ("columns",), gain)
    for texts in (1, 3):
        x = torch.randn(texts, width)
        with torch.inference_mode():
            assert torch.allclose(matrix(x), linear(gain * x), atol=1e-5)
        matrix(x.requires_grad_()).sum().backward()  # made in inference mode, it serves in others, too
        assert torch.allclose(x.grad, (linear.weight * gain).sum(0).expand_as(x), atol=1e-4)
    assert ("columns" in vars(matrix)) == (rows > width)
    model = GPT(GPTConfig.tiny(4096, d_model=64)).eval()
    for engine, avx512, form in (
        ("x86", False, "columns"),
        ("x86", True, "fp32"),
        ("qnnpack", False, "fp32"),
    ):
        monkeypatch.setattr(torch.backends.quantized, "engine", engine)
        monkeypatch.setattr("torch.cpu._is_avx512_supported", lambda avx512=avx512: avx512)
        prepared = DecodingModel(model, "fp32")
        assert prepared.head.one == form and prepared.cache_dtype is None


def test_a_cache_may_be_of_another_type() -> None:
    cache = KVCache(1, 2, 4, 8, dtype=torch.bfloat16)
    k = torch.randn(1, 2, 3, 8)
    stored, _ = cache.append(k, k)
    assert cache.k.dtype == torch.bfloat16 and stored.dtype == torch.float32
    assert torch.equal(stored, k.bfloat16().float())


def test_a_prepared_model_asks_for_a_precision_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="precision"):
        DecodingModel(tiny(), "bf16")
    monkeypatch.setattr(torch.backends.quantized, "engine", "qnnpack")  # as on a processor by ARM
    with pytest.raises(ValueError, match="no product of fp16 matrices"):
        DecodingModel(tiny(), "fp16")
    assert DecodingModel(tiny(), "auto").norm is not None


def test_a_prepared_model_serves_in_any_mode() -> None:
    """What it makes at its first call may be used with gradients on, too."""
    prepared, ids = DecodingModel(tiny(qk_norm=True)), torch.tensor([[3]])

    def logits() -> Tensor:
        return prepared(ids, cache=prepared.new_cache(1, 4))

    with torch.inference_mode():
        first = logits().clone()
    assert torch.equal(logits(), first) and not prepared.head.fp32[0].requires_grad


def test_a_prepared_model_drafts_and_searches() -> None:
    model, draft = tiny(), tiny(seed=1)
    prepared, small, ids = DecodingModel(model), DecodingModel(draft), torch.tensor([1, 2, 3])
    assert torch.equal(speculative(prepared, small, ids, 20)[0], speculative(model, draft, ids, 20)[0])
    assert beam_search(prepared, ids, 10) == beam_search(model, ids, 10)


def test_stop_tokens_end_a_text_too() -> None:
    letters = CharTokenizer.train("abc")
    torch.manual_seed(0)
    model = GPT(GPTConfig.tiny(letters.vocab_size)).eval()
    every = list(range(letters.vocab_size))
    assert len(generate_text(model, letters, "ab", 20, stop_tokens=every)) <= 3
