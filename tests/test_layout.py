"""The book as files: layering, a clean export, labels and references, outputs, the site, metadata."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from bookfiles import NBS, ROOT, imports, listed, modules, notebooks, settings
from conftest import tracked_files

from gptbook.config import TrainConfig
from gptbook.workshop.ledger import parse_check
from gptbook.workshop.notebooks import Cell, Notebook

NOTEBOOKS = notebooks()
BY_NAME = {notebook.name: notebook for notebook in NOTEBOOKS}
MODULES = modules()
CHAPTER = {n.module: n.chapter for n in NOTEBOOKS if n.chapter and n.module}
# Chapters that the contents promise and later issues write. A link to one is a dead link today.
PLANNED = {2, *range(16, 25)}

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
each_module = pytest.mark.parametrize("module", sorted(MODULES))


def complain(faults: list[str]) -> None:
    """Fail with one fault a line, and nothing else to read."""
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


# ---- layering ------------------------------------------------------------------------------------


def is_leaf(module: str) -> bool:
    return module == "gptbook.config" or module.startswith("gptbook.workshop.")


def forbidden(importer: str, imported: str) -> str | None:
    """Why ``importer`` may not import ``imported``; None if it may."""
    if importer == "gptbook.cli" or imported == "gptbook.workshop":
        return None
    if imported == "gptbook.cli":
        return None if importer == "gptbook.__main__" else "only __main__ may import cli"
    if imported == "gptbook":
        return "the package's front imports anything on demand; import from the module itself"
    if importer == "gptbook" or is_leaf(importer):
        leaf = importer != "gptbook" and is_leaf(imported)
        return None if leaf else "it may import leaves of the workshop at most"
    if is_leaf(imported):
        return None
    if imported not in CHAPTER or importer not in CHAPTER:
        return "one of them is no chapter"
    return None if CHAPTER[imported] < CHAPTER[importer] else "it comes later in the book"


@each_module
def test_layering(module: str) -> None:
    path = MODULES[module]
    found = imports(
        ast.parse(path.read_text(encoding="utf-8")), module, set(MODULES), path.stem == "__init__"
    )
    reasons = {name: forbidden(module, name) for name in sorted(found)}
    complain([f"{module} imports {name}: {why}" for name, why in reasons.items() if why])


@pytest.mark.parametrize("notebook", [n for n in NOTEBOOKS if n.chapter], ids=lambda notebook: notebook.name)
def test_chapter_uses_nothing_from_later_chapters(notebook: Notebook) -> None:
    """Not only what is exported: a reader who runs the notebook must not need what comes later."""
    import gptbook

    homes = {f"gptbook.{name}": f"gptbook.{home}" for name, home in gptbook._HOME.items()}
    faults = []
    for cell in notebook.code:
        for name in imports(cell.tree, "notebook", set(MODULES) | set(homes)):
            number = CHAPTER.get(homes.get(name, name), 0)
            if number > notebook.chapter:
                faults.append(f"{cell}: imports {name}, of chapter {number}")
    complain(faults)


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("gptbook.model", "gptbook.attention", True),
        ("gptbook.attention", "gptbook.model", False),
        ("gptbook.attention", "gptbook.attention", False),
        ("gptbook.attention", "gptbook.config", True),
        ("gptbook.config", "gptbook.workshop.checks", True),
        ("gptbook.config", "gptbook.attention", False),
        ("gptbook.workshop.files", "gptbook.data", False),
        ("gptbook.attention", "gptbook", False),
        ("gptbook.attention", "gptbook.cli", False),
        ("gptbook.cli", "gptbook.model", True),
        ("gptbook.__main__", "gptbook.cli", True),
    ],
)
def test_the_rule_itself(importer: str, imported: str, allowed: bool) -> None:
    assert (forbidden(importer, imported) is None) == allowed


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from .attention import KVCache", {"gptbook.attention"}),
        ("def f():\n    from gptbook.model import GPT", {"gptbook.model"}),
        ("import gptbook.model as m, os", {"gptbook.model"}),
        ("from . import model", {"gptbook.model"}),
        ("from gptbook import GPT", {"gptbook"}),
        ("from .workshop.checks import require", {"gptbook.workshop.checks"}),
        ("import gptbooks", set()),
    ],
)
def test_imports_are_found(code: str, found: set[str]) -> None:
    assert imports(ast.parse(code), "gptbook.block", set(MODULES)) == found


def without(module: str, code: str) -> str:
    """What ``code`` prints, run in a fresh interpreter; it must not have imported ``module``."""
    check = f"{code}\nimport sys\nassert {module!r} not in sys.modules, 'it imported {module}'"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module", ["", "config", "workshop.checks", "workshop.files", "tokenizer", "probability", "data"]
)
def test_no_torch_before_it_is_needed(module: str) -> None:
    without("torch", "import " + ".".join(filter(None, ["gptbook", module])))


def test_help_needs_no_torch() -> None:
    if "gptbook.cli" not in MODULES:
        pytest.skip("gptbook/cli.py is not there yet")
    code = """
