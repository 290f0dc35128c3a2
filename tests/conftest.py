"""What all tests share: threads, no windows for plots, fixed seeds, and a clean copy of the repository.

Nothing here imports torch, so that the tests that need none start at once.
"""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; this must come before torch and numpy
    _share = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(_name, str(_share))

settings.register_profile("fixed", deadline=None, derandomize=True)  # a machine that is busy is no failure
settings.register_profile("search", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def pytest_configure(config: pytest.Config) -> None:
    """Hand tests to the workers one at a time: in xdist's chunks all notebooks would go to one worker."""
    if getattr(config.option, "maxschedchunk", 1) is None:
        config.option.maxschedchunk = 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long tests first: the wheel is built, then the notebooks by their time; those of the wheel last."""

    def place(item: pytest.Item) -> int:
        if item.name == "test_build":
            return 0
        return {"test_notebooks": 1, "test_package": 3}.get(item.path.stem, 2)

    items.sort(key=place)  # stable: inside a file the order stays


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test begins with the same random state, whatever ran before it in this process."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


def tracked_files() -> list[str]:
    """The repository's files as git sees them: committed, and new ones that are not ignored."""
    command = "git -c safe.directory=* ls-files -z --cached --others --exclude-standard".split()
    try:
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs git, to tell the repository's files from others: {error}")
    return sorted({name for name in names if name and (ROOT / name).is_file()})


def copy_repository(target: Path) -> Path:
    """Copy the repository's files, and nothing that is ignored, into ``target``."""
    for name in tracked_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="session")
def copy_of_repository(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a clean copy of the repository in a new temporary folder of the given name."""
    return lambda name: copy_repository(tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
