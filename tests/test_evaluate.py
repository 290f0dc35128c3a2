"""Chapter 15: the measures against slow and independent ones, and the report as a reader gets it."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptbook import microworld
from gptbook.cli import main
from gptbook.config import GPTConfig, TrainConfig
from gptbook.evaluate import (
    CHOICE_RULES,
    CLASSES,
    MARK,
    Choice,
    Question,
    StoryJudge,
    SuffixArray,
    block_error,
    calibration,
    choose,
    confidence_interval,
    distinct_n,
    evaluate_losses,
    evaluate_run,
    fit_temperature,
    frequency_deciles,
    group_losses,
    longest_copied,
    open_run,
    paired_difference,
    position_losses,
    read_exam,
    repetition,
    score_choices,
    sit_exam,
    token_classes,
    token_losses,
    world_measures,
    world_ngram,
    write_report,
)
from gptbook.model import GPT
from gptbook.tokenizer import BPETokenizer, CharTokenizer, train_tokenizer
from gptbook.training import train

# ---- errors and intervals ------------------------------------------------------------------------


def chains(rows: int, size: int, keep: float) -> np.ndarray:
    """Rows of values with mean 0 and variance 1, each of which keeps a part of the one before it."""
    rng = np.random.default_rng(0)
    out = rng.normal(size=(rows, size))
    for i in range(1, size):
        out[:, i] = keep * out[:, i - 1] + math.sqrt(1 - keep**2) * out[:, i]
    return out


@pytest.mark.parametrize("keep", [0.0, 0.9])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_cover(keep: float, level: float) -> None:
    series = chains(600, 20_000 if keep else 2_000, keep)
    block = 1000 if keep else 100
    inside = [low <= 0 <= high for low, high in (confidence_interval(s, level, block) for s in series)]
    assert abs(np.mean(inside) - level) < 4 * math.sqrt(level * (1 - level) / len(inside))


def test_interval_knows_few_blocks() -> None:
    """Ten blocks need Student's 2.262 standard errors, not 1.96."""
    values = np.random.default_rng(1).normal(size=100)
    low, high = confidence_interval(values)
    assert (high - low) / 2 / block_error(values) == pytest.approx(2.262, rel=2e-3)
    assert (low + high) / 2 == pytest.approx(values.mean())
    with pytest.raises(ValueError, match="level"):
        confidence_interval(values, 1.0)


def test_paired_difference() -> None:
    shared, a, b = np.random.default_rng(0).normal(size=(3, 20_000)) * [[2.0], [0.1], [0.1]]
    found = paired_difference(shared + a, shared + b + 0.05)
    assert found.mean == pytest.approx(0.05, abs=0.005) and found.interval[0] > 0.04
    assert found.error < block_error(shared + a) / 5
    with pytest.raises(ValueError, match="same tokens"):
        paired_difference(a, b[1:])


def test_evaluation_is_json_even_of_one_token() -> None:
    text = json.dumps(evaluate_losses(np.array([2.0]), 3).to_dict(), allow_nan=False)
    assert json.loads(text)["loss_ci"] == [None, None] and json.loads(text)["loss"] == 2


# ---- groups, calibration, repetition -------------------------------------------------------------


def test_classes_of_tokens() -> None:
    tokenizer = train_tokenizer("bpe", ["the cat's 42 hats, (see the_end).\n\n  café é " * 50], 300)
    text = "the hats, 42\n\n caté (x"
    ids = np.array([*tokenizer.encode(text), tokenizer.end_of_text])
    found = [CLASSES[i] for i in token_classes(ids, tokenizer)]
    by_text = dict(zip([tokenizer.decode([i]) for i in ids], found))
    assert by_text["\n\n"] == "newline" and by_text[","] == "punctuation"
    assert {found[i] for i, id in enumerate(ids) if tokenizer.decode([id]).strip().isdigit()} == {"digits"}
    assert found[0] == "word start" and found[-1] == "other"