import sys, gptbook.cli
sys.argv = ["gptbook", "--help"]
try:
    gptbook.cli.main()
except SystemExit:
    pass
"""
    assert "train" in without("torch", code)


# ---- the export ----------------------------------------------------------------------------------


@each_module
def test_every_module_comes_from_a_notebook(module: str) -> None:
    path = MODULES[module]
    if module in ("gptbook", "gptbook.__main__", "gptbook._modidx"):
        return
    text = path.read_text(encoding="utf-8")
    if path.stem == "__init__" and not text.strip():
        return
    source = re.search(r"^# AUTOGENERATED! DO NOT EDIT! File to edit: (\S+?)\.?$", text, flags=re.M)
    assert source, f"{module} was written by hand; only __init__.py and __main__.py of gptbook may be"
    notebook = (path.parent / source[1]).resolve().relative_to(NBS).as_posix()
    assert notebook in BY_NAME, f"{module} is left over from {notebook}, which does not exist"
    assert BY_NAME[notebook].module == module


@each_module
def test_nothing_is_defined_twice(module: str) -> None:
    """A cell pasted twice, or an earlier version of a class that was exported too."""
    names = Counter()
    for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] += 1
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    complain([f"{module} defines {name} {n} times" for name, n in names.items() if n > 1])


def test_export_and_clean_change_nothing(copy_of_repository) -> None:
    copy = copy_of_repository("export")
    before = {name: (copy / name).read_bytes() for name in tracked_files()}
    for command in ("nbdev_export", "nbdev_clean"):
        code = f"from nbdev.{'clean' if 'clean' in command else 'doclinks'} import {command}; {command}()"
        done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    after = {
        path.relative_to(copy).as_posix(): path.read_bytes()
        for path in copy.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    changed = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    complain([f"{name} changes: run nbdev-export and nbdev-clean before you commit" for name in changed])


# ---- formulas, checks, references ----------------------------------------------------------------


def labels(notebook: Notebook) -> list[tuple[str, str]]:
    """(label, where) of a notebook: ``{#eq-x}``, ``{#sec-x}`` in the text, ``#| label: fig-x`` on cells."""
    found = []
    for cell in notebook.cells:
        if cell.kind == "markdown":
            names = re.findall(r"\{#((?:eq|sec|fig|tbl)-[\w-]+)", cell.source)
            found += [(name, str(cell)) for name in names]
        elif "label" in cell.directives:
            found.append((cell.directives["label"], str(cell)))
    return found


LABELS = Counter(label for notebook in NOTEBOOKS for label, _ in labels(notebook))
CHECKS = [(c, c.directives["check"]) for n in NOTEBOOKS for c in n.code if "check" in c.directives]


def test_labels_are_unique() -> None:
    where = [f"{label}: {place}" for n in NOTEBOOKS for label, place in labels(n) if LABELS[label] > 1]
    complain(sorted(where))


@each_notebook
def test_labels_stand_where_they_belong(notebook: Notebook) -> None:
    """A formula's label comes right after the closing dollars; anywhere else Quarto prints it as text."""
    faults = []
    for cell in notebook.cells:
        if cell.kind == "markdown":
            text = re.sub(r"^(```+).*?^\1 *$", "", cell.source, flags=re.M | re.S)
            parts = text.split("$$")
            if len(parts) % 2 == 0:
                faults.append(f"{cell}: an odd number of $$")
            after = sum(bool(re.match(r" *\{#eq-[\w-]+\}", part)) for part in parts[2::2])
            if after != len(re.findall(r"\{#eq-", text)):
                faults.append(f"{cell}: an {{#eq-...}} does not follow closing $$ directly")
            for hashes, label in re.findall(r"^(#*).*\{#sec-([\w-]+)\}", text, flags=re.M):
                if len(hashes) < 2:
                    faults.append(f"{cell}: sec-{label} must label a heading of level 2 or deeper")
        elif "check" in cell.directives and not cell.source.startswith("#| check:"):
            faults.append(f"{cell}: the line '#| check:' must be the cell's first")
    complain(faults)


@each_notebook
def test_every_labelled_formula_is_checked(notebook: Notebook) -> None:
    checked = {label for _, text in CHECKS for label in re.findall(r"eq-[\w-]+", text)}
    needed = [(label, place) for label, place in labels(notebook) if re.match("eq-(?!def-)", label)]
    complain([f"{label} has no check: {place}" for label, place in needed if label not in checked])


@each_notebook
def test_checks_are_well_formed_and_can_fail(notebook: Notebook) -> None:
    faults = []
    for cell, text in CHECKS:
        if cell.notebook != notebook.name:
            continue
        try:
            names, _ = parse_check(text)
        except ValueError as error:
            faults.append(f"{cell}: {error}")
            continue
        faults += [f"{cell}: no formula is labelled {name}" for name in names if name not in LABELS]
        if not any(isinstance(node, ast.Assert) for node in ast.walk(cell.tree)):
            faults.append(f"{cell}: it asserts nothing, so it cannot fail")
    complain(faults)


REFERENCE = re.compile(r"(?<![\w@./])@([A-Za-z][\w:.-]*\w)")  # @eq-name, [@key], but no address of mail


def bibliography() -> dict[str, str]:
    """The entries of references.bib by key; a key that is there twice fails."""
    text = (NBS / "references.bib").read_text(encoding="utf-8")
    entries = [
        (re.match(r"@\w+\{\s*([^,\s]+)", part)[1], part) for part in re.split(r"^(?=@)", text, flags=re.M)[1:]
    ]
    twice = [key for key, n in Counter(key for key, _ in entries).items() if n > 1]
    complain([f"references.bib has the key {key} more than once" for key in twice])
    return dict(entries)


@each_notebook
def test_references_resolve(notebook: Notebook) -> None:
    keys = bibliography()
    faults = []
    for cell in notebook.cells:
        for name in REFERENCE.findall(cell.prose):
            if re.match(r"(eq|fig|sec|tbl)-", name):
                if name not in LABELS:
                    faults.append(f"{cell}: no label {name}")
            elif name not in keys:
                faults.append(f"{cell}: references.bib has no entry {name}")
    complain(faults)


def test_bibliography() -> None:
    entries = bibliography()
    titles: dict[str, list[str]] = {}
    for key, text in entries.items():
        titles.setdefault(re.sub(r"[\W_]", "", re.search(r"\btitle\s*=\s*(.*)", text)[1]).lower(), []).append(
            key
        )
    faults = [
        f"references.bib has one work under {' and '.join(keys)}" for keys in titles.values() if len(keys) > 1
    ]
    cited = {name for n in NOTEBOOKS for cell in n.cells for name in REFERENCE.findall(cell.prose)}
    complain(
        faults + [f"references.bib has {key}, which nothing cites" for key in entries if key not in cited]
    )


@each_notebook
def test_links_between_notebooks(notebook: Notebook) -> None:
    anchors = {(n.path.name, label) for n in NOTEBOOKS for label, _ in labels(n)}
    faults = []
    for cell in notebook.cells:
        for target in re.findall(r"\]\(([^)\s]+)\)", cell.prose):
            if re.match(r"[a-z]+:", target):  # https:, mailto:
                continue
            name, _, anchor = target.partition("#")
            path = (notebook.path.parent / name).resolve() if name else notebook.path
            if not path.is_file():
                number = re.match(r"(\d\d)_", path.name)
                planned = number and int(number[1]) in PLANNED
                why = "is planned, but not written yet" if planned else "does not exist"
                faults.append(f"{cell}: {target} {why}")
            elif anchor and path.suffix == ".ipynb" and (path.name, anchor) not in anchors:
                faults.append(f"{cell}: {target} has no such label")
    complain(faults)


@each_notebook
def test_figures_are_labelled_and_described(notebook: Notebook) -> None:
    faults = []
    for cell in notebook.code:
        images = sum(any(k.startswith("image/") for k in output.get("data", {})) for output in cell.outputs)
        label = cell.directives.get("label", "")
        if images and notebook.chapter and not label.startswith("fig-"):
            faults.append(f"{cell}: shows a picture without '#| label: fig-...'")
        if label.startswith("fig-"):
            missing = [name for name in ("fig-cap", "fig-alt") if not cell.directives.get(name)]
            faults += [f"{cell}: has no {name}" for name in missing]
            if not images and "eval" not in cell.directives:
                faults.append(f"{cell}: was committed without its picture")
    complain(faults)


# ---- outputs -------------------------------------------------------------------------------------


def shown(output: dict) -> str:
    """The text of an output, pictures left out."""
    data = output.get("data", {})
    texts = [data[kind] for kind in data if kind.startswith("text/") or "svg" in kind]
    return "\n".join("".join(part) for part in [output.get("text", ""), *texts])


def prints_always(cell: Cell) -> bool:
    """Whether a statement at the cell's top level prints something."""
    values = [node.value for node in cell.tree.body if isinstance(node, ast.Expr)]
    names = [
        value.func.id for value in values if isinstance(value, ast.Call) and isinstance(value.func, ast.Name)
    ]
    return "print" in names


@each_notebook
def test_outputs(notebook: Notebook) -> None:
    machine_path = re.compile(r"(?<![\w/.:])/(?:work|root|home|tmp|Users)\b[\w/.-]*|\b[A-Z]:\\\w+")
    faults = []
    for cell in notebook.code:
        for output in cell.outputs:
            if output["output_type"] == "error":
                faults.append(f"{cell}: ended in an error: {output.get('ename')}")
            if output.get("name") == "stderr":
                faults.append(f"{cell}: wrote to stderr: {shown(output)[:100]!r}")
            paths = machine_path.findall(shown(output))
            faults += [f"{cell}: shows a path of this machine: {path}" for path in paths]
        if prints_always(cell) and not cell.outputs and "eval" not in cell.directives:
            faults.append(f"{cell}: prints something, but was committed without its output")
    if counted := sum(cell.count is not None for cell in notebook.code):
        faults.append(f"{notebook.name}: {counted} cells keep their execution count; run nbdev-clean")
    complain(faults)


@each_notebook
def test_size(notebook: Notebook) -> None:
    size = notebook.path.stat().st_size
    assert size < 1_500_000, f"{notebook.name} has {size / 1e6:.1f} MB; at most 1.5"


# ---- the site and the metadata -------------------------------------------------------------------


def test_site_lists_every_notebook_once() -> None:
    path = ROOT / "_quarto.yml"
    if not path.is_file():
        pytest.skip("_quarto.yml is not there yet")
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = re.findall(r"[\w./-]+\.(?:ipynb|qmd|md|bib|css|scss)\b", "\n".join(lines))
    dead = [name for name in names if not (ROOT / name).is_file() and not (NBS / name).is_file()]
    faults = [f"_quarto.yml lists {name}, which does not exist" for name in dead]
    counts = Counter(name.removeprefix("nbs/") for name in names if name.endswith(".ipynb"))
    faults += [f"_quarto.yml lists {name} {counts[name]} times" for name in BY_NAME if counts[name] != 1]
    complain(faults)


def test_constraints_pin_every_requirement() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    path = ROOT / "constraints.txt"
    if not path.is_file():
        pytest.skip("constraints.txt is not there yet")
    pins = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if text := line.partition("#")[0].strip():
            pin = Requirement(text)
            (spec,) = pin.specifier
            assert spec.operator == "==", f"constraints.txt: {line} is no exact version"
            pins[canonicalize_name(pin.name)] = spec.version
    faults = []
    for key in settings():
        if key == "requirements" or key.endswith("_requirements"):
            for wanted in map(Requirement, listed(key)):
                version = pins.get(canonicalize_name(wanted.name))
                if version is None:
                    faults.append(f"constraints.txt does not pin {wanted.name} ({key})")
                elif not wanted.specifier.contains(version, prereleases=True):
                    faults.append(
                        f"constraints.txt pins {wanted.name} {version}, settings.ini wants {wanted}"
                    )
    complain(faults)


def test_core_requirements_are_what_the_package_imports() -> None:
    """No package that nothing imports, and none imported at a module's top that is not required."""
    imported = set()
    for path in MODULES.values():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"gptbook"}
    required = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in listed("requirements")}
    missing = sorted(third_party - required)
    complain([f"gptbook imports {name}, which settings.ini does not require" for name in missing])
    if "gptbook.cli" not in MODULES:
        pytest.skip("gptbook/cli.py is not there yet, and may import what nothing else does")
    text = "\n".join(path.read_text(encoding="utf-8") for path in MODULES.values())
    used = set(re.findall(r"^\s*(?:import|from) (\w+)", text, flags=re.M))
    complain([f"settings.ini requires {name}, which nothing imports" for name in sorted(required - used)])


