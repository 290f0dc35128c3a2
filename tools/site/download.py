"""What goes along with a notebook that is downloaded, so that it runs on the reader's machine: the files it reads."""

import ast
import io
import re
import zipfile
from pathlib import Path

from gptbook.workshop.notebooks import Notebook

FOLDERS = ("", "results/")  # where a file may be that a notebook names
WHOLE = {"formulas", "read_notebooks", "scripts"}  # of gptbook.workshop: they look through the book's folder


def companions(notebook: Path, nbs: Path) -> list[str] | None:
    """The files below ``nbs`` that a notebook's code names, as paths from there; None if it reads the whole folder.

    A name may leave out its folder, or the ending of a notebook.
    """
    found: set[str] = set()
    folder = notebook.parent.relative_to(nbs).as_posix().removeprefix(".")
    for cell in Notebook(notebook, nbs).cells:
        for node in ast.walk(cell.tree) if cell.kind == "code" else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in WHOLE:
                where = [getattr(argument, "value", None) for argument in node.args]
                if where in ([], ["."], [".."]):
                    return None
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= _files(node.value, nbs, f"{folder}/" if folder else "")
    return sorted(found - {notebook.relative_to(nbs).as_posix()})


def _files(name: str, nbs: Path, folder: str) -> set[str]:
    """The files that a text may name."""
    if not re.fullmatch(r"[\w./-]{3,80}", name) or ".." in name:
        return set()
    paths = {folder + part + name + ending for part in FOLDERS for ending in ("", ".ipynb")}
    return {path for path in paths if (nbs / path).is_file()}


def everything(nbs: Path) -> list[str]:
    """All that a notebook can read or show, without what only a renderer needs."""
    paths = [path for path in nbs.rglob("*") if path.is_file() and path.suffix != ".qmd"]
    names = [path.relative_to(nbs).as_posix() for path in paths if not path.name.startswith("quarto.")]
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def archive(folder: str, files: dict[str, bytes]) -> bytes:
    """Files in a folder, as a zip that is the same for the same files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in sorted(files.items()):
            info = zipfile.ZipInfo(f"{folder}/{name}")  # of 1980, so that a new build changes nothing
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            packed.writestr(info, content)
    return out.getvalue()
