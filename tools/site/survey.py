"""First pass over a page's tree: number what has a label, and note down what other pages need to know of it."""

import ast
import re
import threading

from . import pandoc
from .outline import Page
from .search import sections
from .stage import BookError

LABEL = re.compile(r"\{#(eq-[\w-]+)\}(.*)$", flags=re.S)
_PARSING = (
    threading.Lock()
)  # Python 3.11 counts the depth of a tree for all threads together (cpython#106905)
LISTLIKE = re.compile(r"^([-*+]|\d+[.)])$")


class Survey:
    """Numbers a page's formulas, figures, tables and sections by chapter, in reading order, as Quarto does.

    ``record`` is plain data for a cache: labels, anchors, checks, definitions, headings, formulas and amounts.
    """

    def __init__(self, page: Page, title: str, question: str) -> None:
        self.page = page
        self.cell = "0"
        self.section = ""
        self.counts = {"eq": 0, "fig": 0, "tbl": 0}
        self.heading = [0] * 7
        self.record: dict = {
            "source": page.source, "url": page.url, "number": page.number, "title": title, "question": question.replace("`", ""),
            "labels": {}, "anchors": [], "checks": [], "defines": {}, "imports": [], "headings": [], "cites": [],
            "words": 0, "formulas": 0, "code_lines": 0, "runs": "",
        }  # fmt: skip

    def fail(self, what: str) -> None:
        """Stop with the place and the reason."""
        raise BookError(f"{self.page.source} cell {self.cell}: {what}")

    def run(self, blocks: list[pandoc.Node]) -> list[pandoc.Node]:
        """The tree with numbers in it."""
        blocks = pandoc.walk(blocks, self._change)
        self.record["sections"] = sections(blocks)
        prose = pandoc.plain(blocks, code=False)
        self.record["words"] = len(re.findall(r"[A-Za-z0-9'’-]+", prose)) + len(
            re.findall(r"[\u4e00-\u9fff]", prose)
        )
        if runs := re.search(r"Runs\s+in\s+((?:about|under|a few)\s.+?)(?:\s+on\s|[.,;])", prose):
            self.record["runs"] = " ".join(runs[1].split())
        return blocks

    def _number(self, kind: str) -> str:
        self.counts[kind] += 1
        return ".".join(filter(None, [self.page.number, str(self.counts[kind])]))

    def _label(self, label: str, number: str, **more: str) -> None:
        if label in self.record["labels"]:
            self.fail(
                f"the label {label} is there twice, first in cell {self.record['labels'][label]['cell']}"
            )
        kind = label.partition("-")[0]
        self.record["labels"][label] = {
            "kind": kind,
            "number": number,
            "cell": self.cell,
            "section": self.section,
            **more,
        }

    # ---- the nodes -------------------------------------------------------------------------------

    def _change(self, node: pandoc.Node) -> pandoc.Node | list[pandoc.Node] | None:
        method = getattr(self, f"on_{node['t'].lower()}", None)
        return method(node) if method else None

    def on_rawblock(self, node: pandoc.Node) -> None:
        if node["c"][0] == "marker":
            self.cell = node["c"][1].removeprefix("cell ")

    def on_header(self, node: pandoc.Node) -> pandoc.Node:
        level, (identifier, classes, pairs), inlines = node["c"]
        number = ""
        if level == 1:
            self.fail(f"a second title: {pandoc.plain(inlines)!r}")
        if "unnumbered" not in classes and self.page.number and level > 1:
            self.heading[level] += 1
            self.heading[level + 1 :] = [0] * (6 - level)
            number = ".".join([self.page.number, *map(str, self.heading[2 : level + 1])])
        self.section = re.sub(r"\s+", " ", pandoc.plain(inlines)).strip()
        if identifier.startswith("sec-"):
            self._label(identifier, number, text=self.section)
        self.record["anchors"].append(identifier)
        heading = {
            "level": level,
            "id": identifier,
            "number": number,
            "text": self.section,
            "inlines": inlines,
        }
        self.record["headings"].append(heading)
        return {"t": "Header", "c": [level, [identifier, classes, [*pairs, ["number", number]]], inlines]}

    def on_para(self, node: pandoc.Node) -> pandoc.Node:
        for before, after in zip(node["c"], node["c"][1:]):
            if before["t"] == "SoftBreak" and after["t"] == "Str" and LISTLIKE.match(after["c"]):
                self.fail(f"a list needs an empty line before it: {pandoc.plain(node['c'])[:60]!r}")
        return {"t": node["t"], "c": pandoc.walk(self._equations(node["c"]), self._change)}

    on_plain = on_para

    def _equations(self, inlines: list[pandoc.Node]) -> list[pandoc.Node]:
        """Formula, space, ``{#eq-x}`` become one numbered span."""
        result: list[pandoc.Node] = []
        for node in inlines:
            match = LABEL.match(node["c"]) if node["t"] == "Str" else None
            if not match:
                result.append(node)
                continue
            while result and result[-1]["t"] in ("Space", "SoftBreak"):
                result.pop()
            if not result or result[-1]["t"] != "Math" or result[-1]["c"][0]["t"] != "DisplayMath":
                self.fail(f"{{#{match[1]}}} does not follow a displayed formula")
            formula, label = result.pop(), match[1]
            number = self._number("eq")
            tex = formula["c"][1].strip()
            self._label(label, number, tex=tex)
            result.append(pandoc.span(pandoc.attr(label, ["equation"], number=number), [formula]))
            if match[2]:
                result.append(pandoc.string(match[2]))
        return result

    def on_math(self, node: pandoc.Node) -> None:
        self.record["formulas"] += node["c"][0]["t"] == "DisplayMath"

    def on_div(self, node: pandoc.Node) -> pandoc.Node | None:
        (identifier, classes, pairs), blocks = node["c"]
        options = dict(pairs)
        if "cell" in classes:
            self.cell = options["cell"]
            self.record["anchors"].append(f"cell-{self.cell}")
            if "check" in options:
                self._check(options["check"], options.get("from", ""))
            self._code(blocks, "exports" in options)
        for kind in ("fig", "tbl"):
            if kind in classes and identifier:
                number = self._number(kind)
                caption = " ".join(pandoc.plain(blocks[-1:]).split())
                self._label(identifier, number, text=caption)
                new = [identifier, classes, [*pairs, ["number", number]]]
                return {"t": "Div", "c": [new, pandoc.walk(blocks, self._change)]}
        if identifier:
            self.record["anchors"].append(identifier)
        return None

    def on_figure(self, node: pandoc.Node) -> pandoc.Node | None:
        """A picture in the text, ``![caption](file){#fig-x}``, is a figure like those that cells make."""
        (identifier, classes, pairs), (_, caption), blocks = node["c"]
        if not identifier.startswith("fig-"):
            return None
        body = pandoc.div(pandoc.attr("", ["caption"]), [{**b, "t": "Para"} for b in caption])
        return self.on_div(pandoc.div([identifier, [*classes, "fig"], pairs], [*blocks, body]))

    def _check(self, text: str, parents: str) -> None:
        match = re.fullmatch(r"(eq-[\w-]+(?:,\s*eq-[\w-]+)*)\s+(\w+)", text)
        if not match:
            self.fail(f"'#| check: {text}' is not 'eq-name[, eq-name] kind'")
        check = {"labels": re.split(r",\s*", match[1]), "kind": match[2], "cell": self.cell}
        self.record["checks"].append({**check, "from": re.findall(r"eq-[\w-]+", parents)})

    def _code(self, blocks: list[pandoc.Node], exported: bool) -> None:
        """What a cell defines for the package and what it imports from it."""
        for block in blocks:
            if block["t"] != "CodeBlock" or "source" not in block["c"][0][1]:
                continue
            text = block["c"][1]
            self.record["code_lines"] += text.count("\n") + 1
            kept = [
                re.match(r"\s*", line)[0] + "pass" if re.match(r"\s*[%!]", line) else line
                for line in text.splitlines()
            ]
            try:
                with _PARSING:
                    tree = ast.parse("\n".join(kept))
            except SyntaxError:
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gptbook":
                    self.record["imports"] += [
                        a.name for a in node.names if not a.asname or a.asname == a.name
                    ]
            if exported:
                for node in tree.body:
                    for name in defined(node):
                        self.record["defines"][name] = f"cell-{self.cell}"  # of several versions the last

    def on_cite(self, node: pandoc.Node) -> None:
        self.record["cites"] += [c["citationId"] for c in node["c"][0]]


def defined(node: ast.stmt) -> list[str]:
    """The public names that a statement at the top level defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        names = [node.name]
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
    else:
        names = []
    return [name for name in names if not name.startswith("_")]
