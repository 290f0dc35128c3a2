"""The tools that build the site, on a small book: numbers, references, faults, caches. No node, no browser"""

import ast
import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import sitebook
import yaml
from bookfiles import ROOT
from lxml import etree, html
from sitebook import CHAPTERS, PNG, SVG, code, markdown, printed, shown, write_book

from tools.site import api, audit, build, documents, download, resolve, search, vendor
from tools.site.outline import Page, read_outline
from tools.site.stage import BookError, split_title, staged, write_for_quarto


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pandoc must be there; npm's packages and KaTeX are replaced by the least that will do."""
    sitebook.require_pandoc()
    modules = tmp_path / "node_modules"
    (modules / "katex" / "dist").mkdir(parents=True)
    (modules / "katex" / "dist" / "katex.min.css").write_text(".katex{}")
    monkeypatch.setattr(build, "fetch", lambda: modules)

    def draw(self: vendor.Drawings, wanted: list[tuple[str, str]]) -> None:
        self.known = {
            "\0".join(w): {"html": f'<span class="katex">{len(w[1])} characters</span>'} for w in set(wanted)
        }

    monkeypatch.setattr(vendor.Drawings, "prepare", draw)


def build_book(root: Path, changes: dict[str, list[dict]] | None = None) -> Path:
    write_book(root, changes)
    build.Site(read_outline(root)).build()
    return root / "_site"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return build_book(tmp_path)


def page(site: Path, name: str):
    return html.parse(str(site / name), html.HTMLParser(encoding="utf-8")).getroot()


def text(element) -> str:
    return re.sub(r"\s+", " ", element.text_content()).strip()


# ---- outline and staging ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["index.ipynb", "06_attention.ipynb", "A_notation.ipynb", "workshop/cli.ipynb"]
)
def test_addresses_are_those_of_nbdev(source: str) -> None:
    from nbdev.config import nbpath2html

    assert Page(source).url == nbpath2html(Path(source)).as_posix()


def test_outline_numbers_chapters_by_file_and_letters_appendices(tmp_path: Path) -> None:
    outline = read_outline(write_book(tmp_path))
    assert [(p.source[:2], p.number) for p in outline.pages] == [
        ("in", ""), ("01", "1"), ("02", "2"), ("A_", "A"), ("B_", "B"), ("C_", "C"),
    ]  # fmt: skip
    assert outline.pages[1].part == "I The part"


def test_the_book_s_own_appendices_carry_their_letters() -> None:
    for page in read_outline().pages:
        if match := re.match(r"([A-Z])_", page.source):
            assert page.number == match[1], f"{page.source} would be appendix {page.number}"


def test_outline_names_what_is_missing(tmp_path: Path) -> None:
    (write_book(tmp_path) / "nbs" / "02_two.ipynb").unlink()
    with pytest.raises(FileNotFoundError, match=r"02_two\.ipynb"):
        read_outline(tmp_path)


def test_staging_obeys_directives(tmp_path: Path) -> None:
    cells = staged(write_book(tmp_path) / "nbs" / "01_one.ipynb")
    sources = "\n".join(cell.source for cell in cells)
    assert "HIDDEN" not in sources and "#|" not in sources
    assert "def double" in sources and "摘要" in sources
    assert [cell.number for cell in cells] == [0, 0, 2, 3, 4, 5]
    assert cells[3].directives["check"] == "eq-one, eq-two symbolic"


def test_staging_for_quarto_loses_nothing_of_the_first_cell(tmp_path: Path) -> None:
    outline = read_outline(write_book(tmp_path))
    write_for_quarto(outline, tmp_path / "_proc")
    first, second = json.loads((tmp_path / "_proc" / "01_one.ipynb").read_text())["cells"][:2]
    assert first["cell_type"] == "raw" and "title: One" in "".join(first["source"])
    assert "output-file: one.html" in "".join(first["source"])
    assert "摘要" in "".join(second["source"])
    assert (tmp_path / "_proc" / "index.qmd").read_text().startswith("# A small book {.unnumbered}\n")
    assert "index.qmd" in (tmp_path / "_proc" / "_quarto.yml").read_text()
    assert not (tmp_path / "_proc" / "index.ipynb").exists()
    assert "#| check: eq-one" in (tmp_path / "_proc" / "01_one.ipynb").read_text()


