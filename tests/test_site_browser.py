"""The built site in a real browser: Chromium, without a window, driven by playwright.

Skipped without node and npm (which build it), playwright or Chromium; .ci/run brings all of them.
"""

import contextlib
import functools
import http.server
import itertools
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from bookfiles import ROOT
from sitebook import built_book, lacking, write_book

from tools.site import vendor
from tools.site.outline import read_outline
from tools.site.stage import write_for_quarto

PAGES = [page.url for page in read_outline().pages]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
HEAVY = 1_500_000  # bytes of a page with its style, script and fonts, without figures

each_page = pytest.mark.parametrize("name", PAGES)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Path:
    return built_book()


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site, served on a port of its own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        lacking("needs playwright")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        try:
            running = playwright.chromium.launch(executable_path=found, args=FLAGS)
        except Error as error:
            lacking(f"needs Chromium: {str(error).splitlines()[0]}")
        yield running
        running.close()


class Visit:
    """One page in a window of a size and a theme, with all it asks for and complains about."""

    def __init__(self, browser, width: int = 1440, theme: str = "light", touch: bool = False) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce",
            has_touch=touch, is_mobile=touch,
        )  # fmt: skip
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.weight = 0
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def go(self, url: str) -> "Visit":
        self.page.goto(url)
        self.page.wait_for_function("document.fonts.status === 'loaded'")
        return self

    def foreign(self, address: str) -> list[str]:
        """What it asked of any other host."""
        asked = [urlsplit(url) for url in self.requests]
        host = urlsplit(address).netloc
        return [url.geturl() for url in asked if url.scheme not in ("data", "blob") and url.netloc != host]


@contextlib.contextmanager
def visit(browser, url: str, **how) -> Iterator[Visit]:
    visit = Visit(browser, **how)
    try:
        yield visit.go(url)
    finally:
        visit.context.close()


# ---- every page -------------------------------------------------------------------------------------------

# The words a reader sees, but not code, what code printed, or what only programs read.
WORDS = """() => {
    const skipped = "pre, code, script, style, template, .katex-mathml, svg, noscript, .piece";
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    for (let node = walker.nextNode(); node; node = walker.nextNode())
        if (!node.parentElement.closest(skipped)) found.push(node.data);
    return found.join("\\n");
}"""
LEFT_OVER = re.compile(
    r"@(?:eq|fig|tbl|sec)-|\{#|#\||:::|(?<!\\)\$[^\s\d][^$\n]*\$|\$\$|\\(?:mathbf|frac|begin)\b"
)


TOO_WIDE = """async () => {
    await document.fonts.ready;
    const formulas = [...document.querySelectorAll("main .formula")];
    return formulas.filter((f) => f.scrollWidth > f.clientWidth + 1).map((f) => f.dataset.tex);
}"""


@each_page
def test_page_is_whole_and_keeps_to_itself(name: str, browser, address: str, site: Path) -> None:
    """Over http: no complaint, no other host, no syntax left, formulas drawn, not too heavy."""
    with visit(browser, f"{address}/{name}") as v:
        assert v.complaints == []
        assert v.foreign(address) == []
        words = v.page.evaluate(WORDS)
        assert LEFT_OVER.findall(words) == []
        assert v.page.locator(".katex-error").count() == 0
        formulas = v.page.locator("main .katex, main .mathml math").count()
        assert formulas or not v.page.locator(".equation").count()
        weight = sum(
            (site / urlsplit(url).path.lstrip("/")).stat().st_size
            for url in set(v.requests)
            if not urlsplit(url).path.endswith((".png", ".svg", ".jpg"))
        )
        assert weight < HEAVY, f"{weight:,} bytes"


