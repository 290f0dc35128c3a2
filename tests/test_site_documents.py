"""The real book as EPUB and PDF: every formula must come through as one."""

import re
import shutil
import zipfile
from pathlib import Path

import pytest
from lxml import etree
from sitebook import lacking, require_pandoc

from tools.site import documents, vendor
from tools.site.build import Site

LATEX = re.compile(r"\\(?:mathbf|frac|sum|operatorname|begin|text)\b")


@pytest.fixture(scope="module", autouse=True)
def parts() -> None:
    """Pandoc, and node for the diagrams."""
    require_pandoc()
    if not (shutil.which("npm") and shutil.which("node")):
        lacking("needs node and npm")
    try:
        vendor.fetch()
    except RuntimeError as error:
        pytest.skip(str(error))


def test_epub(tmp_path: Path) -> None:
    with zipfile.ZipFile(documents.write("epub", out=tmp_path / "book.epub")) as book:
        pages = [etree.fromstring(book.read(n)) for n in book.namelist() if n.endswith(".xhtml")]
        pictures = [name for name in book.namelist() if re.search(r"\.(png|svg)$", name)]
    formulas = sum(1 for page in pages for _ in page.iter("{http://www.w3.org/1998/Math/MathML}math"))
    assert formulas > 1500 and len(pictures) > 30
    for page in pages:
        for skipped in page.xpath(
            "//*[local-name()='pre' or local-name()='code' or local-name()='annotation']"
        ):
            skipped.clear(keep_tail=True)
        assert not LATEX.findall(" ".join(page.itertext()))


def test_pdf(tmp_path: Path) -> None:
    pytest.importorskip("typst")
    try:
        vendor.fetch(vendor.HERE / "print", vendor.CACHE / "npm-print")
    except RuntimeError as error:
        pytest.skip(str(error))
    site = Site()
    content = documents.write("pdf", site, tmp_path / "book.pdf").read_bytes()
    assert content[:5] == b"%PDF-" and len(content) > 1_000_000
    source = (site.cache / "pdf" / "book.typ").read_text(encoding="utf-8")
    prose = re.sub(r"^(```+).*?^\1", "", source, flags=re.M | re.S)
    prose = re.sub(r"`[^`]*`|#raw\(.*?\)", "", prose)
    assert not LATEX.findall(prose)
    assert len(re.findall(r"#numbered\(", source)) > 150
    assert "[$floor.l$]" in source and "[floor.l]" not in source, "a large sign, not its name in letters"
    assert "& quad c < 2^7" in source, "a gap between a case and its condition"