# ---- public names --------------------------------------------------------------------------------


def test_public_names_resolve() -> None:
    import gptbook

    faults = []
    for name in gptbook.__all__:
        try:
            getattr(gptbook, name)
        except Exception as error:
            faults.append(f"gptbook.{name}: {type(error).__name__}: {error}")
        if f"gptbook.{name}" in MODULES:
            faults.append(f"gptbook.{name} is also a module: which one you get depends on earlier imports")
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = gptbook.nonesuch
    complain(faults)


# The contract (DESIGN, section 4); book_model comes with the trained models.
CONTRACT = """GPT GPTConfig CharTokenizer WordTokenizer BPETokenizer TrainConfig train generate load_run
    scaled_dot_product_attention""".split()


def test_the_contract_s_names_are_public() -> None:
    import gptbook

    missing = [name for name in CONTRACT if name not in gptbook.__all__]
    complain([f"gptbook.{name} is promised, but not in gptbook.__all__" for name in missing])


def public_definitions(module: str) -> list[ast.FunctionDef | ast.ClassDef]:
    """The functions and classes in a module's ``__all__``; of several versions the last."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    public = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            public = {element.value for element in getattr(node.value, "elts", ())}
    found = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    return [node for name, node in found.items() if name in public]


def missing_hints(function: ast.FunctionDef, method: bool) -> list[str]:
    """Parameters without a type hint, and ``return``."""
    args = function.args
    named = [*args.posonlyargs, *args.args]
    bound = method and not any(getattr(d, "id", None) == "staticmethod" for d in function.decorator_list)
    named = named[1:] if bound else named
    every = [*named, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
    missing = [arg.arg for arg in every if arg.annotation is None]
    return missing if function.returns or function.name == "__init__" else [*missing, "return"]


def interface(module: str) -> list[tuple[str, ast.FunctionDef | ast.ClassDef, bool]]:
    """(name, node, whether it is a method) of all that a module offers."""
    found = []
    for node in public_definitions(module):
        found.append((f"{module}.{node.name}", node, False))
        if isinstance(node, ast.ClassDef):
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
            public = [m for m in methods if m.name == "__init__" or not m.name.startswith("_")]
            found += [(f"{module}.{node.name}.{method.name}", method, True) for method in public]
    return found


@each_module
def test_public_definitions_have_docstrings_and_hints(module: str) -> None:
    faults = []
    for name, node, method in interface(module):
        if not ast.get_docstring(node) and not (method and node.name in ("__init__", "forward")):
            faults.append(f"{name} has no docstring")
        if isinstance(node, ast.FunctionDef):
            faults += [f"{name}: no type hint for {missing}" for missing in missing_hints(node, method)]
    complain(faults)


# ---- the preface and the README ------------------------------------------------------------------


def test_preface_quotes_the_recorded_run() -> None:
    """Its numbers and text are those of results/first_gpt.json, made by tools/first_gpt.py --record."""
    record = json.loads((NBS / "results" / "first_gpt.json").read_text(encoding="utf-8"))
    words = "\n".join(cell.source for cell in BY_NAME["index.ipynb"].cells)
    assert f"{record['measured']['bits_per_byte']:.2f} bits for each byte" in words
    assert f"needs {record['measured']['ngram']['bits_per_byte']:.2f} on the same plays" in words
    quoted = [text.strip() for text in re.findall(r"^```text\n(.*?)^```", words, flags=re.M | re.S)]
    assert any(text in sample for text in quoted for sample in record["samples"])
    recorded = TrainConfig(**record["train"])
    # as many steps as fitted into the time
    defaults = TrainConfig(corpus="shakespeare", out=recorded.out, minutes=3.5, steps=recorded.steps)
    then, now = (
        config.to_dict() | {"preset": config.shape, "lr": config.max_lr, "muon_lr": config.max_muon_lr}
        for config in (recorded, defaults)
    )
    assert then == now, "the defaults have changed since the run was recorded"


def test_preface_lists_every_chapter() -> None:
    """Those that are written, in the book's order, by links; those that are not yet, by their numbers."""
    words = "\n".join(cell.source for cell in BY_NAME["index.ipynb"].cells)
    listed = re.findall(r"^\| \[(\d+) [^]]*\]\((\d\d_\w+\.ipynb)\)", words, flags=re.M)
    assert [name for _, name in listed] == [n.name for n in NOTEBOOKS if n.chapter]
    assert all(int(number) == int(name[:2]) for number, name in listed)
    missing = re.search(r"The numbers that are missing .*", words)
    unwritten = set(range(1, 25)) - {n.chapter for n in NOTEBOOKS}
    assert {int(number) for number in re.findall(r"\((\d+)\)", missing[0] if missing else "")} == unwritten