@each_page
@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1440, "light"), (820, "light")])
def test_page_fits_its_window(name: str, width: int, theme: str, browser, site: Path) -> None:
    """From ``file://``: nothing to scroll sideways, no complaint, no request but for files."""
    with visit(browser, (site / name).as_uri(), width=width, theme=theme) as v:
        assert v.complaints == []
        assert {urlsplit(url).scheme for url in v.requests} <= {"file", "data"}
        assert v.page.evaluate("document.documentElement.scrollWidth") <= width
        if width == 1440:  # a formula a little too wide is set smaller
            assert v.page.evaluate(TOO_WIDE) == []
        broken = v.page.evaluate("""async () => {
            const images = [...document.images];
            for (const image of images) image.loading = "eager";
            await Promise.allSettled(images.map((image) => image.decode()));
            return images.filter((image) => !image.naturalWidth).map((image) => image.src);
        }""")
        assert broken == []


# In the dark only the colours are others, and they are the same for all pages: every third page will do.
@pytest.mark.parametrize(
    ("name", "theme"), [*((name, "light") for name in PAGES), *((name, "dark") for name in PAGES[::3])]
)
def test_page_is_accessible(name: str, theme: str, browser, site: Path) -> None:
    """axe-core finds nothing serious, with all folded parts open."""
    axe = (vendor.fetch() / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    with visit(browser, (site / name).as_uri(), theme=theme) as v:
        v.page.evaluate("for (const e of document.querySelectorAll('details')) e.open = true")
        v.page.evaluate(axe)
        rules = ", runOnly: ['color-contrast']" if theme == "dark" else ""  # else both themes are one page
        found = v.page.evaluate(f"axe.run(document, {{ resultTypes: ['violations']{rules} }})")
        serious = [
            f"{fault['id']}: {node['html'][:160]} {node['failureSummary'][:300]}"
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"][:3]
        ]
        assert serious == []


# ---- what moves ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("scaled_dot_product_attention", "c_api.html#api-attention-scaled-dot-product-attention"),
        ("perplexity", "probability.html#eq-perplexity"),
        ("注意力头", "multihead.html"),
        ("softmax jacobian", "attention.html#eq-softmax-jacobian"),
    ],
)
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_search_finds(words: str, first: str, scheme: str, browser, site: Path, address: str) -> None:
    home = (site / "workshop" / "cli.html").as_uri() if scheme == "file" else f"{address}/workshop/cli.html"
    with visit(browser, home) as v:
        v.page.keyboard.press("/")
        v.page.fill("#query", words)
        v.page.wait_for_selector("#results li")
        links = [link.get_attribute("href") for link in v.page.locator("#results a").all()]
        assert f"../{first}" in " ".join(links[:5])
        v.page.keyboard.press("Enter")
        v.page.wait_for_url("**/" + links[0].removeprefix("../"))
        assert v.complaints == [] and v.page.locator("main h1").count() == 1


@pytest.mark.parametrize("words", ["attention", "token", "softmax", "cross-entropy", "temperature"])
def test_search_shows_a_place_once(words: str, browser, site: Path) -> None:
    with visit(browser, (site / "index.html").as_uri()) as v:
        v.page.keyboard.press("/")
        v.page.fill("#query", words)
        v.page.wait_for_selector("#results li")
        links = [link.get_attribute("href") for link in v.page.locator("#results a").all()]
        assert len(links) > 5 and len(links) == len(set(links))


def test_search_knows_the_chapters_by_their_titles(browser, site: Path) -> None:
    with visit(browser, (site / "index.html").as_uri()) as v:
        v.page.keyboard.press("/")
        for words, url in (
            ("attention", "attention.html"),
            ("scale", "scale.html"),
            ("epilogue", "epilogue.html"),
        ):
            v.page.fill("#query", words)
            v.page.wait_for_function(
                "url => [...document.querySelectorAll('#results a')].slice(0, 2)"
                ".some((a) => a.getAttribute('href') === url)",
                arg=url,
            )


