"""From staged cells to one Markdown text in Pandoc's dialect (Quarto's own), with pictures beside it.

Callouts may open in one cell and close in another, so a chapter has to be parsed as one text. Before each cell
stands a raw comment ``cell 12``, by which errors and anchors find it again.
"""

import base64
import re

from .outline import Page
from .stage import BookError, StagedCell, split_title

# of the book's figures (gptbook.workshop.plotting), so that a picture's inches are the page's inches
DPI = 140
# drawings in shades, whose colours are made to fit the numbers on them
SHADED = re.compile(r"\b(heatmap|imshow|pcolormesh|contourf)\(")
MIME = ("text/html", "image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/latex", "text/plain")


def fence(text: str, attributes: str) -> str:
    """A code block that ``text`` cannot end."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{ticks} {{{attributes}}}\n{text}\n{ticks}"


def raw(text: str, kind: str = "html") -> str:
    """A raw block of a format, which Pandoc hands on untouched."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{ticks}{{={kind}}}\n{text}\n{ticks}"


def quoted(value: object) -> str:
    """An attribute's value in quotes."""
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the file's head."""
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def svg_size(text: str) -> tuple[int, int]:
    """Width and height in pixels, by what a drawing says of itself or else by its box; zeros if it says nothing."""
    head = re.search(r"<svg\b[^>]*>", text)
    head = head[0] if head else ""
    sides = [re.search(rf'\s{side}="([\d.]+)(pt|px|)"', head) for side in ("width", "height")]
    if all(sides):
        return tuple(round(float(side[1]) * (4 / 3 if side[2] == "pt" else 1)) for side in sides)
    box = re.search(r'viewBox="[-\d.]+[ ,]+[-\d.]+[ ,]+([\d.]+)[ ,]+([\d.]+)', head)
    return (round(float(box[1])), round(float(box[2]))) if box else (0, 0)


class Assembler:
    """Writes one page's Markdown. ``files`` collects its pictures: path in the site -> bytes."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.files: dict[str, bytes] = {}
        self.title = ""
        self.question = ""

    def text(self, cells: list[StagedCell]) -> str:
        """The page's Markdown."""
        parts = []
        for cell in cells:
            parts.append(raw(f"cell {cell.number}", "marker"))
            if cell.kind == "markdown":
                parts.append(self._prose(cell))
            elif cell.kind == "code":
                parts.append(self._code(cell))
        return "\n\n".join(part for part in parts if part) + "\n"

    def _prose(self, cell: StagedCell) -> str:
        source = re.sub(r"\A---\n.*?\n---\n", "", cell.source, flags=re.S)
        if not self.title and (parts := split_title(source)):
            self.title, self.question, source = parts
            self.title = re.sub(r"\s*\{[^}]*\}$", "", self.title)
        return re.sub(r"^(```+) ?\{?mermaid\}?$", r"\1 {.mermaid}", source, flags=re.M)

    def _code(self, cell: StagedCell) -> str:
        label, parts = str(cell.option("label")), []
        if cell.option("echo", True) is not False and cell.source.strip():
            parts.append(fence(cell.source, ".python .source"))
        shown = [self._output(cell, i) for i in range(len(cell.outputs))]
        shown = [text for text in self._joined_streams(cell) or shown if text]
        body = "\n\n".join(shown)
        for kind in ("fig", "tbl"):
            if label.startswith(f"{kind}-"):
                if not shown:
                    raise BookError(f"{self.page.source} cell {cell.number}: {label} has no output")
                caption = str(cell.option(f"{kind}-cap"))
                body = f"::: {{#{label} .{kind}}}\n{body}\n\n::: caption\n{caption}\n:::\n:::"
        parts.append(body)
        attributes = f".cell cell={quoted(cell.number)}"
        for name in ("check", "from", "exports", "code-fold"):
            if name in cell.directives:
                attributes += (
                    f" {name}={quoted(cell.option(name) if name == 'code-fold' else cell.directives[name])}"
                )
        return "::: {" + attributes + "}\n" + "\n\n".join(filter(None, parts)) + "\n:::"

    def _joined_streams(self, cell: StagedCell) -> list[str] | None:
        """Streams printed one after the other are one output."""
        joined: list[dict] = []
        for output in cell.outputs:
            if output["output_type"] == "stream" and joined and joined[-1]["output_type"] == "stream":
                joined[-1]["text"] = _text(joined[-1]["text"]) + _text(output["text"])
            else:
                joined.append(dict(output))
        if len(joined) == len(cell.outputs):
            return None
        cell.outputs = joined
        return [self._output(cell, i) for i in range(len(joined))]

    def _output(self, cell: StagedCell, i: int) -> str:
        output = cell.outputs[i]
        if output["output_type"] == "error":
            raise BookError(f"{self.page.source} cell {cell.number}: ended in {output.get('ename')}")
        if output["output_type"] == "stream":
            text = _text(output["text"]).rstrip()
            return fence(text, ".output") if text.strip() else ""
        data = output.get("data", {})
        kind = next((kind for kind in MIME if kind in data), None)
        if kind is None:
            raise BookError(f"{self.page.source} cell {cell.number}: cannot show {', '.join(data)}")
        value = _text(data[kind])
        if kind == "text/html":
            # an interactive piece brings its scripts along; the site has them once, for all
            value = re.sub(r"<(script|style) data-gptbook>.*?</\1>", "", value, flags=re.S)
            still = next((k for k in ("image/svg+xml", "image/png") if k in data), None)
            picture = self._picture(cell, i, still, _text(data[still])) if still else ""
            return raw(value) + (f"\n\n::: still\n{picture}\n:::" if picture else "")
        if kind.startswith("image/"):
            return self._picture(cell, i, kind, value)
        if kind == "text/markdown":
            return value
        if kind == "text/latex":
            return value
        return fence(value.rstrip(), ".output")

    def _picture(self, cell: StagedCell, i: int, kind: str, value: str) -> str:
        name = str(cell.option("label")) or f"cell-{cell.number}"
        name += f"-{i}" if i and len(cell.outputs) > 1 else ""
        ending = {"image/png": "png", "image/jpeg": "jpg"}.get(kind, "svg")
        path = f"figures/{self.page.stem}/{name}.{ending}"
        self.files[path] = value.encode() if ending == "svg" else base64.b64decode(value)
        attributes = f"alt={quoted(' '.join(str(cell.option('fig-alt')).split()))}"
        if not SHADED.search(cell.source):
            attributes = f".drawn {attributes}"
        if ending == "png":
            width, height = png_size(self.files[path])
            attributes += f" width={round(width * 96 / DPI)} height={round(height * 96 / DPI)}"
        elif ending == "svg" and all(size := svg_size(value)):  # its place is kept before it is there
            attributes += f" width={size[0]} height={size[1]}"
        return f"![]({path}){{{attributes}}}"


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
