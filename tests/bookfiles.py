"""Reading the book's notebooks and the package's source, without running either. Not a test itself."""

import ast
import configparser
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
PACKAGE = ROOT / "gptbook"


@dataclass(frozen=True)
class Cell:
    """One cell: where it stands, its kind, its source and its outputs."""

    notebook: str
    number: int
    kind: str
    source: str
    outputs: tuple[dict, ...] = ()
    count: int | None = None

    def __str__(self) -> str:
        first = next((line for line in self.source.splitlines() if line.strip()), "")
        return f"{self.notebook} cell {self.number} ({first[:70]})"

    @cached_property
    def directives(self) -> dict[str, str]:
        """The lines ``#| name: value`` or ``#| name value`` of a code cell."""
        found = re.findall(r"^#\|[ ]*([\w-]+)[ :]*(.*)$", self.source, flags=re.M)
        return {name: value.strip() for name, value in found} if self.kind == "code" else {}

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree of a code cell; lines for IPython (magics, shell) are left out."""
        kept = ["" if re.match(r"\s*[%!]", line) else line for line in self.source.splitlines()]
        return ast.parse("\n".join(kept))

    @cached_property
    def prose(self) -> str:
        """The text of a markdown cell without code and formulas."""
        text = re.sub(r"^(```+|~~~+).*?^\1 *$", "", self.source, flags=re.M | re.S)
        text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text, flags=re.S)
        text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)
        return re.sub(r"(?<!\\)\$[^$\n]+\$", "", text) if self.kind == "markdown" else ""


@dataclass(frozen=True)
class Notebook:
    """A notebook by its path under nbs/."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(NBS).as_posix()

    @cached_property
    def cells(self) -> list[Cell]:
        cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        return [
            Cell(
                self.name,
                i,
                cell["cell_type"],
                "".join(cell["source"]),
                tuple(cell.get("outputs", ())),
                cell.get("execution_count"),
            )
            for i, cell in enumerate(cells)
        ]

    @property
    def code(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.kind == "code"]

    @property
    def chapter(self) -> int | None:
        """The number of a chapter; None for the preface, the appendices and the workshop."""
        match = re.fullmatch(r"(\d\d)_\w+\.ipynb", self.name)
        return int(match[1]) if match else None

    @cached_property
    def module(self) -> str | None:
        """The module that the notebook exports to, such as ``gptbook.attention``."""
        names = [cell.directives["default_exp"] for cell in self.code if "default_exp" in cell.directives]
        return f"gptbook.{names[0]}" if names else None


def notebooks() -> list[Notebook]:
    """All notebooks, chapters in their order first."""
    paths = [path for path in NBS.rglob("*.ipynb") if "ipynb_checkpoints" not in path.as_posix()]
    return [Notebook(path) for path in sorted(paths, key=lambda p: (len(p.relative_to(NBS).parts), p.name))]


def modules() -> dict[str, Path]:
    """The package's modules by name, ``gptbook`` itself and subpackages included."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.AST, module: str, known: set[str], package: bool = False) -> set[str]:
    """The modules of gptbook among ``known`` that a syntax tree imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            while target and target not in known:  # gptbook.model.GPT -> gptbook.model
                target = target.rpartition(".")[0]
            if target:
                found.add(target)
    return found


def settings() -> dict[str, str]:
    """The one section of settings.ini."""
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def listed(key: str) -> list[str]:
    """The lines of a list in settings.ini."""
    return [line.strip() for line in settings()[key].splitlines() if line.strip()]