def test_quarto_finds_all_that_its_settings_name(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    form = config["format"]["html"]
    named = [form["css"], form["include-after-body"], config["bibliography"]]
    assert [name for name in named if not (ROOT / "nbs" / name).is_file()] == []
    outline = read_outline(write_book(tmp_path))
    write_for_quarto(outline, tmp_path / "_proc", tmp_path / "node_modules" / "katex" / "dist")
    folders = [*config["project"]["resources"], form["html-math-method"]["url"]]
    assert [name for name in folders if not (tmp_path / "_proc" / name).is_dir()] == []


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("# T\n\n> Q?\n\nrest", ("T", "Q?", "rest")),
        ("# T", ("T", "", "")),
        ("## T", None),
        ("text\n# T", None),
    ],
)
def test_split_title(source: str, parts: tuple | None) -> None:
    assert split_title(source) == parts


# ---- the pages ---------------------------------------------------------------------------------------


def test_numbers_and_references(site: Path) -> None:
    one, two = page(site, "one.html"), page(site, "two.html")
    assert text(one.get_element_by_id("eq-one").find_class("number")[0]) == "(1.1)"
    assert text(one.get_element_by_id("eq-two").find_class("number")[0]) == "(1.2)"
    assert text(one.get_element_by_id("sec-first").find_class("section-number")[0]) == "1.1"
    links = [(text(a).replace("\xa0", " "), a.get("href")) for a in two.find_class("ref")]
    assert links == [
        ("Equation 1.1", "one.html#eq-one"), ("Equation 1.2", "one.html#eq-two"),
        ("Figure 1.1", "one.html#fig-dot"),
        ("Section 1.1", "one.html#sec-first"), ("1.1", "one.html#eq-one"),
        ("Equation 1.1", "one.html#eq-one"), ("Figure 2.1", "#fig-map"),
    ]  # fmt: skip
    assert len(two.xpath("//template[@data-preview='eq-one']")) == 1
    caption = one.get_element_by_id("fig-dot").find("figcaption")
    assert text(caption).replace("\xa0", " ") == "Figure 1.1 A dot, as in Equation 1.2."
    assert caption.xpath(".//a[@href='#eq-two']")
    assert text(two.get_element_by_id("fig-map")) == "Figure 2.1 The map, as of Equation 1.1."
    assert two.get_element_by_id("fig-map").xpath(".//img/@alt") == ["Two boxes."]
    assert text(two.get_element_by_id("tbl-numbers").find("figcaption")) == "Table 2.1 Numbers."


def test_checks_and_formulas_point_at_each_other(site: Path) -> None:
    one = page(site, "one.html")
    cell = one.get_element_by_id("cell-3")
    assert text(cell.find_class("checks")[0]) == "checked symbolically (1.1) one, (1.2) two"
    assert one.get_element_by_id("eq-one").xpath(".//a[@class='badge' and @href='#cell-3']")


def test_citations_and_the_list_of_them(site: Path) -> None:
    two = page(site, "two.html")
    assert "Smith 2020" in text(two.find_class("content")[0])
    assert "On Books" in text(two.get_element_by_id("ref-smith2020"))
    assert not page(site, "one.html").xpath("//*[@id='refs']")


def test_callouts_may_span_cells(site: Path) -> None:
    (solution,) = page(site, "two.html").find_class("solution")
    assert solution.tag == "details" and "It is four" in text(solution) and solution.find_class("output")
    assert "After it" not in text(solution)
    (abstract,) = page(site, "one.html").find_class("abstract")
    assert abstract.get("lang") == "zh" and "摘要第二行" in text(abstract)


def test_names_lead_to_their_definition_and_from_there_to_the_api(site: Path) -> None:
    two, one = page(site, "two.html"), page(site, "one.html")
    uses = [a.get("href") for a in two.xpath("//a[text()='double' or code='double']")]
    assert uses == ["one.html#cell-4"] * 3  # the import, the call, the name in the prose
    assert one.get_element_by_id("cell-4").xpath(".//a[text()='double']/@href") == [
        "c_api.html#api-one-double"
    ]
    assert page(site, "c_api.html").xpath("//*[@id='api-one-double']")
    listed = page(site, "c_api.html").find_class("index")
    assert [(text(a), a.get("href")) for a in listed] == [("double", "#api-one-double")]


