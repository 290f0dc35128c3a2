"""The small world: probabilities that sum to one, texts with one derivation, and grades for any text."""

import math
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptbook import microworld
from gptbook.microworld import (
    END,
    FORMS,
    HELD_OUT,
    SPLITS,
    World,
    answer,
    apply,
    broken,
    check,
    draw,
    entropy,
    forms,
    grade,
    logprob,
    next_sentences,
    parse,
    read,
    readings,
    sample,
    say,
    sentences,
    step_entropy,
    tell,
    together,
)

each_language = pytest.mark.parametrize("language", FORMS)


@pytest.mark.parametrize("split", ["train", "all", "long"])
def test_all_that_may_come_next_sums_to_one_and_is_true(split: str) -> None:
    for seed in range(40):
        world = World()
        for s in draw(random.Random(seed), split):
            options = [
                (p * q, way) for p, plain in next_sentences(world, split) for q, way in forms(world, plain)
            ]
            assert sum(p for p, _ in options) == pytest.approx(1, abs=1e-9) and all(p > 0 for p, _ in options)
            said = [way for _, way in options if way != END]
            for language in FORMS:
                texts = [say(way, language) for way in said]
                assert len(set(texts)) == len(texts), "two ways to the same text"
            assert all(broken(world, way) is None for way in said)
            assert s in [way for _, way in options]
            apply(world, s)


@each_language
def test_no_sentence_has_two_meanings(language: str) -> None:
    """Only the person that a pronoun stands for is open."""
    table = readings(language)
    assert len(table) > 2000
    for text, ways in table.items():
        assert len({way._replace(person="") for way in ways}) == 1, text
        assert len(ways) == 1 or all(way.pronoun for way in ways), text
        assert sentences(text) == [text]


@each_language
@pytest.mark.parametrize("split", SPLITS)
def test_every_story_is_grammatical_true_and_answered_right(language: str, split: str) -> None:
    stories = [sample(seed, language, split) for seed in range(30)]
    grades = grade(stories, language)
    assert grades.grammatical == grades.true == grades.answered == 1.0 and grades.answers >= 30
    for story in stories:
        assert parse(story, language)[0] and not any(check(story, language))
        for question, reply in re.findall(r"^(.*[?？])\s*(.*)$", story, re.M):
            assert answer(story[: story.index(question)], question, language) == reply


def test_both_languages_tell_the_same() -> None:
    for seed in range(20):
        english, chinese = sample(seed), sample(seed, "zh")
        assert [r.said._replace(receiver="", person="") for r in read(english)[0]] == [
            r.said._replace(receiver="", person="") for r in read(chinese, "zh")[0]
        ]
        assert logprob(english) == pytest.approx(logprob(chinese, "zh"))
    assert sample(1) == sample(1) != sample(2)


def test_logprob_is_the_product_over_the_choices() -> None:
    for seed in range(20):
        world, total = World(), 0.0
        story = draw(random.Random(seed))
        for s in story:
            plain = s._replace(form=0, pronoun=False)
            p = dict((b, a) for a, b in next_sentences(world))[plain]
            total += math.log(p * dict((b, a) for a, b in forms(world, plain))[s])
            apply(world, s)
        assert logprob(tell(story)) == pytest.approx(total)


def test_what_is_never_told_has_no_probability() -> None:
    story = sample(0)
    assert math.isfinite(logprob(story))
    lines = story.split("\n")
    for wrong in (
        "",
        story + " ",
        story[:-1],
        lines[0],  # no question
        story.replace("\n", " "),
        story.replace(". ", ".  ", 1),
        "\n".join([*lines, lines[-1]]),  # the same question twice
        " ".join(reversed(lines[0].split(". "))),
    ):
        assert logprob(wrong) == -math.inf, wrong
    combined = next(s for s in (sample(i, split="combinations") for i in range(9)) if len(s) > 0)
    assert logprob(combined) == -math.inf and math.isfinite(logprob(combined, split="all"))


