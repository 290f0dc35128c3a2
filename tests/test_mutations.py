"""The mutation check, tools/mutations.py: its table fits, it can say "missed", and it misses nothing."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

SPEC = importlib.util.spec_from_file_location("mutations", ROOT / "tools" / "mutations.py")
mutations = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(mutations)
Mutation = mutations.Mutation


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda m: m.name)
def test_the_line_and_its_check_are_there(mutation: Mutation) -> None:
    assert mutation.new != mutation.old
    assert not mutations.faults(mutation)


def test_the_table() -> None:
    names = [m.name for m in mutations.MUTATIONS]
    assert len(set(names)) == len(names) == 20
    assert len({(m.module, m.old) for m in mutations.MUTATIONS}) == 20
    assert sum("::" not in m.check for m in mutations.MUTATIONS) >= 6, "checks of the notebooks count too"


def test_a_line_that_is_not_there_is_named() -> None:
    (first, *_) = mutations.MUTATIONS
    wrong = first._replace(old="no such line", check="01_probability: eq-nonesuch")
    assert [fault.split()[-2:] for fault in mutations.faults(wrong)] == [["0", "times"]] * 3
    for check in ("tests/test_probability.py::test_nonesuch", "99_nonesuch: eq-bits-per-byte"):
        assert len(mutations.faults(first._replace(check=check))) == 1


@pytest.fixture(scope="module")
def copy(copy_of_repository: Callable[[str], Path]) -> Path:
    return copy_of_repository("mutations")


UNITS = "return float(total_nats / (n_bytes * np.log(2)))"


@pytest.mark.parametrize(
    ("new", "check", "word"),
    [
        (UNITS + "  # as before", "tests/test_probability.py::test_units", "MISSED"),
        (UNITS + "  # as before", "01_probability: eq-bits-per-byte", "MISSED"),
        ("return 7.0", "tests/test_probability.py::test_units", "caught"),
        ("return (", "tests/test_probability.py::test_units", "ERROR"),  # nothing was tested
        ("return (", "01_probability: eq-bits-per-byte", "ERROR"),  # it ended long before the check
    ],
)
def test_what_counts_as_caught(copy: Path, new: str, check: str, word: str) -> None:
    assert mutations.verdict(Mutation("a name", "probability.py", UNITS, new, check), copy)[0] == word


def test_every_mutation_is_caught() -> None:
    """The whole table; about two minutes on two cores."""
    program = [sys.executable, str(ROOT / "tools" / "mutations.py")]
    done = subprocess.run(program, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("20 of 20 caught")