def test_classes_of_characters_need_the_one_before() -> None:
    text = "ab 1, cd\ne"
    tokenizer = CharTokenizer.train(text)
    found = [CLASSES[i] for i in token_classes(np.array(tokenizer.encode(text)), tokenizer)]
    start, inside = "word start", "inside word"
    assert found == [
        *(start, inside, "space", "digits", "punctuation", "space", start, inside, "newline", start),
    ]


def test_groups_add_up() -> None:
    losses, groups = np.random.default_rng(0).random(500), np.random.default_rng(1).integers(3, size=500)
    found = group_losses(losses, groups, ["a", "b", "c", "none"])
    assert [g.name for g in found] == ["a", "b", "c"] and sum(g.tokens for g in found) == 500
    assert sum(g.share for g in found) == pytest.approx(1)
    assert sum(g.loss * g.tokens for g in found) == pytest.approx(losses.sum())


def test_frequency_deciles() -> None:
    counts = np.array([10, 0, 50, 10, 10, 10, 10])
    assert frequency_deciles(counts).tolist() == [5, 9, 0, 6, 7, 8, 9]
    assert frequency_deciles(np.zeros(3, int)).tolist() == [9, 9, 9]


def test_calibration_of_known_predictions() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    honest = calibration(p, rng.random(len(p)) < p)
    assert honest.ece < 0.01 and honest.count.sum() == len(p)
    boastful = calibration(np.sqrt(p), rng.random(len(p)) < p)  # says sqrt(p) where p is true
    assert boastful.ece == pytest.approx(np.mean(np.sqrt(p) - p), abs=0.01)
    assert calibration(np.array([1.0]), np.array([1])).ece == 0
    for confidence, correct, bins in ((p, p[1:], 10), (p[:0], p[:0], 10), (p, p, 0)):
        with pytest.raises(ValueError):
            calibration(confidence, correct, bins)


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_temperature_is_found(true: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 7, generator=generator)
    targets = (logits / true).softmax(-1).multinomial(1, generator=generator)[:, 0]
    assert fit_temperature(logits, targets) == pytest.approx(true, rel=0.05)


def test_temperature_of_certain_predictions_is_finite() -> None:
    assert 0 < fit_temperature(torch.eye(4) * 5, torch.arange(4)) < 0.2


def test_distinct_and_repetition() -> None:
    assert distinct_n("abab", 1) == 0.5 and distinct_n("abab", 2) == pytest.approx(2 / 3)
    assert repetition([1, 1, 1, 1, 1], 2) == 0.75 and distinct_n([], 3) == 1 and repetition("ab", 4) == 0
    with pytest.raises(ValueError):
        distinct_n("ab", 0)


# ---- copied passages -----------------------------------------------------------------------------


@given(st.binary(max_size=40) | st.text("ab", max_size=60).map(str.encode), st.integers(0, 3))
def test_suffix_array_is_sorted(text: bytes, zeros: int) -> None:
    text += bytes(zeros)
    order = SuffixArray(text).order.tolist()
    assert order == sorted(range(len(text)), key=lambda i: text[i:])


@given(st.text("abc\0", max_size=40).map(str.encode), st.text("abcd\0", max_size=20).map(str.encode))
def test_longest_copied_against_all_passages(text: bytes, sample: bytes) -> None:
    passages = {b""} | {sample[i:j] for i in range(len(sample)) for j in range(i, len(sample) + 1)}
    longest = max(len(passage) for passage in passages if passage in text)
    index = SuffixArray(text)
    copy = longest_copied(sample, index)
    assert copy.length == longest
    assert sample[copy.start :][: copy.length] == text[copy.position :][: copy.length]
    length, position = index.longest_match(sample)
    assert length == max(j for j in range(len(sample) + 1) if sample[:j] in text)
    assert text[position : position + length] == sample[:length]


@pytest.mark.parametrize("text", [b"a" * 3000, b"ab" * 1500, bytes(3000)])
def test_texts_that_repeat_themselves(text: bytes) -> None:
    index = SuffixArray(text)
    assert index.order.tolist() == sorted(range(len(text)), key=lambda i: text[i:])
    assert longest_copied(b"x" + text[:1000] + b"y", index)[:2] == (1000, 1)


