"""Second pass: with the whole book's labels known, turn a page's tree into what the HTML page shows."""

import contextlib
import html as escape
import posixpath
import re
import unicodedata
from dataclasses import dataclass, field

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from . import pandoc
from .outline import KINDS, Page
from .stage import BookError
from .vendor import Drawings, diagram

CHECKED = {
    "symbolic": "checked symbolically",
    "exhaustive": "checked exhaustively",
    "numeric": "checked numerically",
    "montecarlo": "checked by Monte Carlo",
}
KIND = {"Equation": "eq", "Figure": "fig", "Table": "tbl", "Section": "sec"}
# What a reader must never see: syntax that somebody should have resolved.
LEFTOVER = re.compile(r"@(?:eq|fig|tbl|sec)-|\{#|^:::|^#\||\[\^[\w-]+\]|\{\.[a-z-]+\}")
FOOTNOTES = "<!--footnotes-->"  # where they go: before the references
MARGIN = {"aside", "column-margin"}  # Quarto's names for what stands beside the text
WIDE_PICTURE = 440  # pixels; what is wider may be read by scrolling on a phone
LEAST = {
    ".svg": 0.95
}  # the share of its width that a picture keeps there, for its labels; others 0.78, as in style.css
STACKED = 60  # characters in a row on average, from which a table of words is a list of blocks on a phone
GLUED = 24  # characters of TeX; a longer formula may need its own breaks on a phone
# What may not be torn off a formula by the end of a line: an opening bracket before, punctuation or "th" after.
BEFORE, AFTER = re.compile(r"[(\[“‘]+$"), re.compile(r"^(?:[’']s\b|[a-z]{1,3}\b)?[^\w\s]*")


@dataclass
class Context:
    """What is known of the whole book. Plain data only, so that its hash says whether pages are out of date."""

    records: dict[str, dict] = field(default_factory=dict)  # by source
    keys: list[str] = field(default_factory=list)  # of the bibliography
    glossary: list[dict] = field(default_factory=list)
    api: dict[str, str] = field(default_factory=dict)  # exported name -> anchor on the API page
    api_url: str = ""
    glossary_url: str = ""

    def __post_init__(self) -> None:
        self.labels = {
            label: {**entry, "url": r["url"]}
            for r in self.records.values()
            for label, entry in r["labels"].items()
        }
        self.urls = {source: r["url"] for source, r in self.records.items()}
        self.anchors = {r["url"]: {*r["anchors"], *r["labels"], ""} for r in self.records.values()}
        self.checks: dict[str, list[dict]] = {}
        for record in self.records.values():
            for check in record["checks"]:
                for label in check["labels"]:
                    self.checks.setdefault(label, []).append({**check, "url": record["url"]})
        self.defines = {
            name: f"{r['url']}#{anchor}"
            for r in self.records.values()
            for name, anchor in r["defines"].items()
            if name in self.api
        }
        self.terms: dict[str, dict] = {}
        for entry in self.glossary:
            for name in [entry["term"], *entry.get("also", ())]:
                self.terms[" ".join(name.casefold().split())] = entry


def mathml_core(math: str) -> str:
    """What browsers ignore in MathML, said so that they do not: a letter's style by the letter's own code point,
    and the small space between the name of a function and a letter, a fraction or a sum after it."""

    def letter(style: str, one: str) -> str:
        name = unicodedata.name(one, "").replace("LATIN ", "").replace("GREEK ", "").replace("LETTER ", "")
        for word in (f"MATHEMATICAL {style} {name}", f"{style} {name}"):  # ℝ and its like are older
            with contextlib.suppress(KeyError):
                return unicodedata.lookup(word)
        return one

    def styled(match: re.Match) -> str:
        style = match[2].upper().replace("-", " ") if match[2] != "double-struck" else "DOUBLE-STRUCK"
        return f"<{match[1]}>{''.join(letter(style, one) for one in match[3])}</{match[1]}>"

    styles = "bold|bold-italic|double-struck|script|fraktur|sans-serif"
    math = re.sub(rf'<(m[ino]) mathvariant="({styles})">([^<&]+)</\1>', styled, math)
    space = '<mspace width="0.1667em"></mspace>'
    return re.sub(r"<mo>\u2061</mo>(?!<mo|</mrow)", f"<mo>\u2061</mo>{space}", math)


