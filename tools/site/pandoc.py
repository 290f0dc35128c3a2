"""Running Pandoc, and walking through its syntax trees.

A tree is what ``pandoc -t json`` writes: ``{"t": "Para", "c": [...]}``. An attribute is [id, classes, pairs].
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterable
from functools import cache

READER = "markdown+east_asian_line_breaks-example_lists"

Node = dict


@cache
def executable() -> str:
    """The Pandoc that comes with ``pypandoc-binary``; without it, one on the PATH."""
    try:
        import pypandoc

        return pypandoc.get_pandoc_path()
    except (ImportError, OSError):
        if found := shutil.which("pandoc"):
            return found
    raise FileNotFoundError("the site needs Pandoc: pip install pypandoc-binary")


def run(options: Iterable[str], text: str | bytes, cwd: str | None = None) -> bytes:
    """Pandoc's output for an input; its warnings are errors, except those about odd characters."""
    data = text.encode() if isinstance(text, str) else text
    done = subprocess.run([executable(), *options], input=data, capture_output=True, cwd=cwd, check=False)
    if done.returncode:
        raise RuntimeError(f"pandoc {' '.join(options)}: {done.stderr.decode()}")
    run.warnings = done.stderr.decode()  # type: ignore[attr-defined]
    return done.stdout


def parse(text: str, reader: str = READER) -> list[Node]:
    """The blocks of a text."""
    return json.loads(run(["-f", reader, "-t", "json"], text))["blocks"]


def document(blocks: list[Node], meta: dict | None = None) -> str:
    """Blocks as the JSON of a whole document."""
    return json.dumps({"pandoc-api-version": version(), "meta": meta or {}, "blocks": blocks})


@cache
def version() -> list[int]:
    """The version of Pandoc's types, which a document must name."""
    return json.loads(run(["-f", "markdown", "-t", "json"], ""))["pandoc-api-version"]


def walk(nodes, change: Callable[[Node], Node | list[Node] | None]):
    """A copy of a tree with ``change`` applied from the outside in.

    ``change`` returns None to keep a node (and go into it), or what to put in its place (which is not walked again).
    """
    if isinstance(nodes, list):
        result = []
        for node in nodes:
            if isinstance(node, dict) and "t" in node:
                new = change(node)
                if new is None:
                    new = {**node, "c": walk(node["c"], change)} if "c" in node else node
                result.extend(new if isinstance(new, list) else [new])
            else:
                result.append(walk(node, change))
        return result
    if isinstance(nodes, dict):
        return {key: walk(value, change) for key, value in nodes.items()}
    return nodes


def plain(nodes, code: bool = True) -> str:
    """The words of a tree: formulas as LaTeX, code only if wanted, markers and raw parts left out."""
    parts: list[str] = []

    def collect(node: Node) -> list[Node] | None:
        kind = node["t"]
        if kind == "Str":
            parts.append(node["c"])
        elif kind in ("Space", "SoftBreak", "LineBreak"):
            parts.append(" ")
        elif kind == "Code":
            parts.append(node["c"][1])
        elif kind == "CodeBlock":
            parts.append("\n" + node["c"][1] + "\n" if code else "")
        elif kind == "Math":
            parts.append(node["c"][1])
        elif kind in ("RawBlock", "RawInline"):
            pass
        elif kind == "Quoted":
            parts.append("“" if node["c"][0]["t"] == "DoubleQuote" else "‘")
            walk(node["c"][1], collect)
            parts.append("”" if node["c"][0]["t"] == "DoubleQuote" else "’")
            return []
        elif kind == "Cite":
            walk(node["c"][1], collect)
            return []
        elif kind in ("Para", "Plain", "Header", "Table", "Div"):
            walk(node.get("c", []), collect)
            parts.append("\n")
            return []
        return None

    walk(nodes, collect)
    return "".join(parts)


# ---- making nodes --------------------------------------------------------------------------------


def attr(identifier: str = "", classes: Iterable[str] = (), **pairs: str) -> list:
    """An attribute; ``data_kind="x"`` becomes ``data-kind``."""
    return [identifier, list(classes), [[k.replace("_", "-"), str(v)] for k, v in pairs.items()]]


def string(text: str) -> Node:
    return {"t": "Str", "c": text}


def words(text: str) -> list[Node]:
    """A text as words and spaces."""
    nodes: list[Node] = []
    for i, word in enumerate(text.split(" ")):
        nodes += [{"t": "Space"}] * bool(i) + [string(word)] * bool(word)
    return nodes


def html(text: str, inline: bool = False) -> Node:
    return {"t": "RawInline" if inline else "RawBlock", "c": ["html", text]}


def div(attributes: list, blocks: list[Node]) -> Node:
    return {"t": "Div", "c": [attributes, blocks]}


def span(attributes: list, inlines: list[Node]) -> Node:
    return {"t": "Span", "c": [attributes, inlines]}


def para(inlines: list[Node]) -> Node:
    return {"t": "Para", "c": inlines}


def link(inlines: list[Node], url: str, attributes: list | None = None, title: str = "") -> Node:
    return {"t": "Link", "c": [attributes or attr(), inlines, [url, title]]}
