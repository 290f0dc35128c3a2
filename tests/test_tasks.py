"""The graded tasks: good answers pass, near misses do not, and nothing that a model writes can do harm."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptbook.finetune import all_tasks, good_story, good_translation, reading_matter
from gptbook.workshop.tasks import (
    CLASS,
    LARGEST,
    TONE,
    ask,
    calculate,
    exactly,
    good_code,
    good_couplet,
    good_news,
    good_play,
    good_song,
    good_verse,
    nearest_answer,
    rhyme,
    syllables,
)

TASKS = all_tasks()
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@each_task
def test_good_answers_pass_and_others_do_not(task) -> None:
    items = task.items(40, "test")
    assert all(task.grade(item.truth, item.answer) for item in items)
    for other in ("", "no", "\n", "9**9**9", items[0].prompt):
        assert not task.grade(items[1].truth, other)
    wrong = sum(task.grade(item.truth, other.answer) for item, other in pairwise(items))
    assert wrong <= 24  # a couplet fits every second first line, the rest is right by accident only


@each_task
def test_no_question_is_in_both_splits(task) -> None:
    train, test = task.items(120), task.items(40, "test")
    assert not {item.prompt for item in train} & {item.prompt for item in test}
    assert len({item.prompt for item in test}) == 40
    assert [item.prompt for item in task.items(5)] == [item.prompt for item in task.items(5)]
    assert task.items(5, seed=1) != task.items(5)


@each_task
def test_an_item_is_a_line_of_data(task) -> None:
    from gptbook.finetune import check_messages

    example = task.items(1)[0].example
    check_messages(example["messages"])
    assert example["messages"][-1]["role"] == "assistant"


def test_a_task_without_enough_items_says_so() -> None:
    with pytest.raises(ValueError, match="companion has no 1000"):
        next(task for task in TASKS if task.name == "companion").items(1000, "test")


VERSE = """The gentle cat slept past the ground
And stood beneath a little sound
The golden cat ran past the town
It sang until it saw the gown"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("little sound", "little sea"),  # no rhyme
        ("sound", "ground"),  # the same word is no rhyme
        ("gentle ", ""),  # six syllables
        ("gentle", "noble"),  # a word that is not in the table
        ("\nIt sang until it saw the gown", ""),  # three lines
        ("cat", "dog"),  # another topic
    ],
)
def test_verse(old: str, new: str) -> None:
    assert good_verse(("cat", "ground"), VERSE)
    assert not good_verse(("cat", "ground"), VERSE.replace(old, new))
    assert not good_verse(("cat", "moon"), VERSE)


def test_sound_and_syllables() -> None:
    assert rhyme("by the tune", "the moon") and not rhyme("moon", "moon") and not rhyme("", "moon")
    assert syllables("The silver cat") == 4 and syllables("The zebra") is None and syllables("") is None


def test_song_needs_its_chorus_twice() -> None:
    a, b, c, d = VERSE.split("\n")
    chorus = "Oh, sing to me, my little cat!"
    truth = ("cat", chorus, "ground")
    assert good_song(truth, "\n".join([a, b, chorus, c, d, chorus]))
    assert not good_song(truth, "\n".join([a, b, chorus, c, d, chorus.replace("little", "quiet")]))
    assert not good_song(truth, "\n".join([a, c, chorus, b, d, chorus]))


def test_news_and_play_check_what_was_asked() -> None:
    text = 'KEY LOST IN ATTIC\nATTIC, Monday. Ben lost the key in the attic.\n"We will see," said Ben.'
    truth = ("Ben", "key", "attic", "Monday", "lose")
    assert good_news(truth, text)
    for old, new in (
        ("KEY", "Key"),
        ("Monday", "Friday"),
        ("said Ben", "said Anna"),
        ("We will see", "Well"),
    ):
        assert not good_news(truth, text.replace(old, new))
    scene = "BEN: Where is the key?\nANNA: Look in the attic.\nBEN: Thank you, Anna.\nANNA: Not at all, Ben."
    people = ("Ben", "Anna", "key", "attic")
    assert good_play(people, scene)
    assert not good_play(people, scene.replace("Not at all, Ben.", "That I do not know."))
    assert not good_play(people, scene.replace("ANNA:", "BEN:"))