def test_glossary_terms_carry_their_chinese(site: Path) -> None:
    (term,) = page(site, "one.html").find_class("term")
    assert (term.get("data-zh"), term.get("href")) == ("词元", "#sec-first")


def test_llms_txt_and_notebooks_are_there(site: Path) -> None:
    assert (
        "- [1 One](one.html): What is one? Notebook: notebooks/01_one.ipynb"
        in (site / "llms.txt").read_text()
    )
    assert (site / "notebooks" / "01_one.ipynb").read_bytes() == (
        site.parent / "nbs" / "01_one.ipynb"
    ).read_bytes()


def test_colab_and_source_only_with_an_address(tmp_path: Path) -> None:
    site = build_book(tmp_path)
    original = (tmp_path / "nbs" / "01_one.ipynb").read_bytes()
    assert "colab" not in (site / "one.html").read_text()
    assert (site / "notebooks" / "01_one.ipynb").read_bytes() == original
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nrepository = https://github.com/them/book\n")
    build.Site(read_outline(tmp_path)).build()
    links = page(site, "one.html").xpath("//p[@class='facts']/a/@href")
    assert "https://colab.research.google.com/github/them/book/blob/colab/01_one.ipynb" in links
    cells = json.loads((site / "notebooks" / "01_one.ipynb").read_text())["cells"]
    assert "git+https://github.com/them/book" in "".join(cells[1]["source"])
    assert [*cells[:1], *cells[2:]] == json.loads(original)["cells"]
    source = page(site, "c_api.html").xpath("//a[text()='source']/@href")
    assert source == ["https://github.com/them/book/blob/main/gptbook/one.py#L7"]


READING = code(
    "import json\nfrom pathlib import Path\n%time\n"
    "old = json.loads((Path('results') / 'old.json').read_text())\n"
    "words = Path('glossary.json').read_text()\nfirst = Path(f'{\"01_one\"}.ipynb').read_text()"
)


def reading_book(root: Path) -> Path:
    """The small book, in which chapter 2 reads three files and appendix B all of them."""
    (root / "nbs" / "results").mkdir(parents=True)
    (root / "nbs" / "results" / "old.json").write_text("1")
    (root / "nbs" / "results" / "other.json").write_text("2")
    whole = [markdown("# B"), code("from gptbook.workshop.ledger import formulas\nformulas('.')")]
    chapter = [*CHAPTERS["02_two.ipynb"], READING]
    return build_book(root, {"02_two.ipynb": chapter, "B_more.ipynb": whole})


def test_what_a_notebook_reads_is_downloaded_with_it(tmp_path: Path) -> None:
    site = reading_book(tmp_path)
    links = {n: page(site, n).xpath("//a[@download]")[0] for n in ("one.html", "two.html", "b_more.html")}
    urls = [link.get("href") for link in links.values()]
    assert urls == ["notebooks/01_one.ipynb", "notebooks/02_two.zip", "notebooks/all-notebooks.zip"]
    assert text(links["two.html"]) == "Download notebook with its data (zip)"
    with zipfile.ZipFile(site / urls[1]) as packed:
        names = {name.removeprefix("02_two/") for name in packed.namelist()}
        assert packed.read("02_two/results/old.json") == b"1"
    assert names == {"02_two.ipynb", "01_one.ipynb", "glossary.json", "results/old.json"}
    with zipfile.ZipFile(site / urls[2]) as packed:
        assert {f"all-notebooks/{n}" for n in (*names, "results/other.json")} < set(packed.namelist())
    (tmp_path / "nbs" / "results" / "old.json").write_text("3")
    assert build.Site(read_outline(tmp_path)).build()
    with zipfile.ZipFile(site / urls[1]) as packed:
        assert packed.read("02_two/results/old.json") == b"3"


