"""Execute notebooks in place: ``python tools/execute.py NOTEBOOK ...``.

As ``jupyter nbconvert --execute --inplace`` does, but what a cell prints in pieces is kept as one output
(nbconvert has no option for it), and the state of progress bars is left out. On one core, as the
chapters say: on two, training rounds differently, and some runs end elsewhere.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def execute(path: Path) -> None:
    """Run all cells from the top, in the notebook's folder; on an error the file stays as it was."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.resolve().parent)}}
    client = NotebookClient(
        notebook, timeout=None, coalesce_streams=True, store_widget_state=False, resources=resources
    )
    client.execute()
    nbformat.write(notebook, path)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in sys.argv[1:]:
        execute(Path(name))
