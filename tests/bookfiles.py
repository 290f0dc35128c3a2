"""Reading the book's notebooks and the package's source, without running either. Not a test itself."""

import ast
import configparser
from pathlib import Path

from gptbook.workshop.notebooks import Notebook, read_notebooks

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
PACKAGE = ROOT / "gptbook"


def notebooks() -> list[Notebook]:
    """All notebooks, chapters in their order first."""
    return read_notebooks(NBS)


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