# ---- a run and its report ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    lines = [f"ROMEO <{i}> & *Juliet*:\nO, | speak {i * i} `again`, bright angel!\n\n" for i in range(300)]
    (folder / "play.txt").write_text("".join(lines), encoding="utf-8")
    settings = {"preset": "tiny", "vocab_size": 320, "context_length": 16, "steps": 6, "eval_every": 3}
    config = TrainConfig(corpus=str(folder / "play.txt"), out=str(folder / "run"), threads=1, **settings)
    train(config, progress=False, log=lambda _: None)
    return folder / "run"


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_evaluation_agrees_with_itself(run: Path) -> None:
    found, parts = evaluate_run(run), open_run(run)
    losses = token_losses(parts.model, parts.data)
    assert found.loss == losses.mean() and found.tokens == len(losses) and found.bytes == parts.n_bytes
    assert found.loss_ci[0] < found.loss < found.loss_ci[1]
    scale = found.bits_per_byte / found.loss
    assert found.bits_per_byte_ci == pytest.approx([scale * end for end in found.loss_ci])


def test_positions_against_whole_windows(run: Path) -> None:
    """With stride T the windows do not overlap: every place is then scored in some of them."""
    parts = open_run(run)
    mean, error = position_losses(parts.model, parts.data, windows=10**6)
    rows = torch.from_numpy(np.stack([parts.data.read(s, 17) for s in range(len(parts.data) - 16)]))
    with torch.no_grad():
        logits = parts.model(rows[:, :-1])
    slow = torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").mean(0)
    assert mean == pytest.approx(slow.numpy(), rel=1e-4) and error.shape == (16,) and (error > 0).all()


class Links(HTMLParser):
    """What a page would fetch, and its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.images: list[dict] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.images += [values] if tag == "img" else []
        self.fetched += [v for k, v in values.items() if k in ("src", "href", "data", "srcset", "poster")]
        assert tag not in ("script", "link", "iframe", "object"), tag


def test_html_report(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    report = write_report(run, path)
    page = path.read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert page.startswith(MARK + "\n<!DOCTYPE html>") and "prefers-color-scheme: dark" in page
    assert len(links.images) == 5 and all(image["alt"] for image in links.images)
    assert all(address.startswith("data:image/svg+xml;base64,") for address in links.fetched)
    outside = re.sub(r'src="data:[^"]*"', "", page)
    assert "http" not in outside and "url(" not in outside and "@import" not in outside
    assert f"{report.evaluation.bits_per_byte:.3f}" in page and "order" in page
    assert "<0>" not in outside and len(report.samples) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["out.html"], "a temporary file is left"
    assert report.evaluation == evaluate_run(run)


def test_markdown_report(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.md"
    report = write_report(run, path, "train")
    page = path.read_text(encoding="utf-8")
    assert page.startswith(MARK) and page.count("](data:image/svg+xml;base64,") == 5
    assert report.evaluation.split == "train" and all(s.text in page for s in report.samples)
    assert "http" not in re.sub(r"\(data:[^)]*\)", "", page)


def test_report_replaces_only_reports(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    write_report(run, path)
    before = path.read_bytes()
    write_report(run, path)
    assert path.read_bytes() == before, "the same run has the same report"
    (tmp_path / "letter.md").write_text("Dear Juliet,")
    (tmp_path / "folder.html").mkdir()
    refused = {"letter.md": "no report", "folder.html": "folder", "out.pdf": ".pdf", "out": "suffix"}
    for name, saying in (refused | {"no/out.html": "does not exist"}).items():
        with pytest.raises(ValueError, match=re.escape(saying)):
            write_report(run, tmp_path / name)
    assert (tmp_path / "letter.md").read_text() == "Dear Juliet,"


def test_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "out.html"
    assert main(["eval", str(run), "--report", str(path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == json.loads(json.dumps({"run": str(run)} | evaluate_run(run).to_dict()))
    assert path.read_text(encoding="utf-8").startswith(MARK)
    path.write_text("mine")
    assert main(["eval", str(run), "--report", str(path)]) == 2
    error = capsys.readouterr().err
    assert "no report of gptbook" in error and error.count("\n") == 1 and path.read_text() == "mine"


@pytest.mark.parametrize("content", ["{}", "[]", "null", "7", '{"bytes": 3}', '{"bytes": {"val": "many"}}'])
def test_damaged_corpus_file(copied: Path, content: str, capsys: pytest.CaptureFixture) -> None:
    (copied / "data" / "corpus.json").write_text(content)
    with pytest.raises(ValueError, match=r"corpus\.json is damaged"):
        evaluate_run(copied)
    assert main(["eval", str(copied), "--report", str(copied / "out.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (copied / "out.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("best.json", "[]"),
        ("best.json", '{"checkpoint": 3, "sha256": {}}'),
        ("metrics.jsonl", '{"step": 1, "loss": "x"}'),
    ],
)
def test_other_damaged_files(copied: Path, name: str, content: str) -> None:
    (copied / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(name)):
        write_report(copied, copied.parent / "out.html")


def test_a_run_without_metrics_has_a_report(copied: Path, tmp_path: Path) -> None:
    (copied / "metrics.jsonl").unlink()
    assert write_report(copied, tmp_path / "out.md").metrics == []


def test_measures_of_the_small_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A model that is trained a little is far above the floor; its numbers are in range."""
    for module in ("data", "evaluate"):
        monkeypatch.setattr(f"gptbook.{module}.WORLD_TRAIN", 300)
    config = TrainConfig(
        corpus="microworld-en", out=str(tmp_path / "run"), preset="tiny", vocab_size=400, context_length=160,
        batch_size=8, steps=60, eval_every=60, threads=1,
    )  # fmt: skip
    run = train(config, progress=False, log=lambda line: None)
    found = world_measures(run.model, run.tokenizer, "en", n=20)
    assert found["nats_above_entropy"] > 30 and found["stories_measured"] == 20
    assert 0 <= found["true"] <= found["grammatical"] <= 1 and 0 <= found["answered"] <= 1
    assert found["new"] == 1.0 and found["grammatical_error"] < 0.2
    again = world_measures(run.model, run.tokenizer, "en", n=20)
    assert again == found, "the same seed, the same numbers"
    counted = world_ngram(tmp_path / "run", "en", n=20, highest=3)
    assert 1 <= counted["order"] <= 3 and 0.1 < counted["grammatical"] < 1 and counted["true"] <= 0.2
    monkeypatch.setattr("gptbook.evaluate.world_measures", lambda *given: world_measures(*given, n=20))
    assert main(["eval", str(tmp_path / "run")]) == 0, "the command prints them, too"
    assert json.loads(capsys.readouterr().out).items() >= found.items()