class Resolver:
    """Resolves one page for HTML. ``search`` collects its sections' words, ``previews`` the formulas of other pages."""

    def __init__(self, page: Page, context: Context, drawings: Drawings) -> None:
        self.page, self.context, self.drawings = page, context, drawings
        self.record = context.records[page.source]
        self.cell = "0"
        self.previews: dict[str, str] = {}
        self.seen_terms: set[str] = set()
        self.cited = False
        self.images: list[str] = []
        self.loading = "lazy"
        self.lean = (
            False  # formulas as MathML alone, a seventh of KaTeX's HTML, for a page that has very many
        )
        self.drawn_width = lambda url: 0  # of a picture without a width of its own, in pixels
        self.no_terms = page.workshop or page.number == "A" or page.source.startswith(("B_", "C_"))
        mine = [*self.record["imports"], *self.record["defines"]]
        if page.source.startswith(("A_", "B_", "C_", "D_")):  # these speak of all chapters
            mine = list(context.defines)
        self.linked = {name: context.defines[name] for name in mine if name in context.defines}

    def fail(self, what: str) -> None:
        """Stop with the place and the reason."""
        raise BookError(f"{self.page.source} cell {self.cell}: {what}")

    def run(self, blocks: list[pandoc.Node]) -> list[pandoc.Node]:
        """The resolved tree."""
        resolved = [*self.walk(blocks), pandoc.html(FOOTNOTES)]
        if self.cited:
            resolved.append(
                {
                    "t": "Header",
                    "c": [2, pandoc.attr("references", ["unnumbered"]), [pandoc.string("References")]],
                }
            )
            resolved.append(pandoc.div(pandoc.attr("refs"), []))
        return resolved

    def walk(self, nodes):
        return pandoc.walk(nodes, self._change)

    def href(self, url: str) -> str:
        """A link from this page to an address in the site."""
        path, _, anchor = url.partition("#")
        if path == self.page.url and anchor:
            return "#" + anchor
        return self.page.up + path + ("#" + anchor if anchor else "")

    def _change(self, node: pandoc.Node):
        method = getattr(self, f"on_{node['t'].lower()}", None)
        return method(node) if method else None

    # ---- inline ----------------------------------------------------------------------------------

    def on_str(self, node: pandoc.Node) -> None:
        if LEFTOVER.search(node["c"]) or "$$" in node["c"]:
            self.fail(f"left over in the text: {node['c']!r}")

    def on_math(self, node: pandoc.Node) -> pandoc.Node:
        kind = "display" if node["c"][0]["t"] == "DisplayMath" else "math"
        try:
            drawn = self.drawings.get(kind, node["c"][1].strip())
        except BookError as error:
            self.fail(str(error))
        if self.lean and (found := re.search(r"<math\b.*?</math>", drawn, flags=re.S)):
            drawn = f'<span class="mathml">{mathml_core(found[0])}</span>'
        if kind == "display":
            tex = escape.escape(node["c"][1].strip(), quote=True)
            drawn = f'<span class="formula" tabindex="0" role="group" aria-label="Formula" data-tex="{tex}">{drawn}</span>'
        return pandoc.html(drawn, inline=True)

    def on_span(self, node: pandoc.Node):
        (identifier, classes, pairs), inlines = node["c"]
        if MARGIN & {*classes}:
            return pandoc.span(pandoc.attr(identifier, ["aside"], role="note"), self.walk(inlines))
        if "equation" not in classes:
            return None
        number = dict(pairs)["number"]
        badges = ""
        seen = set()
        for check in self.context.checks.get(identifier, ()):
            if check["kind"] not in seen:
                seen.add(check["kind"])
                text = CHECKED.get(check["kind"], check["kind"])
                href = self.href(f"{check['url']}#cell-{check['cell']}")
                badges += f'<a class="badge" href="{href}" title="{text}: go to the cell">{check["kind"]}</a>'
        side = f'<span class="side"><a class="number" href="#{identifier}">({number})</a>{badges}</span>'
        return pandoc.span(
            pandoc.attr(identifier, classes), [*self.walk(inlines), pandoc.html(side, inline=True)]
        )

    def on_cite(self, node: pandoc.Node):
        citations = node["c"][0]
        ids = [c["citationId"] for c in citations]
        ours = [re.match(r"(eq|fig|tbl|sec)-", i) is not None for i in ids]
        if not any(ours):
            for key in ids:
                if key not in self.context.keys:
                    self.fail(f"the bibliography has no entry {key}")
            self.cited = True
            return node  # citeproc's business
        if not all(ours):
            self.fail(f"a reference and a citation in one bracket: {', '.join(ids)}")
        result: list[pandoc.Node] = []
        for citation in citations:
            result += pandoc.words(", ") if result else []
            result += (
                [*self.walk(citation["citationPrefix"]), {"t": "Space"}] if citation["citationPrefix"] else []
            )
            result.append(
                self._reference(citation["citationId"], citation["citationMode"]["t"] == "SuppressAuthor")
            )
            result += self.walk(citation["citationSuffix"])
        return result

    def _reference(self, label: str, bare: bool) -> pandoc.Node:
        entry = self.context.labels.get(label)
        if entry is None:
            self.fail(f"there is no {label}")
        number = entry["number"] or f"“{entry.get('text', label)}”"
        text = number if bare else f"{KINDS[entry['kind']]}\u00a0{number}"
        if entry["kind"] == "eq" and entry["url"] != self.page.url:
            self.previews[label] = self.drawings.get("display", entry["tex"])
        pairs = {"data_ref": label}
        if entry["kind"] in ("fig", "tbl", "sec"):
            pairs["data_text"] = entry.get("text", "")
        return pandoc.link(
            [pandoc.string(text)], self.href(f"{entry['url']}#{label}"), pandoc.attr("", ["ref"], **pairs)
        )

    def on_link(self, node: pandoc.Node) -> pandoc.Node:
        (identifier, classes, pairs), inlines, (url, title) = node["c"]
        if {"term", "index"} & {*classes}:  # whose names lead nowhere else
            return node
        inlines = self.walk_without_terms(inlines)
        if re.match(r"[a-z][a-z0-9+.-]*:", url):
            classes = [*classes, "external"] if url.startswith("http") else classes
            return {
                "t": "Link",
                "c": [[identifier, classes, [*pairs, ["rel", "noopener"]]], inlines, [url, title]],
            }
        return {"t": "Link", "c": [[identifier, classes, pairs], inlines, [self._target(url), title]]}

    def _target(self, url: str) -> str:
        path, _, anchor = url.partition("#")
        if path:
            folder = posixpath.dirname(self.page.source)
            source = posixpath.normpath(posixpath.join(folder, path))
            if source not in self.context.urls:
                self.fail(f"a link to {url}, which the book does not have")
            target = self.context.urls[source]
        else:
            target = self.page.url
        if anchor not in self.context.anchors[target]:
            self.fail(f"a link to {url}, but there is no {anchor}")
        return self.href(f"{target}#{anchor}" if anchor else target)

    def on_code(self, node: pandoc.Node) -> pandoc.Node | None:
        match = re.match(r"([A-Za-z_]\w*)\b", node["c"][1])
        if match and match[1] in self.context.defines and re.fullmatch(r"[\w.]+(\(.*\))?", node["c"][1]):
            name = match[1]
            if len(name) > 3 and (name in self.linked or name[0].isupper() or "_" in name):
                title = f"defined in {self._where(self.context.defines[name])}"
                return pandoc.link(
                    [node], self.href(self.context.defines[name]), pandoc.attr("", ["name"]), title
                )
        return None

    def _where(self, url: str) -> str:
        record = next(r for r in self.context.records.values() if r["url"] == url.partition("#")[0])
        return (
            f"chapter {record['number']}, {record['title']}"
            if record["number"].isdigit()
            else record["title"]
        )

    def on_image(self, node: pandoc.Node) -> pandoc.Node:
        (identifier, classes, pairs), inlines, (url, title) = node["c"]
        if re.match(r"[a-z]+:", url):
            self.fail(f"a picture from elsewhere: {url}")
        if not url.startswith("figures/"):
            url = posixpath.normpath(posixpath.join(posixpath.dirname(self.page.source), url))
            classes = [*classes, "drawn"] if url.endswith(".svg") else classes  # in the figures' ink
        self.images.append(url)
        options = dict(pairs)
        if "fig-alt" in options:
            pairs = [["alt", options.pop("fig-alt")], *([k, v] for k, v in options.items() if k != "alt")]
        pairs = [*pairs, ["loading", self.loading], ["decoding", "async"]]
        return {"t": "Image", "c": [[identifier, classes, pairs], inlines, [self.page.up + url, title]]}

    # ---- glossary --------------------------------------------------------------------------------

    def walk_without_terms(self, nodes):
        kept, self.no_terms = self.no_terms, True
        try:
            return self.walk(nodes)
        finally:
            self.no_terms = kept

    def on_para(self, node: pandoc.Node) -> pandoc.Node:
        if len(node["c"]) == 1 and node["c"][0]["t"] == "Image":
            return self._picture(node)
        inlines = node["c"] if self.no_terms else self._terms(node["c"])
        return {"t": node["t"], "c": self.walk(glued(inlines))}

    def _picture(self, node: pandoc.Node) -> pandoc.Node:
        """A picture on its own; one that is wide has a box of its own, in which a phone can move it."""
        (_, _, pairs), _, (url, _) = node["c"][0]["c"]
        width = int(dict(pairs).get("width", 0)) or self.drawn_width(url)
        block = {"t": node["t"], "c": self.walk(node["c"])}
        if width <= WIDE_PICTURE:
            return block
        style = f"--natural:{width}px" + "".join(
            f";--least:{n}" for end, n in LEAST.items() if url.endswith(end)
        )
        pairs = {"tabindex": "0", "role": "group", "aria_label": "Picture", "style": style}
        return pandoc.div(pandoc.attr("", ["picture"], **pairs), [block])

    on_plain = on_para

    def on_strong(self, node: pandoc.Node) -> pandoc.Node | None:
        if self.no_terms:
            return None
        return {"t": "Strong", "c": self.walk(self._terms(node["c"], always=True))}

    def _terms(self, inlines: list[pandoc.Node], always: bool = False) -> list[pandoc.Node]:
        """Mark the first use of each glossary term on the page."""
        result, i = [], 0
        while i < len(inlines):
            for length in (7, 5, 3, 1):  # words and the spaces between
                part = inlines[i : i + length]
                if len(part) < length or any(n["t"] not in ("Str", "Space", "SoftBreak") for n in part):
                    continue
                text = "".join(n.get("c", " ") for n in part)
                match = re.fullmatch(r"(\W*)(\w.*?)([\W_]*)", text)
                entry = self.context.terms.get(match[2].casefold()) if match else None
                if entry and (always or entry["term"] not in self.seen_terms) and len(match[2]) > 2:
                    self.seen_terms.add(entry["term"])
                    result += [pandoc.string(match[1])] if match[1] else []
                    result.append(self._term(entry, match[2]))
                    result += [pandoc.string(match[3])] if match[3] else []
                    i += length
                    break
            else:
                result.append(inlines[i])
                i += 1
        return result

    def _term(self, entry: dict, text: str) -> pandoc.Node:
        pairs = {"data_zh": entry["zh"], "data_meaning": entry["meaning"], "data_term": entry["term"]}
        source, _, anchor = entry["place"].partition("#")
        url = self.context.urls.get(source)
        if url is None:
            return pandoc.span(pandoc.attr("", ["term"], tabindex="0", **pairs), pandoc.words(text))
        place = f"{url}#{anchor}" if anchor else url
        return pandoc.link(pandoc.words(text), self.href(place), pandoc.attr("", ["term"], **pairs))

    # ---- blocks ----------------------------------------------------------------------------------

    def on_rawblock(self, node: pandoc.Node):
        if node["c"][0] == "marker":
            self.cell = node["c"][1].removeprefix("cell ")
            return []
        return None if node["c"][0] == "html" else []

    def on_header(self, node: pandoc.Node) -> pandoc.Node:
        level, (identifier, classes, pairs), inlines = node["c"]
        number = dict(pairs).get("number", "")
        before = (
            [pandoc.html(f'<span class="section-number">{number}</span> ', True)]
            if number and (level == 2 or identifier.startswith("sec-"))
            else []
        )
        mark = pandoc.html(
            f'<a class="anchor" href="#{identifier}" aria-label="Link to this section"></a>', True
        )
        pairs = [pair for pair in pairs if pair[0] != "number"]
        return {
            "t": "Header",
            "c": [level, [identifier, classes, pairs], [*before, *self.walk_without_terms(inlines), mark]],
        }

    def on_codeblock(self, node: pandoc.Node) -> pandoc.Node:
        (_, classes, _), text = node["c"]
        if "mermaid" in classes:
            try:
                drawn = diagram(self.drawings.get("mermaid", text.strip()), mermaid_title(text))
            except BookError as error:
                self.fail(str(error))
            return pandoc.html(
                f'<div class="diagram scroll" tabindex="0" role="group" aria-label="Diagram">{drawn}</div>'
            )
        if "output" in classes:
            return pandoc.html(
                f'<pre class="output" tabindex="0" aria-label="Output">{escape.escape(text, quote=False)}</pre>'
            )
        language = next((c for c in classes if c != "source"), "text")
        return pandoc.html(
            f'<div class="code {language}">{self._copy()}<pre tabindex="0"><code>{self._highlight(text, language)}</code></pre></div>'
        )

    def _copy(self) -> str:
        return '<button class="copy" type="button" aria-label="Copy code">Copy</button>'

    def _highlight(self, text: str, language: str) -> str:
        try:
            lexer = get_lexer_by_name(language, stripnl=False)
        except ClassNotFound:
            return escape.escape(text, quote=False)
        code = highlight(text, lexer, HtmlFormatter(nowrap=True)).rstrip("\n")
        if language != "python":
            return code

        def linked(match: re.Match) -> str:
            name = match[2]
            if name not in self.linked:
                return match[0]
            url = self.linked[name]
            if url == f"{self.page.url}#cell-{self.cell}" and match[1] in ("nf", "nc"):  # here it is defined
                api = f"{self.context.api_url}#{self.context.api[name]}"
                return f'<a class="{match[1]}" href="{self.href(api)}" title="{name} in the API reference">{name}</a>'
            return f'<a class="{match[1]}" href="{self.href(url)}" title="{name}: {escape.escape(self._where(url))}">{name}</a>'

        return re.sub(r'<span class="(n|nf|nc|nb|nn)">(\w+)</span>', linked, code)

    def on_table(self, node: pandoc.Node) -> list[pandoc.Node]:
        identifier, caption, columns, *rows = node["c"]
        # Pandoc takes widths from the dashes under the head, where a line is long; a browser does better
        prose = any(width["t"] == "ColWidth" for _, width in columns)
        columns = [[align, {"t": "ColWidthDefault"}] for align, _ in columns]
        table = {"t": "Table", "c": self.walk_without_terms([identifier, caption, columns, *rows])}
        classes = ["scroll", "prose"] if prose else ["scroll"]
        if of_words(node):
            names = [" ".join(pandoc.plain(cell[4]).split()) for cell in rows[0][1][0][1]]
            stack(table, names)
            classes.append("stack")
        return [pandoc.div(pandoc.attr("", classes, tabindex="0", role="group", aria_label="Table"), [table])]

    def on_div(self, node: pandoc.Node):
        (identifier, classes, pairs), blocks = node["c"]
        options = dict(pairs)
        if "cell" in classes:
            return self._cell(options, blocks)
        for kind in ("fig", "tbl"):
            if kind in classes and identifier:
                return self._float(kind, identifier, options["number"], blocks)
        if callout := next((c for c in classes if c.startswith("callout-")), None):
            return self._callout(callout, identifier, options, blocks)
        if MARGIN & {*classes}:
            name = f' id="{identifier}"' if identifier else ""
            inner = self.walk(blocks)
            return [
                pandoc.html(f'<div class="column-margin" role="note"{name}>'),
                *inner,
                pandoc.html("</div>"),
            ]
        if "still" in classes:  # shown on paper, and where the piece before it is not alive
            self.loading = "eager"  # a picture that waits until it is seen would not be there to print
            inner = self.walk(blocks)
            self.loading = "lazy"
            return [pandoc.html('<div class="still">'), *inner, pandoc.html("</div>")]
        return None

    def _cell(self, options: dict[str, str], blocks: list[pandoc.Node]) -> list[pandoc.Node]:
        self.cell = options["cell"]
        badge = ""
        if "check" in options:
            labels, _, kind = options["check"].rpartition(" ")
            links = [self._checked(label) for label in re.split(r",\s*", labels)]
            badge = f'<p class="checks"><span class="badge {kind}">{CHECKED.get(kind, kind)}</span> {", ".join(links)}</p>'
        exported = " exported" if "exports" in options else ""
        inner = self.walk(blocks)
        if options.get("code-fold") == "True":
            summary = "<details class='fold'><summary>Code</summary>"
            inner = [pandoc.html(summary), *inner[:1], pandoc.html("</details>"), *inner[1:]]
        return [
            pandoc.html(f'<div class="cell{exported}" id="cell-{self.cell}">{badge}'),
            *inner,
            pandoc.html("</div>"),
        ]

    def _checked(self, label: str) -> str:
        entry = self.context.labels.get(label)
        if entry is None:
            self.fail(f"checks {label}, which no formula has")
        if entry["url"] != self.page.url:
            self.previews[label] = self.drawings.get("display", entry["tex"])
        name = label.removeprefix("eq-").removeprefix("def-").replace("-", " ")
        return f'<a class="ref" data-ref="{label}" href="{self.href(entry["url"] + "#" + label)}">({entry["number"]}) {name}</a>'

    def _float(self, kind: str, identifier: str, number: str, blocks: list[pandoc.Node]) -> list[pandoc.Node]:
        printed, blocks = around(kind, blocks)
        if printed:
            return [*self.walk(printed), *self._float(kind, identifier, number, blocks)]
        body, caption = self.walk_without_terms(blocks[:-1]), self.walk_without_terms(blocks[-1]["c"][1])
        words = [pandoc.html(f'<a class="number" href="#{identifier}">{KINDS[kind]} {number}</a> ', True)]
        if caption and caption[0]["t"] in ("Para", "Plain"):
            caption[0] = {"t": "Plain", "c": [*words, *caption[0]["c"]]}
        else:
            caption.insert(0, {"t": "Plain", "c": words})
        figcaption = [pandoc.html("<figcaption>"), *caption, pandoc.html("</figcaption>")]
        inner = [*body, *figcaption] if kind == "fig" else [*figcaption, *body]
        return [pandoc.html(f'<figure class="{kind}" id="{identifier}">'), *inner, pandoc.html("</figure>")]

    def _callout(
        self, kind: str, identifier: str, options: dict, blocks: list[pandoc.Node]
    ) -> list[pandoc.Node]:
        title, blocks = options.get("title", ""), list(blocks)
        if not title and blocks and blocks[0]["t"] == "Header":
            title = pandoc.plain(blocks.pop(0)["c"][2])
        title = title or kind.removeprefix("callout-").capitalize()
        lang = ' lang="zh"' if re.search(r"[\u4e00-\u9fff]", title) else ""
        name = f' id="{identifier}"' if identifier else ""
        title = escape.escape(title)
        special = " solution" if title == "Solution" else " abstract" if lang else ""
        inner = self.walk_without_terms(blocks) if lang else self.walk(blocks)
        if options.get("collapse") in ("true", "false"):
            opened = " open" if options["collapse"] == "false" else ""
            start = f'<details class="callout {kind}{special}"{name}{lang}{opened}><summary>{title}</summary><div class="body">'
            return [pandoc.html(start), *inner, pandoc.html("</div></details>")]
        start = f'<aside class="callout {kind}"{name}{lang} aria-label="{title}"><p class="callout-title">{title}</p>'
        return [pandoc.html(start), *inner, pandoc.html("</aside>")]