def test_in_colab_a_chapter_fetches_what_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading_book(tmp_path)
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nrepository = https://github.com/them/book\n")
    site = build.Site(read_outline(tmp_path))
    branch = {path.relative_to(site.target / "notebooks").as_posix(): path for path in site.chapters()}
    first = "".join(json.loads(branch["02_two.ipynb"].read_text())["cells"][1]["source"])
    raw = "https://raw.githubusercontent.com/them/book/colab/"
    fetched = lambda url, path: shutil.copy(branch[url.removeprefix(raw)], path)  # noqa: E731
    monkeypatch.setattr("urllib.request.urlretrieve", fetched)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    exec(re.sub(r"^ *%pip.*$", "    raise ImportError", first, flags=re.M), {})
    exec("".join(READING["source"]).replace("%time", ""), {})
    assert "urllib" not in branch["01_one.ipynb"].read_text()


def test_downloads_of_the_book_hold_what_its_notebooks_name() -> None:
    nbs = ROOT / "nbs"
    found = 0
    for path in [*nbs.glob("*.ipynb"), *nbs.glob("workshop/*.ipynb")]:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        named = {name for name in re.findall(r"[\w-]+\.(?:jsonl?|csv|txt|bib)\b", source)}
        named = {file.relative_to(nbs).as_posix() for name in named for file in nbs.rglob(name)}
        more = download.companions(path, nbs)
        assert more is None or named <= set(more), f"{path.name} reads {named}"
        found += len(named)
    assert found >= 8
    assert {"02_microworld.ipynb", "results/first_gpt.json"} < set(
        download.companions(nbs / "24_epilogue.ipynb", nbs)
    )


# ---- what must not pass --------------------------------------------------------------------------------