def test_readme_is_made_from_the_preface() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "readme.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:20]
    assert [line.split()[:2] for line in first_screen if line.startswith("make ")] == [
        ["make", "gpt"],
        ["make", "test"],
    ]


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 20
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_readme_says_in_three_sentences_what_it_is() -> None:
    before_the_commands = (ROOT / "README.md").read_text(encoding="utf-8").partition("```")[0]
    what = before_the_commands.strip().splitlines()[-1]
    assert len(re.findall(r"[.?!](?= [A-Z]|$)", what)) == 3, what
    assert len(what.split()) < 70


# ---- the anatomy of a chapter --------------------------------------------------------------------

# The epilogue (24) has no such anatomy: it derives two formulas and builds nothing.
FULL_CHAPTERS = {*range(1, 24)}
FULL = [notebook for notebook in NOTEBOOKS if notebook.chapter in FULL_CHAPTERS]
each_full_chapter = pytest.mark.parametrize("notebook", FULL, ids=lambda notebook: notebook.name)


def sections(notebook: Notebook) -> dict[str, list[Cell]]:
    """The cells below each heading of level 2; a cell with several headings is cut at each."""
    found, current = {}, []
    for cell in notebook.cells:
        pieces = (
            re.split(r"^(?=###? )", cell.source, flags=re.M) if cell.kind == "markdown" else [cell.source]
        )
        for piece in filter(str.strip, pieces):
            if cell.kind == "markdown" and (
                match := re.match(r"## (.+?)\s*(?:\{#[\w-]+\})?$", piece, flags=re.M)
            ):
                current = found.setdefault(match[1], [])
            current.append(replace(cell, source=piece))
    return found


