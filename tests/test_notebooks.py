"""Every notebook runs from its first cell to its last, and leaves nothing behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bookfiles import notebooks

from gptbook.workshop.notebooks import Notebook
from tools.site.download import companions

# About how long they take, in seconds. The longest goes first, so that two workers end together; a new one is
# taken to be long.
SECONDS = {
    "19_pretrained": 240,
    "21_emergence": 180,
    "20_interpret": 230,
    "22_limits": 150,
    "18_preference": 150,
    "15_evaluate": 55,
    "11_backprop": 50,
    "05_embedding": 40,
    "09_block": 40,
    "08_feedforward": 35,
    "10_model": 30,
    "07_multihead": 30,
    "06_attention": 30,
    "01_probability": 25,
    "03_tokenizer": 25,
    "04_data": 20,
    "13_training": 90,
    "14_sample": 18,
    "A_notation": 12,
    "D_article": 8,
    "12_optim": 45,
    "24_epilogue": 20,
    "B_ledger": 4,
}
TIMEOUT = 1800
SEEN = ("PYTEST_", "COV_")  # settings of this run of pytest that are not the notebooks' business


def seconds(notebook: Notebook) -> int:
    return SECONDS.get(notebook.path.stem, 2 if notebook.name.startswith("workshop/") else 60)


NOTEBOOKS = sorted(notebooks(), key=seconds, reverse=True)


@pytest.fixture(scope="session")
def book(copy_of_repository: Callable[[str], Path]) -> Path:
    """A clean copy of the repository to run in, so that no notebook can touch the real one."""
    return copy_of_repository("book")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below ``folder``, caches of bytecode left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) for path in files
    }


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_notebook(notebook: Notebook, book: Path, root: Path) -> None:
    before = contents(book)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SEEN)}
    environment["PYTHONPATH"] = str(book)  # the copy's package, not the installed one
    done = subprocess.run(
        [sys.executable, str(root / "tests" / "run_notebook.py"), str(book / "nbs" / notebook.name)],
        env=environment,
        cwd=book,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    if done.returncode:
        pytest.fail(f"{done.stdout}\n{done.stderr[-4000:]}", pytrace=False)
    opened = {*done.stdout.rpartition("opened: ")[2].split()} - {notebook.name}
    opened = {name for name in opened if f"nbs/{name}" in before and not name.startswith("interactive/")}
    with_it = companions(book / "nbs" / notebook.name, book / "nbs")
    assert with_it is None or opened <= set(with_it), f"{notebook.name} opens {opened}, not in its download"
    after = contents(book)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in after.keys() - before.keys():  # the next notebook starts from the same folder
        (book / name).unlink()
    assert not changed, f"{notebook.name} wrote into the repository: {', '.join(changed)}"
