"""From a notebook to what a reader should see of it: nbdev's directives are obeyed and removed.

The same staging serves both roads: `staged` returns cells for our own renderer, `write_for_quarto` writes
notebooks into ``_proc/`` that Quarto renders.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from .outline import Outline


class BookError(Exception):
    """Something in the book that must be mended; the message names file and cell."""


@dataclass
class StagedCell:
    """One cell as the reader sees it. ``number`` counts in the source notebook, from 0, hidden cells included."""

    number: int
    kind: str
    source: str
    directives: dict[str, str] = field(default_factory=dict)
    outputs: list[dict] = field(default_factory=list)

    def option(self, name: str, default: object = "") -> object:
        """A directive's value, read as YAML as Quarto does: quotes removed, ``false`` a boolean."""
        text = self.directives.get(name)
        if text is None:
            return default
        if text == "":  # nbdev reads "true" as a directive without a value
            return True
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text


def split_title(source: str) -> tuple[str, str, str] | None:
    """(title, question, the rest) of a cell that begins with a heading of level 1.

    nbdev makes front matter of the whole first cell and would lose the rest of it, the abstract for instance.
    """
    match = re.match(r"\s*# +(?P<title>.+)\n*(?:> +(?P<question>.+)\n*)?(?P<rest>[\s\S]*)", source)
    return (match["title"].strip(), (match["question"] or "").strip(), match["rest"]) if match else None


def _process(path: Path, quarto: bool):
    """The notebook after nbdev's processors, without those that run code."""
    from fastcore.nbio import mk_cell, read_nb
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import NBProcessor
    from nbdev.processors import clean_magics, hide_, hide_line, populate_language, rm_export, strip_ansi

    nb = read_nb(path)
    for number, cell in enumerate(nb.cells):
        cell.metadata["number"] = number
    first = next((c for c in nb.cells if c.cell_type == "markdown"), None)
    if first is not None and (parts := split_title(first.source)):
        title, question, rest = parts
        first.source = f"# {title}\n" + (f"\n> {question}\n" if question else "")
        if rest.strip():
            cell = mk_cell(rest, "markdown")
            cell.metadata["number"] = first.metadata["number"]
            nb.cells.insert(nb.cells.index(first) + 1, cell)
    if quarto:  # GitHub and JupyterLab draw ```mermaid, Quarto ```{mermaid}
        for cell in nb.cells:
            if cell.cell_type == "markdown":
                cell.source = re.sub(r"^(```+) ?mermaid$", r"\1{mermaid}", cell.source, flags=re.M)
                cell.source = cell.source.replace(
                    "](index.ipynb", "](index.qmd"
                )  # what `preface` makes of it
    front = [FrontmatterProc] if quarto else []
    steps = [*front, populate_language, strip_ansi, hide_line, clean_magics, rm_export, hide_]
    NBProcessor(nb=nb, procs=steps, rm_directives="quarto" if quarto else True).process()
    return nb


def _as_text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def staged(path: Path) -> list[StagedCell]:
    """The visible cells of a notebook, or of a Markdown file as one cell."""
    if path.suffix in (".qmd", ".md"):
        return [StagedCell(0, "markdown", path.read_text(encoding="utf-8"))]
    cells = []
    for cell in _process(path, quarto=False).cells:
        directives = {k: _as_text(v).strip() for k, v in (cell.get("directives_") or {}).items()}
        if directives.get("include") == "false":
            continue
        outputs = [json.loads(json.dumps(o)) for o in cell.get("outputs", [])]
        if directives.get("output") == "false":
            outputs = []
        cells.append(
            StagedCell(cell.metadata["number"], cell.cell_type, cell.source.strip("\n"), directives, outputs)
        )
    return cells


def preface(path: Path) -> str:
    """The preface as Markdown. Quarto leaves a chapter without a number only if its heading says so in a file
    of Markdown; a notebook would be chapter 1, and every number after it would be off by one."""
    cells = _process(path, quarto=False).cells
    if any(cell.cell_type != "markdown" for cell in cells):
        raise BookError(f"{path.name}: the preface is words only")
    first, *rest = (cell.source for cell in cells)
    title, _, question = first.partition("\n")
    return "\n\n".join([f"{title} {{.unnumbered}}", question.strip(), *rest]) + "\n"


def _put_glossary(outline: Outline, path: Path) -> None:
    """Put the glossary, with the addresses of the pages, at the head of what Quarto includes after every body."""
    if not path.is_file():
        return
    urls = {page.source: page.url for page in outline.pages}
    entries = json.loads((outline.nbs / "glossary.json").read_text(encoding="utf-8"))
    for entry in entries:
        source, mark, anchor = entry.pop("place").partition("#")
        entry["url"] = urls[source] + mark + anchor
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    data = f'<script type="application/json" id="glossary">{text}</script>\n'
    path.write_text(data + path.read_text(encoding="utf-8"), encoding="utf-8")


def write_for_quarto(outline: Outline, target: Path, katex: Path | None = None) -> None:
    """Write staged notebooks, ``_quarto.yml`` and all other files of ``nbs`` into ``target``, KaTeX beside them."""
    from fastcore.nbio import write_nb

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(outline.nbs, target, ignore=shutil.ignore_patterns("*.ipynb", ".ipynb_checkpoints"))
    for page in outline.pages:
        if page.source == "index.ipynb":
            (target / "index.qmd").write_text(preface(outline.nbs / page.source), encoding="utf-8")
        elif page.source.endswith(".ipynb"):
            nb = _process(outline.nbs / page.source, quarto=True)
            for cell in nb.cells:
                cell.metadata.pop("number", None)
            (target / page.source).parent.mkdir(parents=True, exist_ok=True)
            write_nb(nb, target / page.source)
    book = (outline.root / "_quarto.yml").read_text(encoding="utf-8")
    (target / "_quarto.yml").write_text(book.replace("index.ipynb", "index.qmd"), encoding="utf-8")
    _put_glossary(outline, target / "quarto.html")
    if katex is not None:
        shutil.copytree(katex, target / "katex")
    for folder in {page.source.rpartition("/")[0] for page in outline.pages} - {""}:
        math = {"html-math-method": {"method": "katex", "url": "../" * (folder.count("/") + 1) + "katex/"}}
        text = yaml.safe_dump({"format": {"html": math}})
        (target / folder / "_metadata.yml").write_text(text, encoding="utf-8")
