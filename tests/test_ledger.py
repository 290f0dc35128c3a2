"""The ledger of formulas (appendix B): complete, true, and as old as the chapters."""

import json
import re
import shutil
from pathlib import Path

import pytest
from bookfiles import NBS

from gptbook.workshop.ledger import (
    Formula,
    as_svg,
    circles,
    draw,
    formulas,
    in_cell,
    misplaced_parents,
    not_in_recap,
    parse_check,
    parse_from,
    summary,
    table,
    tables,
    unchecked,
)
from gptbook.workshop.notebooks import Cell, read_notebooks

LEDGER = formulas(NBS)
NOTEBOOKS = read_notebooks(NBS)
CHAPTERS = [notebook for notebook in NOTEBOOKS if notebook.chapter]
CHECKS = [cell for notebook in NOTEBOOKS for cell in notebook.code if "check" in cell.directives]


def complain(faults: list[str]) -> None:
    """Fail with one fault a line, and nothing else to read."""
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


# ---- what the book says --------------------------------------------------------------------------


def test_every_label_is_listed_once() -> None:
    """Found in another way: the bare labels, wherever they stand in the text."""
    text = "\n".join(cell.source for n in NOTEBOOKS for cell in n.cells if cell.kind == "markdown")
    assert sorted(f.label for f in LEDGER) == sorted(re.findall(r"\{#(eq-[\w-]+)", text))


def test_sixty_formulas_are_checked() -> None:
    assert sum(bool(f.kinds) and not f.definition for f in LEDGER) >= 60


def test_every_formula_is_checked() -> None:
    complain(unchecked(LEDGER))


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda notebook: notebook.name)
def test_every_formula_is_in_its_recap(notebook) -> None:
    complain(not_in_recap([f for f in LEDGER if f.notebook == notebook.name]))


def test_derivations_start_from_formulas_that_came_before() -> None:
    complain(misplaced_parents(LEDGER) + circles(LEDGER))


def test_directives_stand_where_they_are_read() -> None:
    """``#| from:`` is the second line of a check cell; anywhere else the ledger would not see it."""
    faults = []
    for notebook in NOTEBOOKS:
        for cell in notebook.code:
            for number, line in enumerate(cell.source.splitlines()):
                if re.match(r"#\|\s*from\b", line) and (number != 1 or "check" not in cell.directives):
                    faults.append(f"{cell}: '{line}' must be the second line of a check cell")
    complain(faults)


# ---- what is found out ---------------------------------------------------------------------------


def rewritten(folder: Path, name: str, change) -> list[Formula]:
    """The formulas of a copy of one chapter whose list of cells was changed."""
    path = folder / name
    shutil.copy2(NBS / name, path)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"] = change(notebook["cells"])
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return formulas(folder)


def source(cell: dict) -> str:
    return "".join(cell["source"])


@pytest.mark.parametrize("check", CHECKS, ids=lambda cell: f"{cell.notebook}-{cell.directives['check']}")
def test_a_removed_check_is_found_out(check: Cell, tmp_path: Path) -> None:
    """Every check cell of the book in turn; a formula with another check has still that one."""

    def without(cells: list[dict]) -> list[dict]:
        return [cell for cell in cells if source(cell) != check.source]

    assert not unchecked(rewritten(tmp_path, check.notebook, lambda cells: cells))
    after = rewritten(tmp_path, check.notebook, without)
    others = [cell for cell in CHECKS if cell.source != check.source]
    rest = {name for cell in others for name in parse_check(cell.directives["check"])[0]}
    labels, _ = parse_check(check.directives["check"])
    lost = [name for name in labels if not name.startswith("eq-def-") and name not in rest]
    assert sorted(line.split()[0] for line in unchecked(after)) == sorted(lost)


