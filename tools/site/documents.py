"""The whole book in one file: EPUB with MathML, and PDF through Typst. Formulas stay formulas.

The trees are those of the site (numbers and all). What only a screen can do is left out or replaced by its still picture.
"""

import re
from pathlib import Path

from . import pandoc
from .assemble import png_size
from .build import Site
from .cover import art, front
from .outline import KINDS, Page
from .resolve import CHECKED, MARGIN, Context, around, mermaid_title
from .stage import BookError
from .vendor import CACHE, HERE, Drawings, diagram, fetch

CHINESE = "@fontsource/noto-serif-sc/files/noto-serif-sc-chinese-simplified-400-normal.woff"

RENAMED = {"dot.circle": "dot.o"}  # symbols whose names Typst has changed and Pandoc has not


class Printer:
    """Resolves one page's tree for paper. ``kind`` is "epub" or "pdf"."""

    def __init__(
        self, kind: str, page: Page, context: Context, drawings: Drawings, site: Site, printed: set[str]
    ) -> None:
        self.kind, self.page, self.context, self.drawings = kind, page, context, drawings
        self.pictures, self.nbs, self.printed = site.cache, site.nbs, printed
        self.cell = "0"

    def fail(self, what: str) -> None:
        """Stop with the place and the reason."""
        raise BookError(f"{self.page.source} cell {self.cell}: {what}")

    def run(self, blocks: list[pandoc.Node]) -> list[pandoc.Node]:
        """The page as a chapter: its title has level 2, below the parts, and its sections begin at 3."""
        record = self.context.records[self.page.source]
        title = " ".join(filter(None, [self.page.number, record["title"]]))
        head = {"t": "Header", "c": [2, pandoc.attr(self.place(""), ["unnumbered"]), pandoc.words(title)]}
        question = (
            [pandoc.para([{"t": "Emph", "c": pandoc.words(record["question"])}])]
            if record["question"]
            else []
        )
        return [head, *question, *self.walk(blocks)]

    def walk(self, nodes):
        return pandoc.walk(nodes, self._change)

    def _change(self, node: pandoc.Node):
        method = getattr(self, f"on_{node['t'].lower()}", None)
        return method(node) if method else None

    def place(self, anchor: str, page_url: str = "") -> str:
        """An id that is the book's own: labels stay as they are, others get the page's name in front."""
        if re.match(r"(eq|fig|tbl|sec)-", anchor):
            return anchor
        stem = (page_url or self.page.url).removesuffix(".html").replace("/", "-")
        return f"ch-{stem}" + (f"-{anchor}" if anchor else "")

    def raw(self, text: str, inline: bool = False) -> list[pandoc.Node]:
        """Typst code, in the PDF only."""
        if self.kind != "pdf":
            return []
        return [{"t": "RawInline" if inline else "RawBlock", "c": ["typst", text]}]

    def on_math(self, node: pandoc.Node) -> pandoc.Node:
        """Typst sets its own small spaces; TeX's negative ones would pull a bracket over the name before it.
        It sets none between a case and its condition."""
        if self.kind != "pdf":
            return node
        tex = node["c"][1].replace(r"\!", "")
        tex = re.sub(
            r"\\begin\{cases\}.*?\\end\{cases\}", lambda m: m[0].replace("&", r"&\quad "), tex, flags=re.S
        )
        return {"t": "Math", "c": [node["c"][0], tex]}

    # ---- inline ----------------------------------------------------------------------------------

    def on_span(self, node: pandoc.Node):
        (identifier, classes, pairs), inlines = node["c"]
        if MARGIN & {*classes}:  # a page has no margin to spare, but a foot
            return {"t": "Note", "c": [pandoc.para(self.walk(inlines))]}
        if "equation" not in classes:
            return None
        number = f"({dict(pairs)['number']})"
        if self.kind == "pdf":
            return [
                *self.raw(f'#numbered("{number}")[', True),
                *self.walk(inlines),
                *self.raw(f"] <{identifier}>", True),
            ]
        return pandoc.span(
            pandoc.attr(identifier, ["equation"]), [*inlines, pandoc.string("\u00a0" + number)]
        )

    def on_cite(self, node: pandoc.Node):
        citations = node["c"][0]
        if not any(re.match(r"(eq|fig|tbl|sec)-", c["citationId"]) for c in citations):
            return node
        result: list[pandoc.Node] = []
        for citation in citations:
            entry = self.context.labels[citation["citationId"]]
            number = entry["number"] or f"“{entry.get('text', '')}”"
            bare = citation["citationMode"]["t"] == "SuppressAuthor"
            text = number if bare else f"{KINDS[entry['kind']]}\u00a0{number}"
            result += pandoc.words(", ") if result else []
            result += (
                [*self.walk(citation["citationPrefix"]), {"t": "Space"}] if citation["citationPrefix"] else []
            )
            linked = self.linkable(entry["url"])
            result.append(
                pandoc.link([pandoc.string(text)], "#" + citation["citationId"])
                if linked
                else pandoc.string(text)
            )
            result += self.walk(citation["citationSuffix"])
        return result

    def linkable(self, url: str) -> bool:
        """Whether a page is in the printed book."""
        return url in self.printed

    def on_link(self, node: pandoc.Node):
        attributes, inlines, (url, title) = node["c"]
        inlines = self.walk(inlines)
        if re.match(r"[a-z][a-z0-9+.-]*:", url):
            return {"t": "Link", "c": [attributes, inlines, [url, title]]}
        path, _, anchor = url.partition("#")
        folder = self.page.source.rpartition("/")[0]
        source = re.sub(r"^\.\./", "", path) if path.startswith("../") else f"{folder}/{path}".lstrip("/")
        target = self.context.urls[source] if path else self.page.url
        if not self.linkable(target):
            return inlines
        return {"t": "Link", "c": [attributes, inlines, ["#" + self.place(anchor, target), title]]}

    def on_image(self, node: pandoc.Node) -> pandoc.Node:
        (identifier, classes, pairs), inlines, (url, title) = node["c"]
        path = self.pictures / url
        if not path.is_file():  # a file of the book's own
            path = (self.nbs / self.page.source).parent / url
        options = dict(pairs)
        if "fig-alt" in options:
            pairs = [["alt", options["fig-alt"]]]
        if self.kind == "pdf" and "width" in options:
            pairs = [
                ["alt", options.get("alt", "")],
                ["width", f"{min(100, round(int(options['width']) / 6.6))}%"],
            ]
        if self.kind == "pdf" and tall(path):  # as high as a page allows that also holds its caption
            pairs = [["alt", dict(pairs).get("alt", "")], ["height", "82%"]]
        return {"t": "Image", "c": [[identifier, classes, pairs], inlines, [str(path), title]]}

    # ---- blocks ----------------------------------------------------------------------------------

    def on_rawblock(self, node: pandoc.Node):
        if node["c"][0] == "marker":
            self.cell = node["c"][1].removeprefix("cell ")
        return []

    def on_rawinline(self, node: pandoc.Node):
        return {"t": "LineBreak"} if re.fullmatch(r"<br ?/?>", node["c"][1]) else []

    def on_header(self, node: pandoc.Node) -> pandoc.Node:
        level, (identifier, _, pairs), inlines = node["c"]
        number = dict(pairs).get("number", "")
        shown = [*pandoc.words(number + " "), *inlines] if number and level == 2 else inlines
        return {
            "t": "Header",
            "c": [level + 1, pandoc.attr(self.place(identifier), ["unnumbered"]), self.walk(shown)],
        }

    def on_codeblock(self, node: pandoc.Node):
        (_, classes, _), text = node["c"]
        if "mermaid" in classes:
            svg = diagram(self.drawings.get("mermaid", text.strip()), mermaid_title(text), printed=True)
            path = self.pictures / "diagrams" / f"{self.page.stem.replace('/', '-')}-{self.cell}.svg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(svg, encoding="utf-8")
            return pandoc.para(
                [
                    {
                        "t": "Image",
                        "c": [pandoc.attr(alt=mermaid_title(text), width="100%"), [], [str(path), ""]],
                    }
                ]
            )
        kind = "output" if "output" in classes else next((c for c in classes if c != "source"), "text")
        block = {"t": "CodeBlock", "c": [pandoc.attr("", [] if kind == "output" else [kind]), text]}
        if self.kind == "pdf" and kind == "output":
            return [*self.raw("#output["), block, *self.raw("]")]
        return pandoc.div(pandoc.attr("", ["output"]), [block]) if kind == "output" else block

    def on_div(self, node: pandoc.Node):
        (identifier, classes, pairs), blocks = node["c"]
        options = dict(pairs)
        if "cell" in classes:
            self.cell = options["cell"]
            return self._cell(options, blocks)
        for kind in ("fig", "tbl"):
            if kind in classes and identifier:
                return self._float(kind, identifier, options["number"], blocks)
        if callout := next((c for c in classes if c.startswith("callout-")), None):
            title = options.get("title") or callout.removeprefix("callout-").capitalize()
            inner = self.walk(blocks)
            if self.kind == "pdf":
                return [*self.raw(f'#callout("{title}")['), *inner, *self.raw("]")]
            return pandoc.div(
                pandoc.attr("", ["callout"]),
                [pandoc.para([{"t": "Strong", "c": pandoc.words(title)}]), *inner],
            )
        if MARGIN & {*classes}:
            inner = self.walk(blocks)
            if self.kind == "pdf":
                return [*self.raw("#aside["), *inner, *self.raw("]")]
            return pandoc.div(pandoc.attr("", ["aside"]), inner)
        if "still" in classes:
            return self.walk(blocks)
        return None

    def _cell(self, options: dict[str, str], blocks: list[pandoc.Node]) -> list[pandoc.Node]:
        line: list[pandoc.Node] = []
        if "check" in options:
            labels, _, kind = options["check"].rpartition(" ")
            line = pandoc.words(f"✓ {CHECKED.get(kind, kind)}: ")
            for i, label in enumerate(re.split(r",\s*", labels)):
                entry = self.context.labels[label]
                text = [pandoc.string(f"({entry['number']})")]
                line += pandoc.words(", ") if i else []
                line.append(pandoc.link(text, "#" + label) if self.linkable(entry["url"]) else text[0])
        place = self.place(f"cell-{self.cell}")
        head = [pandoc.div(pandoc.attr(place, ["check"]), [pandoc.para(line)])] if line else []
        mark = (
            []
            if head
            else [pandoc.div(pandoc.attr(place), [])]
            if self.kind == "epub"
            else self.raw(f"#metadata(none) <{place}>")
        )
        return [*mark, *head, *self.walk(blocks)]

    def _float(self, kind: str, identifier: str, number: str, blocks: list[pandoc.Node]) -> list[pandoc.Node]:
        printed, blocks = around(kind, blocks)
        if printed:
            return [*self.walk(printed), *self._float(kind, identifier, number, blocks)]
        body, caption = self.walk(blocks[:-1]), self.walk(blocks[-1]["c"][1])
        words = {"t": "Strong", "c": pandoc.words(f"{KINDS[kind]} {number}.")}
        inlines = caption[0]["c"] if caption and caption[0]["t"] in ("Para", "Plain") else []
        text = [words, {"t": "Space"}, *inlines]
        pictures = [b for b in body if b["t"] in ("Para", "Plain") and any(i["t"] == "Image" for i in b["c"])]
        others = [b for b in body if b not in pictures]
        if kind == "tbl" or not pictures:
            return [pandoc.div(pandoc.attr(identifier), [pandoc.para(text), *body])]
        content = [{"t": "Plain", "c": [i for b in pictures for i in b["c"]]}]
        figure = {"t": "Figure", "c": [pandoc.attr(), [None, [{"t": "Plain", "c": text}]], content]}
        # the id on a div: Pandoc's EPUB finds no figure by its id from another chapter
        return [*others, pandoc.div(pandoc.attr(identifier), [figure])]