def test_couplet() -> None:
    first = "青山迎翠柳"
    assert [TONE[c] for c in first] == ["level", "level", "level", "oblique", "oblique"]
    assert [CLASS[c] for c in first] == ["adjective", "noun", "verb", "adjective", "noun"]
    assert good_couplet(first, "碧水送红云")
    for wrong in ("碧水送红", "碧云送红花", "碧水红送云", "碧水送红柳", "碧水送翠云", "碧水送红雪", "abcde"):
        assert not good_couplet(first, wrong), wrong


# ---- expressions ---------------------------------------------------------------------------------


def test_expressions_have_their_values() -> None:
    assert (
        calculate("max(2 * x, -y) ** 2 % 7 // 2 + abs(-3)", {"x": 4, "y": 1}) == max(8, -1) ** 2 % 7 // 2 + 3
    )
    assert good_code("(x + y)", "y + x") and not good_code("(x + y)", "x") and not good_code("(x + y)", "x +")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "9**9**9",
            "10**6 * 10**6",
            "2 ** -1",
            "1 // 0",
            "1 % 0",
            "z",
            "True",
            "1.5",
            "'a'",
            "x.real",
            "x[0]",
        ),
        *(
            "[1]",
            "(lambda: 1)()",
            "1 if x else 2",
            "x == 1",
            "x and 1",
            "~x",
            "1 << 9",
            "x := 3",
            "a = 1",
            "",
        ),
        *(
            "__import__('os').system('echo')",
            "open('f')",
            "max(1)",
            "max(1, 2, key=x)",
            "max(*x)",
            "abs(1, 2)",
        ),
        *(
            "(" * 150,
            "-" * 199 + "1" + "0" * 10,
            "1" * 201,
            "9" * 150,
            "x\n+1",
            "(x for x in y)",
            "f'{x}'",
            "print(1)",
        ),
    ],
)
def test_expressions_can_do_nothing_else(text: str) -> None:
    with pytest.raises(ValueError):
        calculate(text, {"x": 1, "y": 2})


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="xy0123456789+-*/%() ,maxinbs", max_size=40))
def test_expressions_end_in_a_small_number_or_an_error(text: str) -> None:
    try:
        assert abs(calculate(text, {"x": 7, "y": -3})) <= LARGEST
    except ValueError:
        pass


# ---- about the microworld ------------------------------------------------------------------------


def test_a_story_must_be_true() -> None:
    text = (
        "Anna is in the kitchen. Ben is in the garden. The ball is in the kitchen. The key is in the attic. "
        "Anna took the ball. Anna went to the garden. Anna gave the ball to Ben."
    )
    truth = ("Anna", "kitchen", "ball")
    assert good_story(truth, text)
    assert not good_story(truth, text.replace("Anna went to the garden. ", ""))  # Ben is somewhere else
    assert not good_story(("Anna", "attic", "ball"), text) and not good_story(
        ("Anna", "kitchen", "cup"), text
    )
    assert not good_story(truth, text[:100])


def test_a_translation_may_use_other_words_but_not_say_something_else() -> None:
    truth = ("en", [("take", "Ben", "key", "", "")])
    assert good_translation(truth, "Ben took the key.") and good_translation(truth, "Ben picked up the key.")
    for wrong in ("Ben took the cup.", "He took the key.", "Ben took the key. Ben took the key.", "Ben key."):
        assert not good_translation(truth, wrong)
    assert good_translation(("zh", truth[1]), "小本捡起钥匙。")


def test_reading_matter_holds_no_instructions() -> None:
    text = "\n".join(reading_matter(300))
    for word in ("Translate", "Correct:", "Simplify:", "Write a", "Tell a story", "对下联", "翻译"):
        assert word not in text
    assert reading_matter(20) == reading_matter(20) != reading_matter(20, seed=1)


def test_nearest_answer_repeats_the_most_similar_question() -> None:
    train = [ask("the red ball", "one"), ask("the blue key", "two")]
    assert list(nearest_answer(train, [ask("a blue key", ""), ask("red ball", "")])) == ["two", "one"]
    assert exactly("a", " a\n") and not exactly("a", "b")