def test_a_missing_row_of_the_recap_is_found_out(tmp_path: Path) -> None:
    def without(cells: list[dict]) -> list[dict]:
        return [c | {"source": source(c).replace("| @eq-attention |", "| attention |")} for c in cells]

    after = rewritten(tmp_path, "06_attention.ipynb", without)
    assert any("eq-attention" in line for line in not_in_recap(after))


PLAIN = {"notebook": "01_x.ipynb", "chapter": 1, "title": "X", "section": "", "section_label": None}


def test_wrong_parents_are_found_out() -> None:
    first = Formula("eq-a", "a", **PLAIN)
    later = Formula("eq-b", "b", **PLAIN | {"notebook": "02_y.ipynb", "chapter": 2}, parents=("eq-a", "eq-c"))
    assert misplaced_parents([first, later]) == ["eq-b: no formula is labelled eq-c"]
    early = Formula("eq-a", "a", **PLAIN, parents=("eq-b",))
    assert misplaced_parents([early, later])[0] == "eq-a: eq-b comes in a later chapter"
    assert circles([early, later]) and not circles([first, later])


@pytest.mark.parametrize("text", ["eq-a", "eq-a exact", "a numeric", "eq-a; eq-b numeric", "numeric"])
def test_a_check_that_is_not_written_as_agreed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write '#\| check:"):
        parse_check(text)


@pytest.mark.parametrize("text", ["", "eq-a numeric", "chapter 6", "eq-a eq-b"])
def test_a_from_that_is_not_written_as_agreed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write '#\| from:"):
        parse_from(text)


def test_a_directive_that_is_not_written_as_agreed_names_its_cell(tmp_path: Path) -> None:
    def spoiled(cells: list[dict]) -> list[dict]:
        return [c | {"source": re.sub(r"^#\| check:.*", "#| check: all of it", source(c))} for c in cells]

    with pytest.raises(ValueError, match=r"06_attention.ipynb cell \d+"):
        rewritten(tmp_path, "06_attention.ipynb", spoiled)


# ---- what the page shows -------------------------------------------------------------------------


def shown(kind: str) -> list[str]:
    """The outputs of a kind in the committed appendix."""
    cells = next(n for n in NOTEBOOKS if n.name == "B_ledger.ipynb").code
    return ["".join(o["data"][kind]) for c in cells for o in c.outputs if kind in o.get("data", {})]


def test_the_appendix_is_as_new_as_the_chapters() -> None:
    stale = "B_ledger.ipynb is older than the chapters: run it again"
    assert shown("text/markdown") == [summary(LEDGER), tables(LEDGER)], stale
    (picture,) = shown("image/svg+xml")
    names = re.findall(r"<text [^>]*>([^<]*)</text>", picture)
    assert [name for name in names if name in {f.name for f in LEDGER}] == [f.name for f in LEDGER], stale
    assert picture.count("<path") > sum(len(f.parents) for f in LEDGER), stale


def test_the_picture_is_the_same_every_time() -> None:
    assert as_svg(draw(LEDGER[:10])) == as_svg(draw(LEDGER[:10]))


def test_no_formula_breaks_its_table() -> None:
    """Each row has four cells, and dollars stand close to what they enclose, as Pandoc wants them."""
    for line in table(LEDGER, LEDGER).splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 5, line
        for formula in re.findall(r"\$([^$]*)\$", line):
            assert formula == formula.strip() != "", line
            assert formula.count("{") == formula.count("}"), line


@pytest.mark.parametrize(
    ("latex", "cell"),
    [
        (r"|x|\le\|y\| .", r"$\vert x\vert \le\Vert y\Vert$"),
        (r"a=b,\qquad c=d", "$a=b$<br>$c=d$"),
        (r"\text{a\qquad b}", r"$\text{a\qquad b}$"),
        (r"\begin{cases}1\\2\end{cases}", None),
        ("x" * 80, None),
    ],
)
def test_formulas_in_cells(latex: str, cell: str | None) -> None:
    assert in_cell(latex) == cell