class Oracle(torch.nn.Module):
    """Knows the judge's stories by heart, and says ``wrong`` instead of each token of it."""

    def __init__(self, judge: StoryJudge, context_length: int, wrong: int = -1):
        super().__init__()
        self.rows, self.wrong = judge.rows.clamp(min=0), wrong
        self.config = GPTConfig.tiny(vocab_size=judge.tokenizer.vocab_size).replace(
            context_length=context_length
        )
        self.embedding = torch.nn.Embedding(1, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        at = (self.rows[:, None, : ids.shape[1]] == ids).all(-1).float().argmax(0)
        following = torch.cat([self.rows, torch.zeros(len(self.rows), 1, dtype=torch.long)], 1)[
            at, 1 : ids.shape[1] + 1
        ]
        return 50.0 * torch.nn.functional.one_hot(
            following + (following == self.wrong), self.config.vocab_size
        )


def test_judge_takes_no_answer_that_cannot_be_read() -> None:
    """An unknown word has a length of its own, so the words behind it are not where their bytes say."""
    stories = [microworld.sample(i, split="val") for i in range(40)]
    for size, right in ((30, 0.0), (200, 1.0)):
        tokenizer = train_tokenizer("word", stories, size)
        judge = StoryJudge(tokenizer, "en", 40, known=frozenset())
        assert judge.read(Oracle(judge, 300))["answered"] == right


@pytest.mark.parametrize("language", ["en", "zh"])
def test_judge_finds_the_answers(language: str) -> None:
    """Who knows every word answers all; another word for "yes" misses the yeses; short contexts are told."""
    stories = [microworld.sample(i, language) for i in range(200)]
    tokenizer = BPETokenizer.train("\n".join(stories), vocab_size=512, special_tokens=("<|endoftext|>",))
    judge = StoryJudge(tokenizer, language, 40, known=frozenset())
    found = judge.read(Oracle(judge, 256))
    assert found["answered"] == 1.0 and found["stories_measured"] == 40
    assert found["nats_above_entropy"] == pytest.approx(judge.logprobs.mean(), abs=1e-3), (
        "by heart: no nats at all for the model"
    )
    asked = sum(n for _, n in found["answered_by_facts"].values())
    assert asked == sum(
        story.count("?") + story.count("？")
        for story in (microworld.sample(i, language, "val") for i in range(40))
    )
    yes = {"en": " Yes", "zh": "？是的"}[language]
    (token,) = tokenizer.encode(yes)
    yeses = sum(
        story.count(yes.strip(" ")) for story in (microworld.sample(i, language, "val") for i in range(40))
    )
    mistaken = judge.read(Oracle(judge, 256, wrong=token))
    assert mistaken["answered"] == pytest.approx(1 - yeses / asked)
    missed = {kind: n - right for kind, (right, n) in mistaken["answered_by_kind"].items()}
    assert sum(missed.values()) == yeses and all(kind.startswith("is ") for kind in missed if missed[kind])
    dropping = GPT(GPTConfig.tiny(tokenizer.vocab_size, context_length=256).replace(dropout=0.5))
    assert judge.read(dropping) == judge.read(dropping) and dropping.training, (
        "without dropout, and left as it was"
    )
    short = judge.read(Oracle(judge, int((judge.rows >= 0).sum(1).median()) - 1))
    assert 0 < short["stories_measured"] < 40 and short["answered"] == 1.0
    long = StoryJudge(tokenizer, language, 5, split="long", known=frozenset())
    assert long.read(Oracle(long, 256))["nats_above_entropy"] is None, (
        "another language, whose floor is another"
    )


# ---- given answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_choices_against_whole_texts(position: str) -> None:
    """Without a cache and without batches: the loss of question and answer less that of the question."""
    text = "the cat sat on the mat and the hat was on the cat"
    tokenizer = train_tokenizer("bpe", [text], 300)
    torch.manual_seed(0)
    config = GPTConfig.tiny(tokenizer.vocab_size, context_length=40).replace(position=position)
    model = GPT(config).double()

    def total(words: str) -> float:
        ids = torch.tensor([tokenizer.end_of_text, *tokenizer.encode(words)])
        with torch.no_grad():
            logits = model(ids[None, :-1])[0]
        return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()

    question, answers = "the hat was on", [" the cat", " the mat and the hat", " it"]
    for neutral in ("", "and"):
        found = score_choices(model, tokenizer, question, answers, neutral=neutral)
        for choice, answer in zip(found, answers):
            assert choice.nats == pytest.approx(total(question + answer) - total(question), abs=1e-4)
            alone = total(neutral + answer) - (total(neutral) if neutral else 0.0)
            assert choice.alone == pytest.approx(alone, abs=1e-4)
            assert (choice.tokens, choice.bytes) == (len(tokenizer.encode(answer)), len(answer))
    assert score_choices(model, tokenizer, question, answers[:1])[0].nats == pytest.approx(found[0].nats)
    assert model.training, "the model is left as it was"


def test_choice_rules() -> None:
    """Each rule takes the answer that is the least by its own measure; of equal ones the first."""
    choices = [
        Choice(3.0, 1.0, 1, 9),
        Choice(4.0, 9.0, 2, 5),
        Choice(6.0, 5.0, 4, 8),
        Choice(6.0, 5.0, 3, 24),
    ]
    taken = {rule: choose(choices, rule) for rule in CHOICE_RULES}
    assert taken == {"sum": 0, "gain": 1, "per token": 2, "per byte": 3}
    assert choose([Choice(1.0, 1.0, 1, 1)] * 2) == 0
    with pytest.raises(ValueError, match="rule"):
        choose(choices, "luck")
    with pytest.raises(ValueError, match="no number"):
        choose([Choice(math.nan, 1.0, 1, 1), Choice(2.0, 1.0, 1, 1)])


def test_choices_that_cannot_be_scored() -> None:
    tokenizer = train_tokenizer("bpe", ["hello hello hello there there"], 270)
    model = GPT(GPTConfig.tiny(tokenizer.vocab_size, context_length=16))
    assert len(tokenizer.encode("hello")) < len(tokenizer.encode("hel")) + len(tokenizer.encode("lo"))
    for answers, saying in (
        (["lo"], "no token of its own"),
        ([" a" * 20], "the context 16"),
        ([], "no answer"),
    ):
        with pytest.raises(ValueError, match=saying):
            score_choices(model, tokenizer, "hel", answers)
    letters = train_tokenizer("char", ["abc"])
    with pytest.raises(ValueError, match="know their characters"):
        score_choices(GPT(GPTConfig.tiny(letters.vocab_size)), letters, "a", ["x", "y"])
    exam = [Question("hello", [" there"], 0), Question("hel", ["lo"], 0)]
    with pytest.raises(ValueError, match=r"question 2: .*token of its own"):
        sit_exam(model, tokenizer, exam)
    with pytest.raises(ValueError, match="no question"):
        sit_exam(model, tokenizer, [])


BAD_QUESTIONS = (
    "[]", "7", "{", '{"question": "q", "choices": ["a"]}', '{"question": 3, "choices": ["a"], "answer": 0}',
    '{"question": "q", "choices": "ab", "answer": 0}', '{"question": "q", "choices": ["a", 1], "answer": 0}',
    '{"question": "q", "choices": ["a"], "answer": 1}', '{"question": "q", "choices": ["a"], "answer": -1}',
    '{"question": "q", "choices": ["a"], "answer": true}', '{"question": "q", "choices": [], "answer": 0}',
    '{"question": "q", "choices": ["a", "a"], "answer": 0}',
    '{"question": "q", "choices": ["a", ""], "answer": 0}',
    '{"question": "q", "choices": ["a"], "answer": 0, "neutral": null}', "[" * 100_000,
)  # fmt: skip


def test_exams_are_read(tmp_path: Path) -> None:
    path = tmp_path / "exam.jsonl"
    good = '{"question": "Is it?", "choices": [" Yes", " No"], "answer": 1}'
    path.write_text(f'{good}\n\n{good[:-1]}, "neutral": "Answer:"}}\n')
    assert read_exam(path) == [
        Question("Is it?", [" Yes", " No"], 1), Question("Is it?", [" Yes", " No"], 1, "Answer:")
    ]  # fmt: skip
    for line in BAD_QUESTIONS:
        path.write_text(f"{good}\n{line}\n")
        with pytest.raises(ValueError, match=r"exam.jsonl, line 2: not of the form"):
            read_exam(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no question"):
        read_exam(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="not UTF-8: line 1"):
        read_exam(path)


def test_command_sits_an_exam(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "exam.jsonl"
    path.write_text('{"question": "a", "choices": [" b", " c"], "answer": 0}')
    assert main(["eval", str(run), "--choices", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)["choices"]
    parts = open_run(run)
    assert found == sit_exam(parts.model, parts.tokenizer, read_exam(path)) and found["questions"] == 1
    assert main(["eval", str(run), "--choices", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err
    path.write_text('{"question": "a", "choices": [" b", " c' + "c" * 99 + '"], "answer": 0}')
    assert main(["eval", str(run), "--choices", str(path), "--report", str(tmp_path / "out.md")]) == 2
    assert "question 1: question and answer have" in capsys.readouterr().err
    assert not (tmp_path / "out.md").exists(), "an exam that cannot be sat fails before the rest is measured"


def test_copies_are_compared_with_pieces_as_long(run: Path, tmp_path: Path) -> None:
    report = write_report(run, tmp_path / "out.md")
    sizes = sorted(len(sample.text.encode()) for sample in report.samples)
    assert report.chance_bytes == sizes[1] and 0 < max(report.chance) <= sizes[1]
    assert f"out pieces of {sizes[1]} bytes" in (tmp_path / "out.md").read_text()