def test_search_says_when_it_finds_nothing(browser, address: str) -> None:
    with visit(browser, f"{address}/index.html") as v:
        v.page.click(".search-open")
        v.page.fill("#query", "xyzzyplugh")
        v.page.wait_for_function("document.querySelector('.search .note').textContent === 'Nothing found.'")
        v.page.keyboard.press("Escape")
        assert not v.page.locator("dialog.search").is_visible()


@pytest.mark.parametrize("system", ["light", "dark"])
def test_theme_follows_the_system_toggles_and_is_kept(system: str, browser, address: str) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    with visit(browser, f"{address}/index.html", theme=system) as v:
        before = v.page.evaluate(paper)
        v.page.click(".theme")
        after = v.page.evaluate(paper)
        assert before != after
        v.go(f"{address}/attention.html")
        assert v.page.evaluate(paper) == after
        v.page.click(".theme")
        assert v.page.evaluate(paper) == before


def test_a_reference_shows_its_formula_on_hover(browser, site: Path) -> None:
    with visit(browser, (site / "backprop.html").as_uri()) as v:
        here = v.page.locator("main p a.ref[data-ref^=eq-][href^='#']:visible").first
        there = v.page.locator("main p a.ref[data-ref^=eq-]:not([href^='#']):visible").first
        for link in (here, there):
            link.hover()
            v.page.wait_for_selector("#peek .katex")
            v.page.mouse.move(0, 0)
            v.page.wait_for_selector("#peek", state="hidden")


def test_a_term_shows_its_chinese_and_a_citation_its_source(browser, site: Path) -> None:
    with visit(browser, (site / "attention.html").as_uri()) as v:
        v.page.locator(".term").first.hover()
        v.page.wait_for_selector("#peek [lang=zh]")
        v.page.mouse.move(0, 0)
        v.page.locator("main a[role=doc-biblioref]").first.hover()
        v.page.wait_for_selector("#peek .csl-entry")


def test_the_first_touch_of_a_term_shows_it_and_the_second_follows(browser, site: Path) -> None:
    url = (site / "attention.html").as_uri()
    with visit(browser, url, width=390, touch=True) as v:
        term = v.page.locator(".term:visible").first
        term.tap()
        v.page.wait_for_selector("#peek [lang=zh]")
        assert v.page.url == url
        term.tap()
        v.page.wait_for_url(lambda now: now != url)


INKED = """all => all.map((e) => {
    const look = getComputedStyle(e), light = Number(/brightness\\((.+)\\)/.exec(look.filter)?.[1] ?? 1);
    const back = [look, getComputedStyle(document.body)].map((e) => e.backgroundColor);
    const [r, g, b] = (back[0] === "rgba(0, 0, 0, 0)" ? back[1] : back[0]).match(/\\d+/g).map(Number);
    const bright = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const paper = 0.2126 * bright(r) + 0.7152 * bright(g) + 0.0722 * bright(b), ink = bright(0x76 * light);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
})"""


@pytest.mark.parametrize(("theme", "media"), [("light", "screen"), ("dark", "screen"), ("dark", "print")])
@pytest.mark.parametrize("name", ["interpret.html", "model.html"])  # shades and lines, a drawing by hand
def test_ink_of_figures_has_contrast(name: str, theme: str, media: str, browser, site: Path) -> None:
    from gptbook.workshop.plotting import INK

    assert INK == "#767676"  # as in INKED
    with visit(browser, (site / name).as_uri(), theme=theme) as v:
        v.page.emulate_media(media=media)
        found = v.page.locator("main .content img").evaluate_all(INKED)
        assert found and min(found) >= 4.5, found


def test_print_is_dark_on_white_in_any_theme(browser, site: Path) -> None:
    for theme in ("light", "dark"):
        with visit(browser, (site / "attention.html").as_uri(), theme=theme) as v:
            v.page.emulate_media(media="print")
            colour = "getComputedStyle(document.body).color"
            assert v.page.evaluate(colour) == "rgb(0, 0, 0)", theme