def of_words(table: pandoc.Node) -> bool:
    """Whether a table is one of words, in three columns or more, that says much in a row; one column may hold
    numbers, as that of the chapters does."""
    columns, head, bodies = table["c"][2:5]
    rows = [row for body in bodies for row in body[3]]
    numbers = sum(align["t"] == "AlignRight" for align, _ in columns)
    if len(columns) < 3 or len(head[1]) != 1 or numbers > 1:
        return False
    return sum(len(pandoc.plain(row[1])) for row in rows) > STACKED * len(rows)


def stack(table: pandoc.Node, names: list[str]) -> None:
    """Make a table ready to be shown as a block for each row: its cells carry the name of their column, and all
    of it the role that a change of ``display`` would take from it."""
    attributes, _, _, head, bodies, _ = table["c"]
    attributes[2].append(["role", "table"])
    for part in (head, *bodies):
        part[0][2].append(["role", "rowgroup"])
    for row in (*head[1], *(row for body in bodies for row in body[3])):
        row[0][2].append(["role", "row"])
    for cell in head[1][0][1]:
        cell[0][2].append(["role", "columnheader"])
    for body in bodies:
        for row in body[3]:
            for name, cell in zip(names, row[1]):
                cell[0][2] += [["role", "cell"], *([["data-label", name]] if name else [])]