@each_full_chapter
def test_chapter_has_all_its_parts(notebook: Notebook) -> None:
    faults = []
    words = "\n".join(cell.source for cell in notebook.cells if cell.kind == "markdown")
    if 'title="中文摘要"' not in words:
        faults.append("no abstract in Chinese")
    for word in ("**After this chapter you can**", "**Needs**", "**Runs**"):
        if word not in words:
            faults.append(f"the opening has no {word}")
    headings = list(sections(notebook))
    last = [name for name in headings if name in ("What people get wrong", "Recap", "Exercises", "Sources")]
    if last != ["What people get wrong", "Recap", "Exercises", "Sources"] or headings[-4:] != last:
        faults.append(f"it must end with traps, recap, exercises and sources, not with {headings[-4:]}")
    kinds = Counter(label.partition("-")[0] for label, _ in labels(notebook))
    if kinds["fig"] < 2:
        faults.append(f"{kinds['fig']} figures; at least two")
    if kinds["tbl"] < 1:
        faults.append("no table of an ablation")
    complain([f"{notebook.name}: {fault}" for fault in faults])


@each_full_chapter
def test_exercises_have_times_and_executed_solutions(notebook: Notebook) -> None:
    cells = sections(notebook).get("Exercises", [])
    starts = [i for i, cell in enumerate(cells) if cell.kind == "markdown" and cell.source.startswith("### ")]
    faults = [] if 3 <= len(starts) <= 5 else [f"{len(starts)} exercises; three to five"]
    proofs = 0
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(cells)]), start=1):
        heading = cells[start].source.splitlines()[0].removeprefix("### ")
        proofs += bool(re.search(r"proof|prove", heading + cells[start].source, flags=re.I))
        if not re.fullmatch(rf"Exercise {number}: .+ \(\d+ minutes(, (a )?proof)?\)", heading):
            faults.append(
                f"exercise {number} is headed {heading!r}; write '### Exercise N: title (M minutes)'"
            )
        text = "\n".join(cell.source for cell in cells[start:end] if cell.kind == "markdown")
        if '::: {.callout-tip collapse="true" title="Solution"}' not in text:
            faults.append(f"exercise {number} has no folded solution")
        if not any(cell.kind == "code" for cell in cells[start:end]):
            faults.append(f"exercise {number} has no executed solution")
    if not proofs:
        faults.append("no exercise asks for a proof")
    complain([f"{notebook.name}: {fault}" for fault in faults])


@each_notebook
def test_callouts_are_closed(notebook: Notebook) -> None:
    """A folded solution opens in one cell and closes in another; left open it would fold the whole rest."""
    depth, faults = 0, []
    for cell in notebook.cells:
        if cell.kind == "markdown":
            for line in re.findall(r"^:{3,}.*$", cell.source, flags=re.M):
                depth += 1 if re.match(r":{3,}\s*\S", line) else -1
                if depth not in (0, 1):
                    faults.append(f"{cell}: {line!r} opens or closes one callout too many")
    complain(faults + ([f"{notebook.name}: a callout is never closed"] if depth else []))