def test_folded_solutions_open_when_something_in_them_is_wanted(browser, site: Path) -> None:
    with visit(browser, (site / "attention.html").as_uri()) as v:
        inside = v.page.evaluate("document.querySelector('details.solution [id]').id")
        assert not v.page.locator(f"#{inside}").is_visible()
        v.go((site / "attention.html").as_uri() + "#" + inside)
        assert v.page.locator(f"#{inside}").is_visible()


def test_code_is_copied_as_it_is(browser, address: str) -> None:
    with visit(browser, f"{address}/attention.html") as v:
        v.context.grant_permissions(["clipboard-read", "clipboard-write"])
        box = v.page.locator("main .code").nth(2)
        box.hover()
        box.locator(".copy").click()
        v.page.wait_for_selector(".copy.done")
        assert v.page.evaluate("navigator.clipboard.readText()") == box.locator("pre").text_content()


def test_the_menu_of_a_small_screen(browser, site: Path) -> None:
    with visit(browser, (site / "attention.html").as_uri(), width=390) as v:
        assert not v.page.locator(".sidebar").is_visible()
        v.page.click(".menu")
        v.page.wait_for_selector(".sidebar", state="visible")
        v.page.locator(".sidebar a").nth(1).click()
        v.page.wait_for_url(f"**/{PAGES[1]}")


def test_the_menu_takes_the_focus_and_gives_it_back(browser, site: Path) -> None:
    with visit(browser, (site / "attention.html").as_uri(), width=390) as v:
        focused = "document.activeElement.getAttribute('aria-current') ?? document.activeElement.className"
        v.page.locator(".menu").focus()
        v.page.keyboard.press("Enter")
        assert v.page.evaluate(focused) == "page"
        v.page.keyboard.press("Escape")
        assert v.page.evaluate(focused) == "icon menu"
        v.page.wait_for_selector(".sidebar", state="hidden")
        v.page.keyboard.press("Enter")
        v.page.locator(".sidebar a").first.focus()
        v.page.keyboard.press("Shift+Tab")  # out of the menu: it closes
        v.page.wait_for_selector(".sidebar", state="hidden")
        assert v.page.locator(".menu").get_attribute("aria-expanded") == "false"


def test_keyboard_reaches_the_text_first(browser, site: Path) -> None:
    with visit(browser, (site / "attention.html").as_uri()) as v:
        v.page.keyboard.press("Tab")
        assert v.page.evaluate("document.activeElement.className") == "skip"
        v.page.keyboard.press("Enter")
        assert v.page.evaluate("document.activeElement.id") == "main"


def test_wide_things_scroll_in_their_box_on_a_phone(browser, site: Path) -> None:
    with visit(browser, (site / "attention.html").as_uri(), width=390) as v:
        boxes = "[...document.querySelectorAll('main pre, .formula, .scroll')]"
        assert v.page.evaluate(f"{boxes}.filter(e => e.scrollWidth > e.clientWidth).length") > 10


@pytest.mark.parametrize(
    ("name", "column"), [("a_notation.html", "meaning"), ("d_article.html", "what we found")]
)
def test_tables_of_words_need_no_scrolling_on_a_phone(name: str, column: str, browser, site: Path) -> None:
    with visit(browser, (site / name).as_uri(), width=390) as v:
        tables = v.page.locator(".stack")
        assert tables.count() > 3
        assert max(tables.evaluate_all("all => all.map((e) => e.scrollWidth - e.clientWidth)")) <= 1
        said = tables.last.locator("td:nth-child(3)").first.evaluate(
            "e => getComputedStyle(e, '::before').content"
        )
        assert said not in ("none", "normal", '""')
        assert (
            v.page.get_by_role("columnheader", name=column).count()
            and v.page.get_by_role("cell").count() > 50
        )


