"""Appendices A and D: every term has its entry, every item of the article its place."""

import json
import re

import pytest
from bookfiles import NBS, notebooks

from gptbook.workshop.notebooks import Notebook

NOTEBOOKS = notebooks()
BY_NAME = {notebook.name: notebook for notebook in NOTEBOOKS}
CHAPTERS = [notebook for notebook in NOTEBOOKS if notebook.chapter]
GLOSSARY = json.loads((NBS / "glossary.json").read_text(encoding="utf-8"))

each_chapter = pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda notebook: notebook.name)


def complain(faults: list[str]) -> None:
    """Fail with one fault a line, and nothing else to read."""
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


# ---- the glossary --------------------------------------------------------------------------------

# Bold that is no term: what every chapter's opening has, and words that are only stressed.
NO_TERMS = {
    *("after this chapter you can", "needs", "runs", "you need", "it runs", "runs in"),
    *("it", "are", "and", "control characters", "the star", "three back"),
}


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()


TERMS = {plain(name) for entry in GLOSSARY for name in [entry["term"], *entry.get("also", [])]}


def bold(notebook: Notebook) -> list[str]:
    """What a chapter sets in bold, run-in headings (they end with a mark) and whole sentences left out."""
    found = []
    for cell in notebook.cells:
        text = "\n".join(line for line in cell.prose.splitlines() if not line.startswith("|"))
        found += re.findall(r"(?<!\*)\*\*([^*]+)\*\*(?!\*)", text)
    terms = [
        name
        for name in found
        if not re.search(r"[.:?!,。：][\"”]?$", name.strip()) and len(name.split()) <= 5
    ]
    return [name for name in terms if re.search(r"[A-Za-z]", name)]


@each_chapter
def test_bold_terms_are_in_the_glossary(notebook: Notebook) -> None:
    missing = sorted({name for name in bold(notebook) if plain(name) not in TERMS | NO_TERMS})
    complain(
        [f"{notebook.name}: **{name}** is neither in nbs/glossary.json nor in NO_TERMS" for name in missing]
    )


def test_glossary_is_sorted_and_says_everything_once() -> None:
    terms = [entry["term"] for entry in GLOSSARY]
    assert terms == sorted(terms, key=str.casefold)
    every = [plain(name) for entry in GLOSSARY for name in [entry["term"], *entry.get("also", [])]]
    complain(
        [f"{name} is in the glossary {every.count(name)} times" for name in TERMS if every.count(name) > 1]
    )


def test_glossary_entries_are_whole() -> None:
    faults = []
    for entry in GLOSSARY:
        term, meaning = entry["term"], entry["meaning"]
        unknown = entry.keys() - {"term", "zh", "meaning", "place", "also"}
        faults += [f"{term}: unknown field {name}" for name in sorted(unknown)]
        if not re.search(r"[\u4e00-\u9fff]", entry["zh"]):
            faults.append(f"{term}: no Chinese in {entry['zh']!r}")
        if not re.fullmatch(r"[A-Z][^.]*(\d\.\d[^.]*)?\.", meaning) or "|" in meaning:
            faults.append(f"{term}: not one sentence: {meaning!r}")
        name, _, anchor = entry["place"].partition("#")
        if name not in BY_NAME:
            faults.append(f"{term}: there is no {name}")
        elif anchor and not any(f"{{#{anchor}}}" in cell.source for cell in BY_NAME[name].cells):
            faults.append(f"{term}: {name} has no label {anchor}")
    complain(faults)


# ---- the article ---------------------------------------------------------------------------------

# The article, item by item, in its order; and its slips.
ITEMS = [
    "title",
    *["1.1", "1.2 a", "1.2 b", "1.2 c", "1.3", "1.4"],
    *["2 a", "2 b", "2 c", "2 d", "2 e", "2 f", "2 g"],
    *["3.1 a", "3.1 b", "3.1 c", "3.1 d", "3.1 e"],
    *[f"training {i}" for i in range(1, 8)],
    *[f"writing {i}" for i in range(1, 7)],
    *[f"3.3 {letter}" for letter in "abcdefg"],
    *[f"3.4 {letter}" for letter in "abcdef"],
    *[f"4.1 {letter}" for letter in "abcdefg"],
    *["4.2 a", "4.2 b"],
]
SLIPS = list("abcdefghij")


def rows(head: str) -> dict[str, dict[str, str]]:
    """The rows of all of appendix D's tables whose first column is ``head``, by that column."""
    found: dict[str, dict[str, str]] = {}
    names: list[str] = []
    for cell in BY_NAME["D_article.ipynb"].cells:
        for line in cell.source.splitlines() if cell.kind == "markdown" else []:
            columns = [part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not columns or set(line) <= set("|:- "):
                names = names if columns else []
            elif not names:
                names = columns
            elif names[0] == head:
                assert columns[0] not in found, f"{head} {columns[0]} is there twice"
                found[columns[0]] = dict(zip(names, columns))
    return found


def test_every_item_of_the_article_is_there() -> None:
    assert list(rows("item")) == ITEMS
    assert list(rows("slip")) == SLIPS
    empty = [f"{key}: nothing under {name!r}" for head in ("item", "slip") for key, row in rows(head).items()
             for name, text in row.items() if not text]  # fmt: skip
    complain(empty)


@pytest.mark.parametrize(("head", "column"), [("item", "where it runs"), ("slip", "shown")])
def test_every_item_of_the_article_has_a_place(head: str, column: str) -> None:
    """A link to what exists, or the number of a chapter that is still to come."""
    written = {notebook.chapter for notebook in CHAPTERS}
    faults = []
    for key, row in rows(head).items():
        links = re.findall(r"\]\(([\w/]*\.ipynb)?(?:#[\w-]+)?\)", row[column])
        rest = re.sub(r"\[[^]]*\]\([^)]*\)", "", row[column])
        numbers = [
            int(n) for part in re.findall(r"chapters? [\d, and]*", rest) for n in re.findall(r"\d+", part)
        ]
        if not links and not numbers:
            faults.append(f"{key}: no place")
        faults += [f"{key}: chapter {n} is written, link to it" for n in numbers if n in written]
        faults += [f"{key}: the book has no chapter {n}" for n in numbers if not 1 <= n <= 24]
    complain(faults)