def around(kind: str, blocks: list[pandoc.Node]) -> tuple[list[pandoc.Node], list[pandoc.Node]]:
    """What the cell of a table printed, which must not part the table from its caption, and the rest."""
    printed = [b for b in blocks if b["t"] == "CodeBlock"] if kind == "tbl" else []
    if len(printed) == len(blocks) - 1:  # the table itself is text
        return [], blocks
    return printed, [b for b in blocks if b["t"] != "CodeBlock"] if printed else blocks


def glued(inlines: list[pandoc.Node]) -> list[pandoc.Node]:
    """Keep a short formula and its punctuation on one line: a browser may break beside a formula as if it were a picture."""
    nodes, result = [dict(n) for n in inlines], []
    for i, node in enumerate(nodes):
        if node["t"] != "Math" or node["c"][0]["t"] != "InlineMath" or len(node["c"][1]) > GLUED:
            result.append(node)
            continue
        together = [node]
        before = result[-1] if result and result[-1]["t"] == "Str" else None
        if before and (match := BEFORE.search(before["c"])):
            together.insert(0, pandoc.string(match[0]))
            before["c"] = before["c"][: match.start()]
        after = nodes[i + 1] if i + 1 < len(nodes) and nodes[i + 1]["t"] == "Str" else None
        if after and (match := AFTER.match(after["c"])) and match[0]:
            together.append(pandoc.string(match[0]))
            after["c"] = after["c"][match.end() :]
        result.append(pandoc.span(pandoc.attr("", ["glued"]), together) if len(together) > 1 else node)
    return [n for n in result if n["t"] != "Str" or n["c"]]


def mermaid_title(text: str) -> str:
    """What a diagram says to those who cannot see it: its ``accTitle``, or its labels in their order."""
    if match := re.search(r"accTitle:?\s*(.+)", text):
        return match[1].strip()
    labels = re.findall(r'[\[({]+"?([^\])}"]+)"?[\])}]+', re.sub(r"<br ?/?>", " ", text))
    return "Diagram: " + " → ".join(labels)
