"""The wheel: built from a clean copy, installed in an empty environment, and what it says of itself."""

import configparser
import email.message
import email.parser
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from bookfiles import listed, modules, settings
from filelock import FileLock
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command away from the repository and return what it prints; its failure is the test's."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in hidden} | environment
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        pytest.fail(
            f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}", pytrace=False
        )
    return done.stdout


def can_build_here() -> bool:
    """Whether setuptools is new enough (pyproject.toml), so that nothing need be fetched to build."""
    try:
        return Version(importlib.metadata.version("setuptools")) >= Version("77")
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="session")
def dist(shared_tmp: Path, copy_of_repository: Callable[[str], Path]) -> Path:
    """The folder with the sdist and the wheel that is built from it, made once for all workers."""
    if importlib.util.find_spec("build") is None:
        pytest.skip('the package build is not installed: pip install "gptbook[dev]"')
    target = shared_tmp / "dist"
    with FileLock(shared_tmp / "dist.lock"):
        if not (target / "done").exists():
            copy = copy_of_repository("build")
            isolation = ["--no-isolation"] if can_build_here() else []
            run(sys.executable, "-m", "build", *isolation, "--outdir", target, copy, cwd=shared_tmp)
            (target / "done").touch()
    return target


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.parser.BytesParser().parsebytes(archive.read(name))


@pytest.fixture(scope="session")
def empty_venv(wheel: Path, shared_tmp: Path) -> Path:
    """The Python of a new environment with the wheel in it; what the wheel requires is this environment's.

    Installing torch again would take minutes. A .pth file puts our packages behind the new environment's own,
    so that gptbook is the wheel's. (The .pth file of an editable gptbook among ours is not read from there.)
    """
    folder = shared_tmp / "venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    with FileLock(shared_tmp / "venv.lock"):
        if not (folder / "done").exists():
            venv.EnvBuilder(with_pip=True).create(folder)
            run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=shared_tmp)
            ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
            site = run(
                python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=shared_tmp
            )
            (Path(site.strip()) / "zz_borrowed.pth").write_text("\n".join(ours), encoding="utf-8")
            (folder / "done").touch()
    return python


def test_build(dist: Path) -> None:
    names = sorted(path.name for path in dist.iterdir() if path.name != "done")
    version = settings()["version"]
    assert names == [f"gptbook-{version}-py3-none-any.whl", f"gptbook-{version}.tar.gz"]


def test_wheel_holds_the_package_and_nothing_else(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {path.relative_to(root).as_posix() for path in modules().values()}
    models = root / "gptbook" / "models"
    expected |= {path.relative_to(root).as_posix() for path in models.rglob("*") if path.is_file()}
    assert names == {name for name in expected if "__pycache__" not in name}
    assert wheel.stat().st_size < 60e6


def test_sdist_can_build_the_wheel_again(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "LICENSE-TEXT.md"} <= names


def test_metadata_is_that_of_settings_ini(metadata: email.message.Message, root: Path) -> None:
    wanted = settings()
    assert metadata["Name"] == wanted["lib_name"]
    assert metadata["Version"] == wanted["version"]
    assert metadata["Summary"] == wanted["description"]
    assert metadata["Author"] == wanted["author"]
    assert (metadata["License-Expression"] or metadata["License"]) == wanted["license"]
    assert set(re.split(r"[,\s]+", metadata["Keywords"])) == set(wanted["keywords"].split())
    assert metadata["Requires-Python"] == f">={wanted['min_python']}"
    assert f"Development Status :: {wanted['status']}" in metadata.get_all("Classifier")
    assert set(metadata.get_all("License-File")) == {"LICENSE", "LICENSE-TEXT.md"}
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    assert (metadata.get_payload(decode=True) or b"").decode("utf-8").strip() == readme.strip()


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "LICENSE-TEXT.md"])
def test_texts_that_the_package_carries_are_written(name: str, root: Path) -> None:
    assert len((root / name).read_text(encoding="utf-8")) > 300


def test_requirements_and_extras_are_those_of_settings_ini(metadata: email.message.Message) -> None:
    found: dict[str, set[tuple[str, str]]] = {}
    for line in metadata.get_all("Requires-Dist"):
        requirement = Requirement(line)
        extra = re.search(r"extra == ['\"]([\w-]+)", str(requirement.marker or ""))
        key = f"{extra[1]}_requirements" if extra else "requirements"
        found.setdefault(key, set()).add((canonicalize_name(requirement.name), str(requirement.specifier)))
    expected = {}
    for key in settings():
        if key == "requirements" or key.endswith("_requirements"):
            wanted = map(Requirement, listed(key))
            expected[key] = {(canonicalize_name(r.name), str(r.specifier)) for r in wanted}
    assert found == expected
    extras = {key.removesuffix("_requirements") for key in expected if key != "requirements"}
    assert set(metadata.get_all("Provides-Extra")) == extras


def test_entry_points_are_those_of_settings_ini(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        parser = configparser.ConfigParser()
        parser.read_string(archive.read(name).decode())
    scripts = dict(line.replace(" ", "").split("=") for line in listed("console_scripts"))
    assert dict(parser["console_scripts"]) == scripts


def test_the_wheel_s_package_is_the_one_that_is_used(empty_venv: Path, tmp_path: Path) -> None:
    code = "import gptbook.model; print(gptbook.model.__file__)"
    assert Path(run(empty_venv, "-c", code, cwd=tmp_path).strip()).is_relative_to(empty_venv.parents[1])


def test_version(empty_venv: Path, tmp_path: Path) -> None:
    code = "import gptbook, importlib.metadata as m; print(gptbook.__version__, m.version('gptbook'))"
    assert run(empty_venv, "-c", code, cwd=tmp_path).split() == [settings()["version"]] * 2


def test_gpt2_from_the_wheel(empty_venv: Path, tmp_path: Path) -> None:
    code = "import gptbook; print(gptbook.GPT(gptbook.GPTConfig.gpt2('small')).num_params())"
    assert run(empty_venv, "-c", code, cwd=tmp_path).strip() == "124439808"


def test_every_module_of_the_wheel_imports(empty_venv: Path, tmp_path: Path) -> None:
    names = [name for name in modules() if not name.endswith("__main__")]
    code = f"import importlib\nfor name in {json.dumps(names)}: importlib.import_module(name)"
    run(empty_venv, "-c", code, cwd=tmp_path, MPLBACKEND="Agg")


@pytest.mark.parametrize("as_module", [False, True])
def test_command_from_the_wheel(as_module: bool, empty_venv: Path, tmp_path: Path) -> None:
    if "gptbook.cli" not in modules():
        pytest.skip("gptbook/cli.py is not there yet")
    command = [empty_venv, "-m", "gptbook"] if as_module else [empty_venv.with_name("gptbook")]
    text = run(*command, "--help", cwd=tmp_path)
    assert re.search(r"\btrain\b", text) and re.search(r"\bsample\b", text)
    assert "shakespeare" in run(*command, "corpora", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
