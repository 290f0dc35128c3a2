"""Builds ``_site``: reads every page, numbers and resolves it, draws formulas, writes HTML, and checks the result.

What has not changed is not done again: a page's tree is kept by the hash of its notebook, its HTML by the hash of
the tree and of all that other pages say. If nothing at all has changed, the build ends after reading the inputs.
"""

import hashlib
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from . import api, pandoc
from .assemble import Assembler, svg_size
from .cover import cover
from .download import archive, companions, everything
from .outline import Outline, Page, read_outline, read_settings
from .resolve import FOOTNOTES, Context, Resolver
from .search import index
from .stage import BookError, split_title, staged
from .survey import Survey
from .vendor import CACHE, HERE, Drawings, fetch

FONTS = {
    "source-serif-4": ("Source Serif", ("normal", "italic")),
    "source-sans-3": ("Source Sans", ("normal", "italic")),
    "source-code-pro": ("Source Code", ("normal",)),
}
LATIN = "U+0000-00FF,U+0131,U+0152-0153,U+02BB-02BC,U+02C6,U+02DA,U+02DC,U+2000-206F,U+20AC,U+2122,U+2191,U+2193,U+2212,U+2215,U+FEFF,U+FFFD"
SHARED = (
    "source",
    "url",
    "number",
    "title",
    "labels",
    "anchors",
    "checks",
    "defines",
)  # what other pages may show of a page
LEAN = 750_000  # bytes of drawn formulas (each counted once) above which a page gets them as MathML
GREEK = "U+0370-0377,U+037A-037F,U+0384-038A,U+038C,U+038E-03A1,U+03A3-03FF"
EXTENDED = "U+0100-02BA,U+02BD-02C5,U+02C7-02CC,U+02CE-02D7,U+02DD-02FF,U+0304,U+0308,U+0329,U+1D00-1DBF,U+1E00-1E9F,U+1EF2-1EFF,U+2020,U+20A0-20AB,U+20AD-20C0,U+2113,U+2C60-2C7F,U+A720-A7FF"

INSTALL = """\
# in Colab, or wherever the package is not installed
import importlib.util

if importlib.util.find_spec("gptbook") is None:
    %pip install --quiet "gptbook[corpora] @ git+{repository}" sympy jieba"""
FETCH = """\


# files that this chapter reads
import pathlib
import urllib.request

for name in {names}:
    path = pathlib.Path(name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        urllib.request.urlretrieve(f"https://raw.githubusercontent.com/{project}/colab/{{name}}", path)"""


def digest(*parts: object) -> str:
    """A hash of bytes, texts and plain data."""
    found = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        found.update(hashlib.sha256(data).digest())
    return found.hexdigest()


@cache
def tools_hash(assets: bool = True) -> str:
    """Of all that builds the site; without style, script and template it says whether a page's text is out of date."""
    files = sorted(
        p
        for p in HERE.rglob("*")
        if p.is_file()
        and p.suffix in (".py", ".mjs", ".js", ".css", ".html", ".json", ".svg")
        and (assets or p.parent.name != "assets")
    )
    return digest([(p.name, digest(p.read_bytes())) for p in files])


