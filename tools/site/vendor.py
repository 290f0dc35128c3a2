"""What the site takes from npm, fetched once into ``build/site`` and used from there, and what it draws with it."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .outline import ROOT
from .stage import BookError

HERE = Path(__file__).parent
CACHE = ROOT / "build" / "site"
HOME = CACHE / "npm"


def fetch(recipe: Path = HERE, home: Path = HOME) -> Path:
    """Install what ``package-lock.json`` of a folder lists, unless that is done; return the ``node_modules``."""
    wanted = hashlib.sha256((recipe / "package-lock.json").read_bytes()).hexdigest()
    stamp = home / ".installed"
    if not (stamp.is_file() and stamp.read_text() == wanted):
        npm = shutil.which("npm")
        if npm is None or shutil.which("node") is None:
            raise FileNotFoundError(
                "the site needs node and npm, for its formulas, diagrams and fonts: https://nodejs.org (Debian: apt install npm)"
            )
        home.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy2(recipe / name, home / name)
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"npm ci failed in {home}:\n{done.stderr.strip()}")
        stamp.write_text(wanted)
    return home / "node_modules"


class Drawings:
    """Formulas and diagrams, drawn by one run of node for all that is new; the rest comes from a cache."""

    def __init__(self, path: Path = CACHE / "drawings.json") -> None:
        self.path = path
        key = hashlib.sha256(
            (HERE / "package-lock.json").read_bytes() + (HERE / "draw.mjs").read_bytes()
        ).hexdigest()
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.known: dict[str, dict[str, str]] = stored["drawn"] if stored.get("key") == key else {}
        self.key = key

    def prepare(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Draw all (kind, text); what fails is kept as an error for the page that uses it."""
        new = sorted({pair for pair in wanted if "\0".join(pair) not in self.known})
        if not new:
            return
        fetch()
        tasks = json.dumps([{"kind": kind, "text": text} for kind, text in new])
        node = shutil.which("node") or "node"
        command = [node, str(HERE / "draw.mjs"), str(HOME)]
        done = subprocess.run(command, input=tasks, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"node could not draw: {done.stderr.strip()}")
        self.known |= {"\0".join(pair): drawn for pair, drawn in zip(new, json.loads(done.stdout))}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"key": self.key, "drawn": self.known}), encoding="utf-8")

    def size(self, drawn: tuple[str, str]) -> int:
        """How many characters a drawing has."""
        return len(self.known.get("\0".join(drawn), {}).get("html", ""))

    def get(self, kind: str, text: str) -> str:
        """The HTML of one drawing; ``BookError`` with what is wrong with it."""
        drawn = self.known["\0".join((kind, text))]
        if "error" in drawn:
            raise BookError(f"{drawn['error']} in {' '.join(text.split())[:90]}")
        return drawn["html"]


COLORS = {
    "_text": "ink", "_text-sec": "ink-soft", "_text-muted": "ink-soft", "_text-faint": "line", "_line": "ink-soft",
    "_arrow": "ink-soft", "_node-fill": "paper-raised", "_node-stroke": "line-strong", "_group-fill": "paper",
    "_group-hdr": "paper-raised", "_inner-stroke": "line", "_key-badge": "paper-raised", "bg": "paper", "fg": "ink",
}  # fmt: skip
PRINTED = {
    "ink": "#1f2328", "ink-soft": "#55606b", "line": "#d5d9de", "line-strong": "#9aa4ae", "paper": "#ffffff",
    "paper-raised": "#f4f6f8",
}  # fmt: skip


def diagram(svg: str, label: str, printed: bool = False) -> str:
    """A drawn diagram in the site's colours, or in fixed ones where there is no style sheet. No font is loaded."""
    svg = re.sub(r"<style>.*?</style>", "", svg, count=1, flags=re.S)
    svg = re.sub(r' style="--bg:[^"]*"', "", svg, count=1)
    for name, color in COLORS.items():
        svg = svg.replace(f"var(--{name})", PRINTED[color] if printed else f"var(--{color})")
    width = re.search(r'<svg [^>]*?width="([\d.]+)"', svg)[1]
    title = label.replace("&", "&amp;").replace("<", "&lt;")
    first = re.match(r"<svg ([^>]*)>", svg)
    attributes = re.sub(r'\s(?:width|height)="[^"]*"', "", " " + first[1])
    size = f' width="{width}"' if printed else f' style="--natural:{float(width):.0f}px"'
    return f'<svg{attributes}{size} role="img"><title>{title}</title>' + svg[first.end() :]
