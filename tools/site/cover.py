"""The cover: every formula of the book on one line, an arc from each to those derived from it."""

import html
import re
from collections import Counter

COLORS = {"symbolic": "blue", "exhaustive": "orange", "numeric": "green", "montecarlo": "violet"}
ORDER = list(COLORS)
ROOM = 44  # between two numbers that a phone shows; those between are left out there


def cover(records: list[dict]) -> str:
    """An SVG in the site's colours, drawn from what the notebooks say; nothing in it is made up."""
    labels: list[tuple[str, dict, dict]] = []
    for record in records:
        labels += [(label, data, record) for label, data in record["labels"].items() if data["kind"] == "eq"]
    if not labels:
        return ""
    kinds: dict[str, str] = {}
    parents: dict[str, set[str]] = {}
    for record in records:
        for check in record["checks"]:
            for label in check["labels"]:
                kinds[label] = min([kinds.get(label, check["kind"]), check["kind"]], key=ORDER.index)
                parents.setdefault(label, set()).update(check["from"])
    used = Counter(parent for found in parents.values() for parent in found)
    place, x, starts, last = {}, 24.0, [], None
    gaps = len({record["url"] for _, _, record in labels})
    step = (1000 - 48 - 14 * (gaps - 1)) / max(1, len(labels) - 1)
    for label, _, record in labels:
        if record["url"] != last:
            x += 14 * (last is not None)
            starts.append([x, x, record])
            last = record["url"]
        place[label] = x
        starts[-1][1] = x
        x += step
    arcs, dots = [], []
    base, top = 250.0, 236.0
    longest = max(
        (abs(place[a] - place[b]) for b in parents for a in parents[b] if a in place and b in place),
        default=1,
    )
    for label, found in parents.items():
        for parent in sorted(found):
            if parent in place and label in place:
                a, b = place[parent], place[label]
                height = top * (abs(b - a) / longest) ** 0.72
                color = COLORS[kinds[label]]
                arcs.append(
                    f'<path d="M{a:.1f} {base}C{a:.1f} {base - height * 1.3:.1f} {b:.1f} {base - height * 1.3:.1f} {b:.1f} {base}" stroke="var(--{color})"/>'
                )
    for label, data, _ in labels:
        color = COLORS.get(kinds.get(label, ""), "")
        fill = f'fill="var(--{color})"' if color else 'fill="var(--paper)" stroke="var(--ink-soft)"'
        name = label.removeprefix("eq-").removeprefix("def-").replace("-", " ")
        title = html.escape(f"({data['number']}) {name}")
        radius = 1.7 + 0.55 * used[label] ** 0.5
        dots.append(
            f'<circle cx="{place[label]:.1f}" cy="{base}" r="{radius:.1f}" {fill}><title>{title}</title></circle>'
        )
    names, shown = [], -ROOM
    for start, end, record in starts:
        middle = (start + end) / 2
        between = ' class="between"' if middle - shown < ROOM else ""
        shown = shown if between else middle
        names.append(
            f'<a href="{record["url"]}"{between}><title>{record["number"]} {html.escape(record["title"])}</title><text x="{middle:.1f}" y="{base + 22}" text-anchor="middle">{record["number"]}</text></a>'
        )
    count, links = len(labels), len(arcs)
    alt = f"{count} formulas on a line, grouped by chapter; {links} arcs lead from each formula to those derived from it."
    svg = (
        f'<svg class="cover-art" viewBox="0 -24 1000 304" role="group" aria-label="{alt}">'
        f'<g class="arcs" fill="none" stroke-width="1.1" stroke-opacity=".55">{"".join(arcs)}</g>'
        f'<g class="dots">{"".join(dots)}</g><g class="names">{"".join(names)}</g></svg>'
    )
    key = "".join(f'<span><i style="background:var(--{COLORS[kind]})"></i>{kind}</span>' for kind in ORDER)
    key += '<span><i class="ring"></i>definition</span>'
    caption = (
        f"The book on one line: {count} formulas, chapter by chapter, and an arc from each to those derived from it. "
        "The colour says how the derivation was checked."
    )
    return f'<figure class="cover">{svg}<figcaption>{caption} <span class="key">{key}</span></figcaption></figure>'


PRINTED = {
    "blue": "#2567a8", "orange": "#c2561f", "green": "#1d7550", "violet": "#8b3f7c", "ink-soft": "#575f68", "paper": "#fcfbf8",
}  # fmt: skip


def art(records: list[dict]) -> str:
    """The picture of the cover by itself, in fixed colours, as an SVG file."""
    found = re.search(r"<svg[^>]*>(.*?)</svg>", cover(records), flags=re.S)
    inner = re.sub(r"</?a\b[^>]*>|<title>.*?</title>", "", found[1] if found else "", flags=re.S)
    inner = re.sub(r"var\(--([\w-]+)\)", lambda match: PRINTED[match[1]], inner)
    inner = inner.replace(
        "<text ", f'<text fill="{PRINTED["ink-soft"]}" font-size="15" font-family="sans-serif" '
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -24 1000 304">{inner}</svg>'


def front(records: list[dict], title: str, subtitle: str, author: str) -> str:
    """The front of the EPUB: title, picture, author."""
    lines, line = [], ""
    for word in title.split():
        if len(line) + len(word) > 15 and line:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    lines.append(line)
    big = "".join(
        f'<text x="90" y="{260 + 112 * i}" font-size="96">{html.escape(t)}</text>'
        for i, t in enumerate(lines)
    )
    under = 260 + 112 * len(lines)
    picture = art(records).replace("<svg ", f'<svg x="70" y="{under + 130}" width="1060" height="330" ', 1)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1200 1700" width="1200" height="1700">'
        f'<rect width="1200" height="1700" fill="{PRINTED["paper"]}"/><g font-family="Georgia, serif" fill="#22262b">{big}'
        f'<text x="92" y="{under}" font-size="42" font-style="italic" fill="{PRINTED["ink-soft"]}">{html.escape(subtitle)}</text>'
        f'<text x="92" y="1590" font-size="36" fill="{PRINTED["ink-soft"]}">{html.escape(author)}</text></g>{picture}</svg>'
    )