def test_training_never_brings_the_held_out_together() -> None:
    def seen(story: str) -> set:
        world, found = World(), set()
        for r in read(story)[0]:
            found |= set(together(world, r.said))
            apply(world, r.said)
        return found

    assert len(HELD_OUT) > 30
    assert not any(seen(sample(seed)) & HELD_OUT for seed in range(200))
    assert all(seen(sample(seed, split="combinations")) & HELD_OUT for seed in range(20))


def test_entropy_agrees_with_the_stories() -> None:
    mean, error = entropy(400)
    surprise = [-logprob(sample(seed, split="val")) for seed in range(400)]
    plain = sum(surprise) / 400
    spread = math.sqrt(sum((s - plain) ** 2 for s in surprise) / 399 / 400)
    assert 0 < error < 1.1 * spread and abs(mean - plain) < 4 * math.hypot(error, spread)
    world = World()
    for s in draw(random.Random(3)):
        if world.asked:
            assert step_entropy(world) == 0, "an answer follows from the story"
        apply(world, s)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Anna took the ball.", "nobody has heard of Anna"),
        ("Anna is in the attic. Anna is in the garden.", "Anna is in the attic"),
        ("Anna is in the attic. Anna went to the attic.", "already"),
        ("Anna is in the attic. The ball is in the garden. Anna took the ball.", "does not lie where"),
        ("Anna is in the attic. The ball is in the attic. Anna dropped the ball.", "does not have"),
        ("Anna is in the attic. The cake is in the attic. Anna ate the cake.", "not hungry"),
        ("Anna is in the attic. He ran to the garden.", "not clear who is meant"),
        ("Anna is in the attic. Where is Anna? In the garden.", "the right answer is: In the attic."),
        ("Anna is in the attic. Yes.", "an answer without a question"),
        ("Anna is in the attic. Where was Anna before?", "nowhere else"),
        ("Anna flew to the moon.", "no sentence"),
    ],
)
def test_what_is_false_and_why(text: str, fault: str) -> None:
    *before, last = check(text)
    assert last is not None and fault in last and not any(before)


def test_questions_join_facts() -> None:
    story = "Anna is in the attic. The ball is in the attic. Anna took the ball. "
    for more, question, hops in (
        ("", "Who has the ball?", 1),
        ("", "Where is the ball?", 2),
        ("She ran to the garden. ", "Where is the ball?", 3),
        ("Anna ran to the garden. Anna dropped the ball. ", "Where is the ball?", 2),
    ):
        text = story + more + question
        found = read(text + " " + answer(story + more, question))[0]
        assert found[-1].fault is None and found[-1].hops == hops, text


def test_questions_that_have_no_answer() -> None:
    for question in ("Where is Ben?", "Where is the key?", "How are you?", "Anna ran to the attic."):
        with pytest.raises(ValueError, match=r"no question|has no answer"):
            answer("Anna is in the attic.", question)
    with pytest.raises(ValueError, match="language"):
        sample(0, "fr")
    with pytest.raises(ValueError, match="did you mean 'train'"):
        sample(0, split="trian")


@given(st.text(max_size=80) | st.lists(st.sampled_from(sorted(readings("en"))), max_size=12).map(" ".join))
def test_any_text_can_be_graded(text: str) -> None:
    grades = grade([text])
    assert 0 <= grades.true <= grades.grammatical <= 1
    assert logprob(text) == -math.inf or not any(check(text))


def test_splits_with_a_probability() -> None:
    """Stories held out for validation are of the same language; of others there is no exact probability."""
    story = microworld.sample(0, split="val")
    assert microworld.logprob(story, "en", "val") == microworld.logprob(story) > -math.inf
    assert microworld.entropy(20, split="val") == microworld.entropy(20)
    for split in ("combinations", "questions", "nonsense"):
        with pytest.raises(ValueError, match="split"):
            microworld.logprob(story, "en", split)
        with pytest.raises(ValueError, match="split"):
            microworld.entropy(20, split=split)