class Site:
    """One build of the book."""

    def __init__(self, outline: Outline | None = None) -> None:
        self.outline = outline or read_outline()
        self.root, self.nbs = self.outline.root, self.outline.nbs
        self.target, self.cache = self.root / "_site", self.root / "build" / "site"
        self.settings = read_settings(self.root)
        self.repository = self.settings.get("repository", "").strip()
        self.modules = api.read_package(self.root / "gptbook")
        self.drawings = Drawings()
        self.glossary = json.loads((self.nbs / "glossary.json").read_text(encoding="utf-8"))
        self.bibliography = self.nbs / self.outline.bibliography if self.outline.bibliography else None
        text = self.bibliography.read_text(encoding="utf-8") if self.bibliography else ""
        self.keys = re.findall(r"^@\w+\{\s*([^,\s]+)", text, flags=re.M)
        self.errors: list[str] = []

    def downloads(self) -> list[dict[str, str]]:
        """The book in one file, where that has been made (``make epub pdf``)."""
        found = sorted(p for p in self.target.glob("*.*") if p.suffix in (".epub", ".pdf"))
        return [{"url": p.name, "name": p.suffix[1:].upper()} for p in found]

    def inputs(self) -> str:
        """A hash of all that the site is made from."""
        files = [
            *self.nbs.rglob("*.ipynb"),
            *self.nbs.glob("*.*"),
            *(p for folder in ("interactive", "results", "images") for p in self.nbs.glob(f"{folder}/*")),
            *self.root.glob("gptbook/**/*.py"),
            self.root / "_quarto.yml",
            self.root / "settings.ini",
        ]
        files = sorted({p for p in files if p.is_file() and ".ipynb_checkpoints" not in p.parts})
        return digest(
            tools_hash(),
            str(self.target),
            self.downloads(),
            [(str(p), digest(p.read_bytes())) for p in files],
        )

    def build(self) -> bool:
        """Build what is out of date; False if nothing was. Raises ``BookError`` with all that must be mended."""
        stamp, state = self.cache / "stamp", self.inputs()
        if stamp.is_file() and stamp.read_text() == state and (self.target / "index.html").is_file():
            return False
        fetch()
        stamp.unlink(missing_ok=True)
        with ThreadPoolExecutor(2) as pool:
            pages = [page for page in pool.map(self._guarded(self._read), self.outline.pages) if page]
        self._stop()
        self.records = {page["record"]["source"]: page["record"] for page in pages}
        self._unique_labels()
        anchors = api.anchors(self.modules)
        api_page = next((p for p in self.outline.pages if p.source.startswith("C_api")), None)
        context = Context(
            self.records, self.keys, self.glossary, anchors if api_page else {}, api_page.url if api_page else "",
            next((p.url for p in self.outline.pages if p.number == "A"), ""),
        )  # fmt: skip
        self.drawings.prepare(tuple(pair) for page in pages for pair in page["wanted"])
        shared = digest(
            tools_hash(assets=False), {s: {k: r[k] for k in SHARED} for s, r in self.records.items()},
            self.keys, self.glossary, anchors,
        )  # fmt: skip
        todo = [(page, page_data, shared, context) for page, page_data in zip(self.outline.pages, pages)]
        with ThreadPoolExecutor(2) as pool:
            written = list(pool.map(self._guarded(self._resolve), todo))
        self._stop()
        self._write(pages, written)
        from .audit import audit

        if faults := audit(self.target):
            raise BookError("\n".join(faults))
        stamp.write_text(state)
        return True

    def _guarded(self, function):
        """Collect errors of the book, so that one run shows them all."""

        def call(argument):
            try:
                return function(argument)
            except BookError as error:
                self.errors.append(str(error))
                return None

        return call

    def _stop(self) -> None:
        if self.errors:
            raise BookError("\n".join(self.errors))

    def _unique_labels(self) -> None:
        seen: dict[str, str] = {}
        for record in self.records.values():
            for label, data in record["labels"].items():
                place = f"{record['source']} cell {data['cell']}"
                if label in seen:
                    self.errors.append(f"{place}: the label {label} is there twice, first in {seen[label]}")
                seen[label] = place
        self._stop()

    # ---- reading ---------------------------------------------------------------------------------

    def _included(self, source: Path) -> bytes:
        return source.read_bytes() + (self.api_markdown().encode() if source.name == "C_api.qmd" else b"")

    @cache  # noqa: B019 - one Site is one build
    def api_markdown(self) -> str:
        """The API reference as Markdown."""
        titles = {page.source: notebook_title(self.nbs / page.source) for page in self.outline.pages}
        return api.markdown(self.modules, self.outline, titles, self.repository)

    def _read(self, page: Page) -> dict:
        """The page's record and tree, its pictures written to the cache."""
        source = self.nbs / page.source
        key = digest(tools_hash(assets=False), page.source, page.number, page.part, self._included(source))
        path = self.cache / "pages" / f"{page.stem}.json"
        if path.is_file() and (data := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
            return data
        cells = staged(source)
        for cell in cells:
            cell.source = (
                cell.source.replace("{{< include _api.md >}}", self.api_markdown())
                if cell.kind == "markdown"
                else cell.source
            )
        assembler = Assembler(page)
        blocks = pandoc.parse(assembler.text(cells))
        for name, content in assembler.files.items():
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            (self.cache / name).write_bytes(content)
        survey = Survey(page, assembler.title, assembler.question)
        blocks = survey.run(blocks)
        data = {
            "key": key, "record": survey.record, "blocks": blocks, "files": sorted(assembler.files),
            "wanted": sorted(wanted(blocks)),
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data), encoding="utf-8")
        return data

    # ---- resolving -------------------------------------------------------------------------------

    def _resolve(self, job: tuple[Page, dict, str, Context]) -> dict:
        page, data, shared, context = job
        key = digest(shared, data["key"])
        path = self.cache / "html" / f"{page.stem}.json"
        if path.is_file() and (done := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
            return done
        resolver = Resolver(page, context, self.drawings)
        resolver.lean = sum(map(self.drawings.size, map(tuple, data["wanted"]))) > LEAN
        resolver.drawn_width = lambda url: svg_width((self.nbs / page.source).parent / url)
        blocks = resolver.run(data["blocks"])
        contents = [
            h
            for h in data["record"]["headings"]
            if 2 <= h["level"] <= (2 if page.source.startswith("C_api") else 3)
        ]
        titles = [pandoc.para(resolver.walk_without_terms(h["inlines"])) for h in contents]
        for image in resolver.images:
            if not (self.cache / image).is_file() and not (self.nbs / image).is_file():
                raise BookError(f"{page.source}: there is no picture {image}")
        options = [
            "-f",
            "json",
            "-t",
            "html5",
            "--wrap=none",
            "--syntax-highlighting=none",
            "--section-divs=false",
        ]
        meta: dict = {}
        if self.bibliography and resolver.cited:
            options += ["--citeproc", f"--bibliography={self.bibliography}", "-M", "link-citations=true"]
        split = pandoc.html("<!--contents-->")
        text = pandoc.run(options, pandoc.document([*blocks, split, *titles], meta)).decode()
        body, _, rest = text.partition("<!--contents-->")
        rest, _, notes = rest.partition('<section id="footnotes"')  # which Pandoc puts last
        body = body.replace(FOOTNOTES, f'<section id="footnotes"{notes}' if notes else "")
        names = [re.sub(r"</?a\b[^>]*>", "", n) for n in re.findall(r"<p>(.*?)</p>", rest, flags=re.S)]
        toc = [
            {"level": h["level"], "id": h["id"], "number": h["number"], "html": n}
            for h, n in zip(contents, names, strict=True)
        ]
        if resolver.cited:
            toc.append({"level": 2, "id": "references", "number": "", "html": "References"})
        done = {
            "key": key,
            "body": body,
            "toc": toc,
            "previews": resolver.previews,
            "images": resolver.images,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(done), encoding="utf-8")
        return done

    # ---- writing ---------------------------------------------------------------------------------

    def _write(self, pages: list[dict], written: list[dict]) -> None:
        self.target.mkdir(exist_ok=True)
        keep: set[Path] = set()
        environment = Environment(
            loader=FileSystemLoader(HERE / "assets"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        template = environment.get_template("page.html")
        version = digest(tools_hash())[:8]
        for i, (page, data, done) in enumerate(zip(self.outline.pages, pages, written)):
            for image in done["images"]:
                source = self.cache / image if (self.cache / image).is_file() else self.nbs / image
                keep.add(self._put(image, source.read_bytes()))
            around = {
                "previous": self._neighbour(i - 1) if i else None,
                "next": self._neighbour(i + 1) if i + 1 < len(self.outline.pages) else None,
            }
            html = template.render(
                downloads=self.downloads(), book=self.outline, page=page, record=data["record"], body=Markup(done["body"]), toc=self._toc(done["toc"]),
                previews={k: Markup(v) for k, v in done["previews"].items()}, nav=self._navigation(page), version=version,
                repository=self.repository, cover=Markup(cover(list(self.records.values()))) if page.url == "index.html" else "",
                **around, **self._amounts(page, data["record"]), download=self._download(page, keep),
            )  # fmt: skip
            keep.add(self._put(page.url, html.encode()))
        for name, content in self._assets().items():
            keep.add(self._put(name, content))
        entries = [
            {"u": f"{api_url}#{api.anchor(m, item.name)}", "p": f"gptbook.{m.name}", "t": item.name, "x": item.doc.replace("``", ""), "k": "code"}
            for m in self.modules for item in m.items
            if (api_url := next((p.url for p in self.outline.pages if p.source.startswith("C_api")), ""))
        ]  # fmt: skip
        records = [page["record"] for page in pages]
        keep.add(self._put("search-index.js", index(records, self.glossary, entries).encode()))
        keep.add(self._put("llms.txt", self._llms(records).encode()))
        for path in sorted(self.target.rglob("*"), reverse=True):
            if path.is_file() and path not in keep and path.suffix not in (".epub", ".pdf"):
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def _put(self, name: str, content: bytes) -> Path:
        """Write a file of the site, unless it is the same already."""
        path = self.target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (path.is_file() and path.read_bytes() == content):
            path.write_bytes(content)
        return path

    def _download(self, page: Page, keep: set[Path]) -> dict[str, str]:
        """Write what there is of a page to download; return where it is and what it is called."""
        if not page.source.endswith(".ipynb"):
            return {}
        keep.add(self._put(f"notebooks/{page.source}", self.notebook(page)))
        more = companions(self.nbs / page.source, self.nbs)
        if more == []:
            return {"url": f"notebooks/{page.source}", "name": "Download notebook"}
        if more is None:
            name, label = "all-notebooks", "Download all notebooks, which this one reads"
        else:
            name, label = page.source.removesuffix(".ipynb"), "Download notebook with its data"
        path = self.target / f"notebooks/{name}.zip"
        if path not in keep:
            sources = {p.source: p for p in self.outline.pages}
            keep.add(path)
            files = {
                source: self.notebook(sources[source])
                if source in sources
                else (self.nbs / source).read_bytes()
                for source in (everything(self.nbs) if more is None else [page.source, *more])
            }
            self._put(f"notebooks/{name}.zip", archive(name.rpartition("/")[2], files))
        return {"url": f"notebooks/{name}.zip", "name": f"{label} (zip)"}

    def chapters(self) -> list[Path]:
        """Write the chapters, and the files that they read, for the branch that Colab opens."""
        written = []
        for page in self.outline.pages:
            if page.number.isdigit():
                written.append(self._put(f"notebooks/{page.source}", self.notebook(page)))
                for name in companions(self.nbs / page.source, self.nbs) or ():
                    if not name.endswith(".ipynb"):  # the other chapters are there anyway
                        written.append(self._put(f"notebooks/{name}", (self.nbs / name).read_bytes()))
        return written

    @property
    def project(self) -> str:
        """Owner and name of the repository, if it is on GitHub."""
        found = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)(?:\.git)?/?", self.repository)
        return found[1] if found else ""

    def notebook(self, page: Page) -> bytes:
        """A page's notebook for download; with the repository's address, a chapter installs and fetches what it needs."""
        data = (self.nbs / page.source).read_bytes()
        if not (self.repository and page.number.isdigit()):
            return data
        notebook = json.loads(data)
        text = INSTALL.format(repository=self.repository)
        if self.project and (names := companions(self.nbs / page.source, self.nbs)):
            text += FETCH.format(names=names, project=self.project)
        source = text.splitlines(keepends=True)
        cell = {"cell_type": "code", "metadata": {}, "source": source, "outputs": [], "execution_count": None}
        if notebook.get("nbformat_minor", 0) >= 5:
            cell["id"] = "install"
        notebook["cells"].insert(1, cell)
        return json.dumps(notebook, ensure_ascii=False, indent=1).encode()

    def _neighbour(self, i: int) -> dict[str, str]:
        page = self.outline.pages[i]
        return {"url": page.url, "number": page.number, "title": self.records[page.source]["title"]}

    def _toc(self, toc: list[dict]) -> list[dict]:
        """Sections with their subsections."""
        tree: list[dict] = []
        for entry in toc:
            entry = {
                **entry,
                "html": Markup(re.sub(r"^<code>gptbook\.", "<code>", entry["html"])),
                "children": [],
            }
            (tree[-1]["children"] if entry["level"] > 2 and tree else tree).append(entry)
        return tree

    def _navigation(self, current: Page) -> list[dict]:
        """Parts with their pages; the workshop is a part of its own."""
        parts: list[dict] = []
        for page in self.outline.pages:
            name = "Workshop" if page.workshop else page.part
            if not parts or parts[-1]["name"] != name:
                parts.append({"name": name, "pages": [], "open": name != "Workshop"})
            here = page.source == current.source
            title = self.records[page.source]["title"] if page.number else "Preface"
            parts[-1]["pages"].append({"url": page.url, "number": page.number, "title": title, "here": here})
            parts[-1]["open"] |= here
        return parts

    def _amounts(self, page: Page, record: dict) -> dict:
        """Reading time: 200 words a minute, half a minute for a displayed formula, 40 lines of code a minute."""
        minutes = record["words"] / 200 + record["formulas"] / 2 + record["code_lines"] / 40
        long = page.number.isdigit()
        colab = ""
        if self.project and page.number.isdigit():
            colab = f"https://colab.research.google.com/github/{self.project}/blob/colab/{page.source}"
        return {"minutes": max(5, 5 * round(minutes / 5)) if long else 0, "colab": colab}

    def _assets(self) -> dict[str, bytes]:
        """Style, script, and from npm the fonts and KaTeX's style."""
        modules, found = fetch(), {}
        faces = []
        for package, (family, styles) in FONTS.items():
            for style in styles:
                for subset, characters in (("latin", LATIN), ("latin-ext", EXTENDED), ("greek", GREEK)):
                    name = f"{package}-{subset}-wght-{style}.woff2"
                    source = modules / "@fontsource-variable" / package / "files" / name
                    if source.is_file():
                        found[f"assets/fonts/{name}"] = source.read_bytes()
                        faces.append(
                            f'@font-face{{font-family:"{family}";font-style:{style};font-weight:200 900;font-display:swap;'
                            f"src:url(fonts/{name}) format('woff2');unicode-range:{characters}}}"
                        )
        # for MathML a font must have OpenType's table MATH, which packages of subsets leave out
        math = modules / "@ibm/plex-math/fonts/complete/woff2/IBMPlexMath-Regular.woff2"
        if math.is_file():
            found[f"assets/fonts/{math.name}"] = math.read_bytes()
            faces.append(
                f'@font-face{{font-family:"IBM Plex Math";src:url(fonts/{math.name}) format("woff2");font-display:swap}}'
            )
        katex = modules / "katex" / "dist"
        style = (katex / "katex.min.css").read_text(encoding="utf-8")
        style = re.sub(r",url\(fonts/[^)]*\.(?:woff|ttf)\) format\(\"[a-z]+\"\)", "", style)
        for name in sorted(set(re.findall(r"url\(fonts/([^)]+\.woff2)\)", style))):
            found[f"assets/fonts/{name}"] = (katex / "fonts" / name).read_bytes()
        own = (HERE / "assets" / "style.css").read_text(encoding="utf-8")
        found["assets/style.css"] = ("\n".join(faces) + "\n" + style + "\n" + own).encode()
        pieces = self.nbs / "interactive"
        if pieces.is_dir():
            found["assets/style.css"] += (pieces / "shared.css").read_bytes()
            names = ["shared.js", *sorted(p.name for p in pieces.glob("*.js") if p.name != "shared.js")]
            found["assets/pieces.js"] = b"\n".join((pieces / name).read_bytes() for name in names)
        found["assets/book.js"] = (HERE / "assets" / "book.js").read_bytes()
        found["assets/icon.svg"] = (HERE / "assets" / "icon.svg").read_bytes()
        return found

    def _llms(self, records: list[dict]) -> str:
        """The book for programs that read: one line for each page (llmstxt.org)."""
        lines = [f"# {self.outline.title}", "", f"> {self.outline.subtitle}", ""]
        part = None
        for page, record in zip(self.outline.pages, records):
            name = "Workshop" if page.workshop else page.part
            if name != part:
                part = name
                lines += ["", f"## {name}", ""] if name else []
            title = f"{page.number} {record['title']}".strip()
            lines.append(f"- [{title}]({page.url}): {record['question']} Notebook: notebooks/{page.source}")
        return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def wanted(blocks: list[pandoc.Node]) -> set[tuple[str, str]]:
    """(kind, text) of all that a tree needs drawn."""
    found: set[tuple[str, str]] = set()

    def collect(node: pandoc.Node) -> None:
        if node["t"] == "Math":
            kind = "display" if node["c"][0]["t"] == "DisplayMath" else "math"
            found.add((kind, node["c"][1].strip()))
        elif node["t"] == "CodeBlock" and "mermaid" in node["c"][0][1]:
            found.add(("mermaid", node["c"][1].strip()))

    pandoc.walk(blocks, collect)
    return found


def svg_width(path: Path) -> int:
    """How wide a drawing of the book's own is, 0 if that is not known."""
    return svg_size(path.read_text(encoding="utf-8"))[0] if path.suffix == ".svg" and path.is_file() else 0


def notebook_title(path: Path) -> str:
    """The title of a page's source, without reading more of it than needed."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = next(("".join(c["source"]) for c in cells if c["cell_type"] == "markdown"), "")
    else:
        text = path.read_text(encoding="utf-8")
    parts = split_title(text)
    return parts[0] if parts else path.stem


def clean() -> None:
    """Forget all that was kept."""
    shutil.rmtree(CACHE, ignore_errors=True)
