"""The book's outline: which pages there are, in which part, under which number and at which address."""

import configparser
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]

KINDS = {"eq": "Equation", "fig": "Figure", "tbl": "Table", "sec": "Section"}  # what a label may begin with


@dataclass(frozen=True)
class Page:
    """One page: its source below ``nbs``, the part it stands in, its number ("6", "A", "" for the preface)."""

    source: str
    part: str = ""
    number: str = ""
    appendix: bool = False

    @property
    def url(self) -> str:
        """Where it is in the site. Quarto, after nbdev, gives the same: ``06_attention.ipynb`` -> ``attention.html``."""
        folder, _, name = self.source.rpartition("/")
        name = re.sub(r"^\d+[a-zA-Z0-9]*_", "", name.lower())
        return f"{folder}/{name}".lstrip("/").rsplit(".", 1)[0] + ".html"

    @property
    def stem(self) -> str:
        """The address without its ending, as a name for folders and files."""
        return self.url.removesuffix(".html")

    @property
    def up(self) -> str:
        """The way from the page's folder to the site's root: "" or "../"."""
        return "../" * self.url.count("/")

    @property
    def workshop(self) -> bool:
        """Whether it is plumbing, kept apart in the sidebar."""
        return self.source.startswith("workshop/")


@dataclass(frozen=True)
class Outline:
    """The whole book."""

    title: str
    subtitle: str
    author: str
    lang: str
    bibliography: str
    pages: tuple[Page, ...]
    root: Path = ROOT

    @property
    def nbs(self) -> Path:
        """The folder of the sources."""
        return self.root / "nbs"

    def page(self, source: str) -> Page | None:
        """The page made from ``source``, if there is one."""
        return next((page for page in self.pages if page.source == source), None)


def read_outline(root: Path = ROOT) -> Outline:
    """Read ``_quarto.yml``. A chapter's number is that of its file; appendices are lettered in their order."""
    path = root / "_quarto.yml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    book, pages = config["book"], []
    for entry in book["chapters"]:
        part, sources = (entry["part"], entry["chapters"]) if isinstance(entry, dict) else ("", [entry])
        for source in sources:
            digits = re.match(r"(\d+)_", source)
            pages.append(Page(source, part, str(int(digits[1])) if digits else ""))
    for i, source in enumerate(book.get("appendices", ())):
        pages.append(Page(source, "Appendices", chr(ord("A") + i), appendix=True))
    urls = [page.url for page in pages]
    if twice := {url for url in urls if urls.count(url) > 1}:
        raise ValueError(f"two pages of {path.name} have the same address: {', '.join(sorted(twice))}")
    if missing := [page.source for page in pages if not (root / "nbs" / page.source).is_file()]:
        raise FileNotFoundError(f"{path.name} lists {', '.join(missing)}, not found in nbs/")
    return Outline(
        book["title"], book.get("subtitle", ""), book.get("author", ""), config.get("lang", "en"),
        config.get("bibliography", ""), tuple(pages), root,
    )  # fmt: skip


def read_settings(root: Path = ROOT) -> dict[str, str]:
    """settings.ini: version, licence, and the repository's address (empty as long as there is none)."""
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(root / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])