FAULTS = {
    "no such formula": (markdown("By @eq-nothing."), r"02_two\.ipynb cell 1: there is no eq-nothing"),
    "no such source": (markdown("By [@nobody1999]."), r"cell 1: the bibliography has no entry nobody1999"),
    "both at once": (markdown("By [@eq-one; @smith2020]."), "a reference and a citation"),
    "label twice": (
        markdown("$$ x $$ {#eq-one}"),
        r"02_two\.ipynb cell 1: the label eq-one is there twice, first in 01",
    ),
    "label twice here": (
        markdown("$$ x $$ {#eq-x}\n\n$$ y $$ {#eq-x}"),
        "cell 1: the label eq-x is there twice",
    ),
    "label on text": (markdown("Words {#eq-x}"), r"cell 1: \{#eq-x\} does not follow a displayed formula"),
    "dead link": (markdown("[gone](03_gone.ipynb)"), r"cell 1: a link to 03_gone\.ipynb"),
    "dead place": (markdown("[gone](01_one.ipynb#sec-gone)"), "cell 1: a link to .*there is no sec-gone"),
    "dead place here": (markdown("[gone](#sec-gone)"), "cell 1: a link to #sec-gone"),
    "picture from elsewhere": (markdown("![x](https://a.b/c.png)"), "cell 1: a picture from elsewhere"),
    "missing picture": (markdown("![x](gone.png)"), r"02_two\.ipynb: there is no picture gone\.png"),
    "colons left": (markdown("text\n:::\nmore"), "left over in the text: ':::'"),
    "footnote without a text": (markdown("A word[^gone]."), r"left over in the text: 'word\[\^gone\]\.'"),
    "class after a space": (markdown("[A note] {.aside}"), r"left over in the text: '\{\.aside\}'"),
    "second title": (markdown("# Again"), "cell 1: a second title: 'Again'"),
    "list without a line": (markdown("Items:\n- one\n- two"), "cell 1: a list needs an empty line"),
    "unknown check": (code("#| check: eq-gone numeric\nassert True"), "cell 1: checks eq-gone"),
    "odd check": (code("#| check: one\nassert True"), "cell 1: '#| check: one' is not"),
    "figure without output": (code('#| label: fig-x\n#| fig-cap: "x"\n1'), "cell 1: fig-x has no output"),
    "error kept": (
        code("1/0", {"output_type": "error", "ename": "ZeroDivisionError"}),
        "cell 1: ended in Zero",
    ),
    "picture without words": (
        code("show()", shown(image_png=PNG)),
        r"two\.html cell 1: the picture .* has no text",
    ),
    "other host": (
        code("x", shown(text_html='<script src="https://cdn.b/x.js"></script>')),
        r"two\.html cell 1: loads https://cdn\.b/x\.js from another host",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found_with_their_place(name: str, tmp_path: Path) -> None:
    cell, message = FAULTS[name]
    with pytest.raises(BookError, match=message):
        build_book(tmp_path, {"02_two.ipynb": [markdown("# Two"), cell]})


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    bad = [markdown("# T\n\nBy @eq-gone.")]
    with pytest.raises(BookError) as caught:
        build_book(tmp_path, {"A_notation.ipynb": bad, "B_more.ipynb": bad})
    assert len(str(caught.value).splitlines()) == 2


def test_a_formula_that_cannot_be_drawn_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = vendor.Drawings.prepare

    def broken(self: vendor.Drawings, wanted) -> None:
        draw(self, wanted)
        self.known["math\0a"] = {"error": "KaTeX parse error"}

    monkeypatch.setattr(vendor.Drawings, "prepare", broken)
    with pytest.raises(BookError, match=r"01_one\.ipynb cell 2: KaTeX parse error in a"):
        build_book(tmp_path)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="gone.html">x</a>', "a dead link to gone.html"),
        ('<a href="#gone">x</a>', "there is no #gone"),
        ('<img src="https://a.b/c.png" alt="x">', "loads https://a.b/c.png"),
        ('<p id="a"></p><p id="a"></p>', "the id a is there twice"),
        ("<p>see @eq-x</p>", "left over in the text"),
        ("<p>$$ x $$</p>", "left over in the text"),
        ('<p style="background:url(https://a.b/c.png)">x</p>', "a style that loads"),
    ],
)
def test_audit(body: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(f"<!doctype html><title>t</title>{body}")
    assert any(fault in found for found in audit.audit(tmp_path))


def test_audit_lets_pass_what_is_right(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<!doctype html><p id="p"><a href="#p">x</a> <a href="https://a.b">y</a> <code>@eq-x</code>'
    )
    assert audit.audit(tmp_path) == []


# ---- building again ------------------------------------------------------------------------------------


def test_nothing_changed_builds_nothing(tmp_path: Path) -> None:
    build_book(tmp_path)
    assert build.Site(read_outline(tmp_path)).build() is False
    shutil.rmtree(tmp_path / "_site")
    assert build.Site(read_outline(tmp_path)).build() is True
    assert (tmp_path / "_site" / "figures" / "one" / "fig-dot.png").is_file()


def test_a_change_reaches_the_pages_that_refer_to_it(tmp_path: Path) -> None:
    build_book(tmp_path)
    cells = [CHAPTERS["01_one.ipynb"][0], markdown("$$ new $$ {#eq-new}"), *CHAPTERS["01_one.ipynb"][1:]]
    site = build_book(tmp_path, {"01_one.ipynb": cells})
    assert text(page(site, "two.html").find_class("ref")[0]).replace("\xa0", " ") == "Equation 1.2"


def test_pages_that_are_gone_are_removed(tmp_path: Path) -> None:
    site = build_book(tmp_path)
    assert (site / "b_more.html").is_file()
    (tmp_path / "_quarto.yml").write_text(sitebook.QUARTO.replace(", B_more.ipynb", ""))
    build.Site(read_outline(tmp_path)).build()
    assert not (site / "b_more.html").exists() and not (site / "notebooks" / "B_more.ipynb").exists()


# ---- outputs ---------------------------------------------------------------------------------------------


def test_outputs_of_all_kinds(tmp_path: Path) -> None:
    cells = [
        markdown("# Two"),
        code("a", printed("one\n"), printed("two\n")),
        code('#| fig-alt: "A square."\nb', shown(image_svgxml=SVG)),
        code("c", shown(text_html="<table><tr><td>5</td></tr></table>", text_plain="5")),
        code("#| echo: false\nd", shown(text_plain="````")),
        code("#| code-fold: true\nfolded", printed("after the fold")),
        code('#| fig-alt: "Numbers."\nheatmap(ax, x)', shown(image_svgxml=SVG)),
        code('#| fig-alt: "Still."\ne', shown(text_html="<div class='piece'></div>", image_svgxml=SVG)),
    ]
    tree = page(build_book(tmp_path, {"02_two.ipynb": cells}), "two.html")
    assert [text(e) for e in tree.find_class("output")] == ["one two", "````", "after the fold"]
    (fold,) = tree.find_class("fold")
    assert "folded" in text(fold) and "after" not in text(fold)
    assert tree.xpath("//img[@alt='A square.']/@src") == ["figures/two/cell-2.svg"]
    # on dark paper drawings get more light, but not shades with numbers on them
    assert [img.get("alt") for img in tree.find_class("drawn")] == ["A square.", "Still."]
    assert tree.xpath("//td[text()='5']")
    assert not tree.get_element_by_id("cell-4").find_class("code")
    assert tree.xpath("//div[@class='piece']/following-sibling::div[@class='still']//img/@loading") == [
        "eager"
    ]


# ---- notes, tables, pictures -------------------------------------------------------------------------------

NOTES = """\
# Two

A word[^far] and another^[At once, with $x$.] in a sentence. [Beside it, as @eq-one says.]{.aside} It goes on.

::: {.column-margin}
A block in the margin.
:::

[^far]: Further down, by [@smith2020].
"""


def test_margin_notes_and_footnotes(tmp_path: Path) -> None:
    tree = page(build_book(tmp_path, {"02_two.ipynb": [markdown(NOTES)]}), "two.html")
    (inline,) = tree.find_class("aside")
    assert inline.getparent().tag == "p" and inline.get("role") == "note"
    assert text(inline) == "Beside it, as Equation 1.1 says."
    (block,) = tree.find_class("column-margin")
    assert text(block) == "A block in the margin." and block.getparent().get("class") == "content"
    (notes,) = tree.find_class("footnotes")
    said = [text(li).rstrip("↩︎ ") for li in notes.iter("li")]
    assert said == ["Further down, by (Smith 2020).", "At once, with 1 characters."]
    assert [a.get("href") for a in tree.find_class("footnote-ref")] == ["#fn1", "#fn2"]
    ids = [e.get("id") for e in tree.iter() if isinstance(e.tag, str) and e.get("id")]
    assert ids.index("fn1") < ids.index("references")  # not after the list of sources, nor among the contents


def test_notes_go_to_the_foot_of_a_printed_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("typst")
    monkeypatch.setattr(documents, "fonts", lambda folder: folder)
    site = build.Site(read_outline(write_book(tmp_path, {"02_two.ipynb": [markdown(NOTES)]})))
    documents.write("pdf", site)
    source = (site.cache / "pdf" / "book.typ").read_text(encoding="utf-8")
    source = re.sub(r"\s+#foot", "#foot", source)
    assert source.count("#footnote[") == 3 and "sentence.#footnote[Beside it" in source
    assert re.search(r"#aside\[\s*A block in the margin\.\s*\]", source)


def test_a_formula_keeps_its_punctuation(tmp_path: Path) -> None:
    cell = markdown("# Two\n\nFor $K$, the ($n$th) and $a$ alone, $x$’s and $y$-like.\n\n概率$p$是一个数。")
    tree = page(build_book(tmp_path, {"02_two.ipynb": [cell]}), "two.html")
    kept = [text(e).replace("1 characters", "x") for e in tree.find_class("glued")]
    assert kept == ["x,", "(xth)", "x’s", "x-"]


def test_a_table_has_the_widths_of_its_content_and_its_caption_beside_it(tmp_path: Path) -> None:
    long = "| name | what |\n|--|--------|\n| a | " + "word " * 30 + "|"
    cells = [
        markdown("# Two"),
        code('#| label: tbl-long\n#| tbl-cap: "Long."\nt()', printed("said"), shown(text_markdown=long)),
        code('#| label: tbl-text\n#| tbl-cap: "As text."\nt()', printed("1 2")),
    ]
    tree = page(build_book(tmp_path, {"02_two.ipynb": cells}), "two.html")
    assert not tree.xpath("//col") and tree.xpath("//div[@class='scroll prose']/table")
    figure = tree.get_element_by_id("tbl-long")
    assert figure.getprevious().get("class") == "output" and not figure.find_class("output")
    assert (
        text(tree.get_element_by_id("tbl-text")) == "Table 2.2 As text. 1 2"
    )  # the table is what it printed


def test_a_table_of_words_can_be_stacked_and_one_of_numbers_not(tmp_path: Path) -> None:
    row = "| a $x$ | " + "word " * 30 + "|  |\n"
    words, chapters, numbers = (
        f"| name | what | |\n|{columns}|\n" for columns in (":--|--|--", "--:|--|--", "--:|--|--:")
    )
    cells = [markdown("# Two"), *(markdown(head + row) for head in (words, chapters, numbers))]
    tables = list(page(build_book(tmp_path, {"02_two.ipynb": cells}), "two.html").iter("table"))
    assert ["stack" in table.getparent().get("class") for table in tables] == [True, True, False]
    stacked = tables[0]
    roles = {e.tag: e.get("role") for e in stacked.iter()}
    assert roles["thead"] == roles["tbody"] == "rowgroup"
    assert (roles["table"], roles["tr"], roles["th"], roles["td"]) == ("table", "row", "columnheader", "cell")
    assert [td.get("data-label") for td in stacked.iter("td")] == ["name", "what", None]


def test_a_wide_picture_can_be_moved(tmp_path: Path) -> None:
    root = write_book(tmp_path)
    (root / "nbs" / "map.svg").write_text(SVG.replace("0 0 1 1", "0 0 900 300"))
    build.Site(read_outline(root)).build()
    (box,) = page(root / "_site", "two.html").find_class("picture")
    assert (box.get("style"), box.get("tabindex")) == ("--natural:900px;--least:0.95", "0")
    assert box.xpath(".//img")
    assert not page(root / "_site", "one.html").find_class("picture")


def test_a_drawing_that_a_cell_made_can_be_moved(tmp_path: Path) -> None:
    drawing = SVG.replace("<svg ", '<svg width="600pt" height="300pt" ')
    cells = [markdown("# Two"), code('#| fig-alt: "Wide."\ndraw()', shown(image_svgxml=drawing))]
    (box,) = page(build_book(tmp_path, {"02_two.ipynb": cells}), "two.html").find_class("picture")
    assert box.get("style") == "--natural:800px;--least:0.95"
    assert box.xpath(".//img/@width | .//img/@height") == ["800", "400"]


# ---- EPUB and PDF ------------------------------------------------------------------------------------------


def test_the_epub_has_formulas_as_formulas_and_whole_links(tmp_path: Path) -> None:
    site = build.Site(read_outline(write_book(tmp_path)))
    with zipfile.ZipFile(documents.write("epub", site)) as book:
        pages = {n: etree.fromstring(book.read(n)) for n in book.namelist() if n.endswith(".xhtml")}
        assert any(name.endswith(".png") for name in book.namelist())
    found = [(name, e) for name, tree in pages.items() for e in tree.iter() if isinstance(e.tag, str)]
    assert sum(e.tag.endswith("}math") for _, e in found) == 4  # a, the two that are numbered, and x
    ids = {(Path(name).name, e.get("id")) for name, e in found if e.get("id")}
    for name, element in found:
        url = element.get("href") or ""
        if "#" in url and not url.startswith("http"):
            target, _, anchor = url.rpartition("/")[2].partition("#")
            assert (target or Path(name).name, anchor) in ids, url
    words = " ".join("".join(tree.itertext()) for tree in pages.values())
    assert "Equation\xa01.1" in words and "(1.1)" in words and "On Books" in words and "摘要" in words
    assert "@eq" not in words and "{#" not in words


def test_the_pdf_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("typst")
    monkeypatch.setattr(documents, "fonts", lambda folder: folder)  # the Chinese one comes from npm
    site = build.Site(read_outline(write_book(tmp_path)))
    assert documents.write("pdf", site).read_bytes()[:5] == b"%PDF-"
    source = (site.cache / "pdf" / "book.typ").read_text(encoding="utf-8")
    assert '#numbered("1.1")' not in source and '#numbered("(1.1)")[$ a = b . $] <eq-one>' in source
    assert "#link(<eq-one>)" in source


def test_a_formula_that_pandoc_cannot_read_stops_the_documents(tmp_path: Path) -> None:
    root = write_book(tmp_path, {"02_two.ipynb": [markdown("# Two\n\n$$ \\undefinedcommand{x} $$")]})
    with pytest.raises(BookError, match="undefinedcommand"):
        documents.write("epub", build.Site(read_outline(root)))


# ---- API and search ----------------------------------------------------------------------------------------


def test_long_signatures_take_a_line_for_each_argument() -> None:
    args = "self, alpha: int, *, beta: str | None = None, gamma: float = 0.5, long: int = 1"
    node = ast.parse(f"def f({args}) -> dict[str, int]: ...").body[0]
    assert api._signature(node, "f", True).splitlines() == [
        "f(", "    alpha: int,", "    *,", "    beta: str | None = None,", "    gamma: float = 0.5,",
        "    long: int = 1,", ") -> dict[str, int]",
    ]  # fmt: skip
    short = ast.parse("def g(x=1, *rest, **more): ...").body[0]
    assert api._signature(short, "g", False) == "g(x=1, *rest, **more)"


def test_docstrings_become_markdown() -> None:
    doc = "Costs $5 of ``x``.\n\n"
    doc += "Args:\n    q, k: queries (B, T);\n        and more.\n    mask: true.\n\n"
    doc += "Returns y.\nRaises ``ValueError``."
    assert api.prose(doc).split("\n\n") == [
        r"Costs \$5 of `x`.", "`q`, `k`\n:   queries (B, T); and more.", "`mask`\n:   true.",
        "**Returns** y.",
        "**Raises** `ValueError`.",
    ]  # fmt: skip


def test_the_api_lists_what_every_module_exports() -> None:
    modules = api.read_package()
    listed = {f"gptbook.{m.name}": {item.name for item in m.items} for m in modules}
    for path in (ROOT / "gptbook").glob("*.py"):
        match = re.search(r"^__all__ = (\[.*?\])", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        if match and path.stem != "__init__" and "AUTOGENERATED" in path.read_text(encoding="utf-8"):
            assert listed.get(f"gptbook.{path.stem}", set()) == set(ast.literal_eval(match[1])), path.stem


def test_search_index_has_text_code_formulas_terms_and_names(site: Path) -> None:
    script = (site / "search-index.js").read_text(encoding="utf-8")
    entries = json.loads(script.removeprefix("window.BOOK_INDEX=").removesuffix(";\n"))
    kinds = {entry.get("k"): entry for entry in entries}
    assert set(kinds) == {None, "formula", "figure", "table", "term", "code"}
    assert kinds["term"] == {
        "u": "one.html#sec-first",
        "p": "Glossary",
        "t": "token",
        "x": "词元. A unit of text.",
        "k": "term",
    }
    first = next(e for e in entries if e["t"] == "First")
    assert "unit" in first["x"] and "def double" in first["c"]
    assert not any(re.search(r"@(eq|fig|tbl|sec)-", entry["x"]) for entry in entries)


@pytest.mark.parametrize(
    ("tex", "words"),
    [
        (r"\mathbf Q\mathbf K^\top", "Q K^ᵀ"),
        (r"\dfrac{e^{s_j}}{\sum_i e^{s_i}}\le 1", "(e^s_j)/(∑_i e^s_i)≤1"),
        (r"\tfrac12 x", "1/2 x"),
        (r"\operatorname{softmax}\!\left(x\right)", "softmax (x )"),
        (r"\begin{cases} 1 & x\ge 0 \\ 0 \end{cases}", "1 x≥0 0"),
    ],
)
def test_formulas_as_words(tex: str, words: str) -> None:
    assert search.readable(tex) == words


def test_mathml_as_browsers_read_it() -> None:
    bold, real = '<mi mathvariant="bold">x</mi>', '<mi mathvariant="double-struck">R</mi>'
    assert resolve.mathml_core(bold + real) == "<mi>𝐱</mi><mi>ℝ</mi>"
    name = "<mi>ln</mi><mo>\u2061</mo>"
    assert "mspace" in resolve.mathml_core(name + "<mi>q</mi>")
    for after in ('<mo stretchy="false">(</mo>', "</mrow>"):
        assert resolve.mathml_core(name + after) == name + after
