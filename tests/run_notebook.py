"""Run a notebook's cells as nbdev-test does, and say which one failed: ``python run_notebook.py PATH``.

It is a program of its own, so that every notebook starts fresh and none can disturb the tests.
"""

import contextlib
import os
import sys
import time
from pathlib import Path


def run(path: Path, cell_timeout: int = 900) -> str:
    """Execute the cells that nbdev tests, in the notebook's folder; the failure as text, or nothing."""
    from execnb.shell import CaptureShell
    from nbdev.config import get_config
    from nbdev.test import nb_test_cells

    config = get_config(path.parent)
    cells = nb_test_cells(path, skip_flags=(config.tst_flags or "").split())
    shell = CaptureShell(path)
    with contextlib.chdir(path.parent):
        for cell in cells:
            shell.cell(cell, timeout=cell_timeout)
            if shell.exc:
                return f"{path.name}, cell {cell.idx_}:\n\n{cell.source}\n\n{traceback_of(shell.exc)}"
    return ""


def watch(folder: Path) -> set[str]:
    """The files below a folder that are opened from now on, as paths from there."""
    seen: set[str] = set()
    start = f"{folder}{os.sep}"

    def note(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path.startswith(start):
                seen.add(path.removeprefix(start).replace(os.sep, "/"))

    sys.addaudithook(note)
    return seen


def traceback_of(error: BaseException) -> str:
    """The traceback from the cell on, without the frames of the machinery that ran it."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if "ipython-input" in frame.filename), 0)
    lines = traceback.format_list(frames[first:])
    return "".join(["Traceback:\n", *lines, *traceback.format_exception_only(error)])


if __name__ == "__main__":
    os.environ["IN_TEST"] = "1"  # as nbdev-test does
    start, notebook = time.perf_counter(), Path(sys.argv[1]).resolve()
    nbs = next(folder for folder in notebook.parents if folder.name == "nbs")
    opened = watch(nbs)
    failure = run(notebook)
    print(failure or f"passed in {time.perf_counter() - start:.1f} s", flush=True)
    print(f"opened: {' '.join(sorted(opened))}", flush=True)
    os._exit(bool(failure))  # without waiting for threads that a failed cell left behind