def blocks_of_book(site: Site, kind: str) -> list[pandoc.Node]:
    """The printed book's tree: parts, chapters, appendices; not the workshop, nor the API reference."""
    pages = [page for page in site.outline.pages if not page.workshop and page.source.endswith(".ipynb")]
    data = {page.source: site._read(page) for page in site.outline.pages}
    context = Context({source: d["record"] for source, d in data.items()}, site.keys, site.glossary)
    printed = {page.url for page in pages}
    site.drawings.prepare(tuple(w) for d in data.values() for w in d["wanted"] if w[0] == "mermaid")
    blocks: list[pandoc.Node] = []
    part = ""
    for page in pages:
        if page.part != part:
            part = page.part
            name = "part-" + re.sub(r"\W+", "-", part.lower())
            blocks.append({"t": "Header", "c": [1, pandoc.attr(name, ["unnumbered"]), pandoc.words(part)]})
        blocks += Printer(kind, page, context, site.drawings, site, printed).run(data[page.source]["blocks"])
    blocks.append(
        {"t": "Header", "c": [2, pandoc.attr("references", ["unnumbered"]), pandoc.words("References")]}
    )
    blocks.append(pandoc.div(pandoc.attr("refs"), []))
    return blocks


def write(kind: str, site: Site | None = None, out: Path | None = None) -> Path:
    """Write the book as "epub" or "pdf", by default into ``_site``."""
    site = site or Site()
    out = out or site.target / f"{site.settings.get('lib_name', 'book')}.{kind}"
    out.parent.mkdir(exist_ok=True)
    blocks = blocks_of_book(site, kind)
    records = [site._read(page)["record"] for page in site.outline.pages]
    inlines = lambda text: {"t": "MetaInlines", "c": pandoc.words(text)}  # noqa: E731
    meta = {
        name: inlines(text)
        for name, text in (
            ("title", site.outline.title),
            ("subtitle", site.outline.subtitle),
            ("author", site.outline.author),
            ("lang", site.outline.lang),
        )
        if text
    }
    text = pandoc.document(blocks, meta)
    options = ["-f", "json", "--citeproc", f"--bibliography={site.bibliography}", "-M", "link-citations=true"]
    if kind == "epub":
        style = HERE / "assets" / "epub.css"
        picture = site.cache / "cover.svg"
        book = site.outline
        picture.write_text(front(records, book.title, book.subtitle, book.author), encoding="utf-8")
        pandoc.run(
            [
                *options,
                "-t",
                "epub3",
                "--mathml",
                "--toc",
                "--toc-depth=3",
                "--split-level=2",
                f"--css={style}",
                f"--epub-cover-image={picture}",
                "-o",
                str(out),
            ],
            text,
        )
        complain(pandoc.run.warnings)
        return out
    template = HERE / "assets" / "book.typ"
    typst = pandoc.run([*options, "-t", "typst", "--wrap=none", f"--template={template}"], text).decode()
    complain(pandoc.run.warnings)
    folder = site.cache / "pdf"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "art.svg").write_text(art(records), encoding="utf-8")
    source = folder / "book.typ"
    for old, new in RENAMED.items():
        typst = typst.replace(old, new)
    # a large sign, which Pandoc puts into a box of text, where its name would be letters
    typst = re.sub(r"(#scale\([^)]*\))\[([a-z]+(?:\.[a-z]+)+)\]", r"\1[$\2$]", typst)
    source.write_text(typst.replace(str(site.root), ""), encoding="utf-8")
    import typst as compiler

    try:
        compiler.compile(str(source), output=str(out), root=str(site.root), font_paths=[str(fonts(folder))])
    except compiler.TypstError as error:
        raise BookError(f"Typst: {error.diagnostic}") from error
    return out


def tall(path: Path) -> bool:
    """Whether a picture is much higher than wide."""
    if path.suffix == ".svg":
        box = re.search(r'viewBox="([^"]+)"', path.read_text(encoding="utf-8"))
        width, height = map(float, box[1].replace(",", " ").split()[2:]) if box else (1, 1)
    elif path.suffix == ".png":
        width, height = png_size(path.read_bytes())
    else:
        return False
    return height > 1.3 * width


def complain(warnings: str) -> None:
    """A formula that Pandoc could not read would stand there as LaTeX."""
    faults = re.findall(r"\[WARNING\] (Could not convert TeX math[\s\S]*?)(?=\n\[|\Z)", warnings)
    if faults:
        raise BookError("\n".join(" ".join(fault.split()) for fault in faults))


def fonts(folder: Path) -> Path:
    """A folder with the Chinese font as Typst reads it (the other fonts are built into Typst)."""
    target = folder / "fonts"
    target.mkdir(exist_ok=True)
    if not (target / "chinese.ttf").is_file():
        from fontTools.ttLib import TTFont

        font = TTFont(fetch(HERE / "print", CACHE / "npm-print") / CHINESE)
        font.flavor = None
        font.save(target / "chinese.ttf")
    return target
