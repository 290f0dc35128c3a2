"""The finished site, looked at once more: dead links, missing files, other hosts, double ids, left-over syntax."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lxml import html

# What makes a browser load something at once; links that a reader may follow are no such thing.
LOADED = {
    "img": "src",
    "script": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
}
LEFT = re.compile(r"@(?:eq|fig|tbl|sec)-\w|\{#[\w-]+\}|^\s*:::|^#\||\$\$", flags=re.M)


def audit(site: Path) -> list[str]:
    """All faults of a built site, one a line."""
    faults: list[str] = []
    trees = {
        p.relative_to(site).as_posix(): html.parse(str(p), html.HTMLParser(encoding="utf-8")).getroot()
        for p in sorted(site.rglob("*.html"))
    }
    ids = {}
    for name, tree in trees.items():
        found = tree.xpath("//@id")
        ids[name] = set(found)
        faults += [
            f"{name}: the id {i} is there twice" for i in sorted({i for i in found if found.count(i) > 1})
        ]
    for name, tree in trees.items():
        for element in tree.iter():
            if not isinstance(element.tag, str):
                continue
            if (attribute := LOADED.get(element.tag)) and (url := element.get(attribute)):
                faults += _loads(site, name, element, url)
            elif element.tag == "a" and (url := element.get("href")):
                faults += _links(site, name, element, url, ids)
            if element.tag == "img" and not element.get("alt"):
                faults.append(
                    f"{_where(name, element)}: the picture {element.get('src')} has no text for those who cannot see it"
                )
            if (style := element.get("style")) and re.search(r"url\(['\"]?https?:", style):
                faults.append(f"{_where(name, element)}: a style that loads from another host")
        for text in tree.xpath(
            "//body//text()[not(ancestor::pre or ancestor::code or ancestor::script or ancestor::style or ancestor::math or ancestor::svg)]"
        ):
            if match := LEFT.search(text):
                faults.append(
                    f"{_where(name, text.getparent())}: left over in the text: {text.strip()[:70]!r} ({match[0]})"
                )
    for path in site.rglob("*.css"):
        for url in re.findall(r"url\(['\"]?([^'\")]+)", path.read_text(encoding="utf-8")):
            if re.match(r"(https?:)?//", url):
                faults.append(f"{path.name}: loads {url}")
            elif not url.startswith("data:") and not (path.parent / url).is_file():
                faults.append(f"{path.name}: there is no {url}")
    return faults


def _where(name: str, element) -> str:
    """The page, and the cell if the element stands in one."""
    cell = element.xpath("ancestor-or-self::*[starts-with(@id, 'cell-')]/@id")
    return f"{name} {cell[-1].replace('-', ' ')}" if cell else name


def _loads(site: Path, name: str, element, url: str) -> list[str]:
    parts = urlsplit(url)
    if parts.scheme == "data":
        return []
    if parts.scheme or parts.netloc:
        return [f"{_where(name, element)}: loads {url} from another host"]
    path = (site / name).parent / unquote(parts.path)
    return [] if path.is_file() else [f"{_where(name, element)}: there is no {url}"]


def _links(site: Path, name: str, element, url: str, ids: dict[str, set[str]]) -> list[str]:
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return []
    target = (site / name).parent / unquote(parts.path) if parts.path else site / name
    if not target.is_file():
        return [f"{_where(name, element)}: a dead link to {url}"]
    page = target.resolve().relative_to(site.resolve()).as_posix()
    if parts.fragment and page in ids and unquote(parts.fragment) not in ids[page]:
        return [f"{_where(name, element)}: a dead link to {url}: there is no #{parts.fragment}"]
    return []