LABELS = """all => all.flatMap((svg) => {
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const shown = [...svg.querySelectorAll("text")].filter((e) => e.getClientRects().length);
    return shown.map((e) => scale * parseFloat(getComputedStyle(e).fontSize));
})"""


@pytest.mark.parametrize(
    ("name", "drawing"),
    [
        ("index.html", ".cover-art"),
        ("model.html", ".diagram svg"),
        ("embedding.html", ".piece svg"),
        ("interpret.html", ".piece svg"),
    ],
)
def test_labels_can_be_read_on_a_phone(name: str, drawing: str, browser, site: Path) -> None:
    with visit(browser, (site / name).as_uri(), width=390) as v:
        sizes = v.page.locator(drawing).evaluate_all(LABELS)
        assert sizes and min(sizes) >= 10, sorted(sizes)[:3]
        across = """all => all.filter((e) => e.getClientRects().length).map((e) => e.getBoundingClientRect())
            .map((box) => [box.left, box.right])"""
        places = v.page.locator(".cover-art .names text").evaluate_all(across)
        assert all(right < left for (_, right), (left, _) in itertools.pairwise(places))


def test_pictures_keep_most_of_their_size_on_a_phone(browser, site: Path) -> None:
    for name, least in (("b_ledger.html", 0.9), ("sample.html", 0.75), ("multihead.html", 0.72)):
        with visit(browser, (site / name).as_uri(), width=390) as v:
            share = """e => { e.loading = "eager"; return e.decode().then(() =>
                e.clientWidth / (Number(e.getAttribute("width")) || e.naturalWidth)); }"""
            for picture in v.page.locator(".content img:visible").all():
                assert picture.evaluate(share) > least, picture.get_attribute("src")
    with visit(browser, (site / "b_ledger.html").as_uri(), width=390) as v:  # it begins where the names are
        box = v.page.locator("#fig-derivations .picture")
        assert box.evaluate("e => e.scrollLeft > 0 && e.scrollLeft + e.clientWidth >= e.scrollWidth - 1")


BESIDE = """note => {
  const [at, text] = [note, document.querySelector(".content > p")].map((e) => e.getBoundingClientRect());
  return { beyond: at.left - text.right, room: innerWidth - at.right, width: at.width };
}"""


@pytest.mark.parametrize("name", ["probability.html", "feedforward.html"])  # an inline note, and a block
@pytest.mark.parametrize(("width", "margin"), [(1440, True), (820, False), (390, False)])
def test_notes_stand_in_the_margin_where_there_is_one(
    name: str, width: int, margin: bool, browser, site: Path
) -> None:
    with visit(browser, (site / name).as_uri(), width=width) as v:
        place = v.page.locator(".aside, .column-margin").first.evaluate(BESIDE)
        assert (place["beyond"] > 0) == margin and place["room"] >= 0
        assert place["width"] < 200 if margin else place["width"] > 300


def test_notes_are_printed_in_the_text(browser, site: Path) -> None:
    with visit(browser, (site / "probability.html").as_uri()) as v:
        v.page.emulate_media(media="print")
        note = v.page.locator(".aside").first
        assert note.is_visible() and note.evaluate("e => getComputedStyle(e).float") == "none"


def test_paper_shows_solutions_and_no_sidebars(browser, site: Path) -> None:
    with visit(browser, (site / "attention.html").as_uri()) as v:
        v.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        v.page.emulate_media(media="print")
        assert v.page.locator("details.solution .body").first.is_visible()
        for hidden in (".bar", ".sidebar", ".toc", ".turn", ".copy"):
            assert not v.page.locator(hidden).first.is_visible(), hidden


@pytest.mark.parametrize("name", ["tokenizer.html", "embedding.html", "sample.html", "interpret.html"])
def test_paper_has_the_picture_of_a_piece_and_nothing_else_of_it(name: str, browser, site: Path) -> None:
    with visit(browser, (site / name).as_uri()) as v:
        v.page.wait_for_selector(".piece[data-live]")
        figures = v.page.locator("figure:has(.piece), .cell:has(> .piece)")
        assert figures.count()
        v.page.emulate_media(media="print")
        assert v.page.locator(".piece:visible").count() == 0
        for i in range(v.page.locator(".still").count()):
            assert (
                v.page.locator(".still img").nth(i).evaluate("e => e.decode().then(() => e.clientWidth)")
                > 200
            )


def test_it_reads_without_a_script(browser, site: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "attention.html").as_uri())
    assert page.locator(".equation .katex").first.is_visible()
    assert page.locator(".sidebar a").first.is_visible()
    page.goto((site / "sample.html").as_uri())
    assert page.locator(".still img").first.is_visible() and not page.locator(".piece").first.is_visible()
    context.close()


def test_the_diagram_is_drawn(browser, site: Path) -> None:
    with visit(browser, (site / "model.html").as_uri()) as v:
        assert v.page.locator(".diagram svg").first.is_visible()
        assert "embedding" in v.page.locator(".diagram").first.text_content()


def test_the_names_of_the_api_are_listed_and_found(browser, site: Path) -> None:
    with visit(browser, (site / "c_api.html").as_uri(), width=390) as v:
        listed = v.page.locator(".index").evaluate_all(
            "all => all.map((a) => [a.textContent, a.hash.slice(1)])"
        )
        entries = v.page.locator(".content > h3").evaluate_all(
            "all => all.map((e) => [e.innerText.trim(), e.id])"
        )
        assert listed == entries and len(entries) > 100
        v.page.fill(".filter input", "Rotary")
        seen = v.page.locator(".content > h3:visible").all_inner_texts()
        assert 0 < len(seen) < 20 and all("rotary" in name.lower() for name in seen)
        assert v.page.locator(".content > dl:visible").count() < 10
        assert v.page.locator(".filter [role=status]").inner_text().startswith(f"{len(seen)} name")
        v.page.evaluate("location.hash = '#api-tokenizer-BPETokenizer'")
        v.page.wait_for_selector("#api-tokenizer-BPETokenizer")
        assert v.page.locator(".content > h3:visible").count() == len(entries)


# ---- what Quarto includes in its pages ---------------------------------------------------------------

AS_QUARTO = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>t</title>
<meta name="viewport" content="width=device-width"><meta name="quarto:offset" content="../">
<style>{style}</style></head><body><main><h1>Token</h1>
<p>Each <strong>token</strong>, tokens and a token more.</p>
<div class="cell" data-check="eq-one numeric"></div><p id="eq-one">x</p>
<table class="words"><thead><tr><th>name</th><th>what</th><th>where</th></tr></thead>
<tbody><tr><td>a</td><td>{words}</td><td>here</td></tr></tbody></table>
<table class="numbers"><thead><tr>{heads}</tr></thead><tbody><tr>{cells}</tr></tbody></table>
</main>{after}</body></html>"""


def test_quarto_s_pages_get_terms_badges_and_tables_for_a_phone(browser, tmp_path: Path) -> None:
    root = write_book(tmp_path)
    for name in ("quarto.html", "quarto.css"):
        shutil.copy(ROOT / "nbs" / name, root / "nbs" / name)
    write_for_quarto(read_outline(root), root / "_proc")
    html = AS_QUARTO.format(
        style=(root / "_proc" / "quarto.css").read_text(encoding="utf-8"), words="word " * 30,
        heads="<th style='text-align: right'>number</th>" * 20, cells="<td>1234</td>" * 20,
        after=(root / "_proc" / "quarto.html").read_text(encoding="utf-8"),
    )  # fmt: skip
    (root / "page.html").write_text(html, encoding="utf-8")
    with visit(browser, (root / "page.html").as_uri(), width=390, touch=True) as v:
        assert v.complaints == []
        assert v.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert v.page.locator(".check-badge").inner_text() == "checked numerically: one"
        assert v.page.locator(".term").all_inner_texts() == ["token"]
        v.page.locator(".term").tap()
        meaning = v.page.locator(".meaning:popover-open")
        assert meaning.inner_text().split("\n") == ["token · 词元", "A unit of text. Read on"]
        assert meaning.locator("a").get_attribute("href") == "../one.html#sec-first"
        v.page.keyboard.press("Escape")
        assert not meaning.count()
        cells = v.page.locator(".stack .words").get_by_role("cell")
        assert [cells.nth(i).bounding_box()["x"] for i in range(3)] == [cells.first.bounding_box()["x"]] * 3
        assert v.page.locator(".wide .numbers").count() and not v.page.locator(".stack .numbers").count()


# ---- interactive pieces --------------------------------------------------------------------------------


@contextlib.contextmanager
def piece(browser, folder: Path, kind: str, data: dict) -> Iterator[Visit]:
    """A page with nothing but one piece, as a notebook would show it."""
    from gptbook.workshop.interactive import as_html

    html = as_html(kind, data, ROOT / "nbs" / "interactive")
    (folder / "piece.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>t</title>{html}", encoding="utf-8"
    )
    with visit(browser, (folder / "piece.html").as_uri()) as v:
        v.page.wait_for_selector(".piece[data-live]")
        yield v
        assert v.complaints == []
        assert {urlsplit(url).scheme for url in v.requests} == {"file"}


def slide(v: Visit, name: str, value: float) -> None:
    """Move the slider of a name."""
    move = "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }"
    v.page.locator(f".piece input[name='{name}']").evaluate(move, value)


def noted(v: Visit, name: str) -> str:
    """What the piece says of its state, for tests."""
    return v.page.locator(".piece").get_attribute(f"data-{name}")


@pytest.mark.parametrize(
    ("temperature", "k", "p", "min_p"),
    [
        (1, None, 1, 0),
        (0.5, None, 1, 0),
        (1, 5, 1, 0),
        (1.5, None, 0.8, 0),
        (1, None, 1, 0.2),
        (0.7, 10, 0.9, 0.1),
    ],
)
def test_sliders_filter_as_the_package_does(
    temperature: float, k: int | None, p: float, min_p: float, browser, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from gptbook.sample import apply_temperature, keep_min_p, keep_top_k, keep_top_p

    logits = (2 * torch.randn(40, generator=torch.Generator().manual_seed(0))).sort(descending=True).values
    logits = torch.tensor([round(x, 3) for x in logits.tolist()], dtype=torch.float64)[None]
    data = {"context": "a", "tokens": [chr(97 + i) for i in range(40)], "logits": logits[0].tolist()}
    with piece(browser, tmp_path, "sampling", data) as v:
        slide(v, "temperature", temperature)
        slide(v, "top-k", [1, 2, 3, 5, 8, 10, 15, 20, 30, 40].index(k or 40))
        slide(v, "top-p", p)
        slide(v, "min-p", min_p)
        wanted = keep_top_k(apply_temperature(logits, temperature), k or 40)
        wanted = keep_min_p(keep_top_p(wanted, p) if p < 1 else wanted, min_p).softmax(-1)
        assert int(noted(v, "kept")) == int((wanted > 0).sum())
        assert float(noted(v, "best")) == pytest.approx(wanted.max().item(), abs=1e-5)
        v.page.click(".piece button")
        drawn = v.page.locator(".piece .pills code").all_text_contents()
        assert len(drawn) == 24 and set(drawn) <= {
            data["tokens"][i] for i in (wanted[0] > 0).nonzero().flatten().tolist()
        }


def test_merges_cut_as_the_package_does(browser, tmp_path: Path) -> None:
    from gptbook.tokenizer import BYTE_ORDER, BPETokenizer

    def digits(n: int) -> str:
        return (digits(n // 36) if n > 35 else "") + "0123456789abcdefghijklmnopqrstuvwxyz"[n % 36]

    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    tokenizer = BPETokenizer.train(text + " 34" * 300 + " 1234" * 200, vocab_size=700)
    merges = ";".join(f"{digits(a)},{digits(b)}" for a, b in tokenizer.merges)
    texts = [
        "the License",
        "It's we'LL  9934 x\n\n y",
        "不识庐山真面目, 词元!",
        "naïve café 🙂🙂",
        "",
        "\tend  ",
        text[:1500],
    ]
    with piece(browser, tmp_path, "merges", {"text": "start", "merges": merges, "order": BYTE_ORDER}) as v:
        for sample in texts:
            v.page.fill(".piece textarea", sample)
            assert int(noted(v, "tokens")) == len(tokenizer.encode(sample)), sample
        slide(v, "merges that change this text", 0)
        assert int(noted(v, "tokens")) == len(texts[-1].encode())


def test_dials_turn_as_the_package_does(browser, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from gptbook.embedding import RotaryPositions

    curve = RotaryPositions(16)(torch.arange(65))[0].mean(-1)
    with piece(browser, tmp_path, "rotary", {"pairs": 8, "base": 10_000, "longest": 64}) as v:
        for distance in (0, 1, 17, 64):
            slide(v, "distance to the key", distance)
            for place in (64, 200):  # moving both changes nothing
                slide(v, "place of the query", place)
                assert float(noted(v, "score")) == pytest.approx(curve[distance].item(), abs=1e-5)
        v.page.click(".piece button >> nth=1")
        assert float(noted(v, "score")) > curve[64].item()


def test_the_map_says_where_a_token_looks(browser, tmp_path: Path) -> None:
    heads = [[[100, 0, 0], [70, 30, 0], [10, 20, 70]], [[100, 0, 0], [10, 90, 0], [20, 60, 20]]]
    layers = [{"name": "first", "heads": heads[:1]}, {"name": "second", "heads": heads}]
    with piece(browser, tmp_path, "attention", {"tokens": ["a", "b", "c"], "layers": layers}) as v:
        assert (noted(v, "row"), noted(v, "best")) == ("2", "2")
        v.page.click("text=second")
        v.page.click(".piece [aria-label=head] button >> nth=1")
        assert noted(v, "best") == "1"
        v.page.locator(".piece svg rect").nth(4).hover()
        assert noted(v, "row") == "1"  # three cells and a bar of the first row come before
        slide(v, "token", 1)
        assert (noted(v, "row"), noted(v, "best")) == ("0", "0")


def test_every_piece_of_the_book_is_alive_and_light(browser, site: Path) -> None:
    found = 0
    for path in sorted(site.glob("*.html")):
        text = path.read_text(encoding="utf-8")
        if 'class="piece"' not in text:
            continue
        with visit(browser, path.as_uri()) as v:
            pieces = v.page.locator(".piece")
            assert pieces.count() == v.page.locator(".piece[data-live]").count()
            stills = v.page.locator(".piece + .still img")
            assert stills.count() >= pieces.count() and not stills.first.is_visible()
            for data in re.findall(r'<script type="application/json">(.*?)</script>', text, flags=re.S):
                assert len(data.encode()) + (site / "assets" / "pieces.js").stat().st_size < 60_000
            found += pieces.count()
    assert found >= 3


def test_nothing_loads_from_elsewhere(site: Path) -> None:
    """No page and no style loads a thing by a whole address; links to follow may have one."""
    loads = re.compile(
        r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//|url\([\"']?https?:"
    )
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert [p.name for p in files if loads.search(p.read_text(encoding="utf-8"))] == []
    entries = (site / "search-index.js").read_text(encoding="utf-8")
    assert len(json.loads(entries.removeprefix("window.BOOK_INDEX=").removesuffix(";\n"))) > 300
