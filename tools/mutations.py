"""Break twenty lines of the package, one at a time, and show that the test or check named for each fails.

A test that nobody has seen fail proves little. Each mutation below is a well-known mistake. It is made in
a copy of the repository, in the module and in the notebook that the module comes from; there its one test is
run, or its notebook up to its one check cell. Exit status 1 if a mistake is missed.

    python tools/mutations.py [--jobs N] [--only WORD]
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 900


class Mutation(NamedTuple):
    """``old`` becomes ``new`` in a module of gptbook; ``check`` must fail.

    ``check`` is the id of a test, or a notebook and the formula of its check cell: "04_data: eq-shift".
    """

    name: str
    module: str
    old: str
    new: str
    check: str


MUTATIONS = [
    Mutation(
        "nats reported as bits per byte",
        "probability.py",
        "total_nats / (n_bytes * np.log(2))",
        "total_nats / n_bytes",
        "01_probability: eq-bits-per-byte",
    ),
    Mutation(
        "BPE: runs merged from the right",
        "tokenizer.py",
        "for i in sorted(where.pop(pair)):",
        "for i in sorted(where.pop(pair), reverse=True):",
        "tests/test_tokenizer.py::test_merges_of_toys_equal_those_of_tokenizers",
    ),
    Mutation(
        "targets not shifted by one",
        "data.py",
        "return rows[:, :-1], rows[:, 1:]",
        "return rows[:, :-1], rows[:, :-1]",
        "04_data: eq-shift",
    ),
    Mutation(
        "rotary pairs of neighbours, not of halves",
        "embedding.py",
        "first, second = x.chunk(2, dim=-1)",
        "first, second = x[..., 0::2], x[..., 1::2]",
        "tests/test_parity.py::test_logits_and_gradients_equal_transformers[llama]",
    ),
    Mutation(
        "causal mask off by one",
        "attention.py",
        ".tril(n_key - n_query)",
        ".tril(n_key - n_query + 1)",
        "tests/test_attention.py::test_attention_equals_torch",
    ),
    Mutation(
        "no causal mask on the fast path",
        "attention.py",
        "is_causal=causal, dropout_p=dropout)",
        "is_causal=False, dropout_p=dropout)",
        "13_training: eq-loss",
    ),
    Mutation(
        "mask of -10,000, not of minus infinity",
        "attention.py",
        'masked_fill_(~mask, float("-inf"))',
        "masked_fill_(~mask, -1e4)",
        "tests/test_attention.py::test_a_forbidden_key_gets_nothing_however_large_its_score",
    ),
    Mutation(
        "scores not divided by sqrt(d_k)",
        "attention.py",
        "scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)",
        "scores = q @ k.transpose(-2, -1)",
        "tests/test_attention.py::test_attention_equals_torch",
    ),
    Mutation(
        "grouped queries: heads in the wrong order",
        "multihead.py",
        "k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)",
        "k, v = k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)",
        "tests/test_attention.py::test_grouped_queries_are_shared_weights",
    ),
    Mutation(
        "SwiGLU: gate and value exchanged",
        "feedforward.py",
        "gate, value = up.chunk(2, dim=-1)",
        "value, gate = up.chunk(2, dim=-1)",
        "tests/test_parity.py::test_logits_and_gradients_equal_transformers[llama]",
    ),
    Mutation(
        "LayerNorm: variance divided by d - 1",
        "block.py",
        "return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)",
        "return F.linear((x - x.mean(-1, keepdim=True)) * (x.var(-1, keepdim=True) + self.eps).rsqrt(), "
        "self.weight.diag(), self.bias)",
        "tests/test_attention.py::test_norms_equal_torch",
    ),
    Mutation(
        "RMSNorm without its epsilon",
        "block.py",
        "self.weight.to(x.dtype), self.eps)",
        "self.weight.to(x.dtype), 0.0)",
        "tests/test_parity.py::test_logits_and_gradients_equal_transformers[qwen3]",
    ),
    Mutation(
        "tied matrices: a copy, not the same one",
        "model.py",
        "self.head.weight = self.embedding.weight",
        "self.head.weight = nn.Parameter(self.embedding.weight.detach().clone())",
        "tests/test_model.py::test_tied_tables_are_one[gpt2]",
    ),
    Mutation(
        "cache: positions begin at 0 again",
        "model.py",
        "torch.arange(start, end, device=ids.device), None",
        "torch.arange(end - start, device=ids.device), None",
        "tests/test_parity.py::test_greedy_text_equals_transformers[llama-True]",
    ),
    Mutation(
        "AdamW without bias correction",
        "optim.py",
        "[-lr / (1 - betas[0] ** t) for t in steps]",
        "[-lr for t in steps]",
        "tests/test_model.py::test_adamw_equals_torch",
    ),
    Mutation(
        "clipping that also enlarges",
        "optim.py",
        "(max_norm / (norm + 1e-6)).clamp(max=1.0)",
        "max_norm / (norm + 1e-6)",
        "12_optim: eq-clip",
    ),
    Mutation(
        "gradients accumulated, not averaged",
        "training.py",
        "y.flatten()) / config.accumulate",
        "y.flatten())",
        "tests/test_training.py::test_accumulated_batches_are_one_large_batch",
    ),
    Mutation(
        "top-p: one token too few",
        "sample.py",
        "drop = before >= p",
        "drop = before + probabilities >= p",
        "14_sample: eq-nucleus",
    ),
    Mutation(
        "windows that overlap: tokens scored twice",
        "evaluate.py",
        "plan.append((start, end - 1 - start, scored - 1 - start))",
        "plan.append((start, end - 1 - start, 0))",
        "15_evaluate: eq-stride-context",
    ),
    Mutation(
        "bits per token reported as bits per byte",
        "evaluate.py",
        "bits_per_byte(total, n_bytes)",
        "bits_per_byte(total, len(losses))",
        "tests/test_training.py::test_bits_per_byte_count_bytes",
    ),
]


# ---- notebooks -----------------------------------------------------------------------------------


def home(module: Path) -> Path:
    """The notebook that a module comes from."""
    found = re.search(
        r"^# AUTOGENERATED.* File to edit: (\S+\.ipynb)", module.read_text(encoding="utf-8"), re.M
    )
    return (module.parent / found[1]).resolve()


def code_cells(content: dict) -> list[tuple[dict, str]]:
    """The code cells of a notebook's content, each with its source."""
    return [(cell, "".join(cell["source"])) for cell in content["cells"] if cell["cell_type"] == "code"]


def exported(content: dict) -> list[tuple[dict, str]]:
    """Those that go into the module."""
    return [
        (cell, source) for cell, source in code_cells(content) if re.search(r"^#\| ?exports?\b", source, re.M)
    ]


def checking(content: dict, formula: str) -> list[dict]:
    """Those that check a formula."""
    line = re.compile(rf"#\| check:.*\b{formula}(?![\w-])")
    return [cell for cell, source in code_cells(content) if line.match(source)]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


# ---- a broken copy -------------------------------------------------------------------------------


def faults(mutation: Mutation, root: Path = ROOT) -> list[str]:
    """What does not fit: the line must be in the module and its notebook once, the check must be there."""
    module, found = root / "gptbook" / mutation.module, []
    count = module.read_text(encoding="utf-8").count(mutation.old)
    if count != 1:
        found.append(f"{mutation.name}: {mutation.module} has {mutation.old!r} {count} times")
    count = sum(source.count(mutation.old) for _, source in exported(read(home(module))))
    if count != 1:
        found.append(
            f"{mutation.name}: the exported cells of {home(module).name} have {mutation.old!r} {count} times"
        )
    path, _, name = mutation.check.partition("::")
    if name:
        there = re.search(
            rf"^def {name.partition('[')[0]}\(", (root / path).read_text(encoding="utf-8"), re.M
        )
        count = int(bool(there))
    else:
        notebook, formula = notebook_check(mutation.check, root)
        count = len(checking(read(notebook), formula)) if notebook.is_file() else 0
    if count != 1:
        found.append(f"{mutation.name}: {mutation.check} is there {count} times")
    return found


def notebook_check(check: str, root: Path) -> tuple[Path, str]:
    """The notebook and the formula of a check."""
    name, formula = check.split(": ")
    return root / "nbs" / f"{name}.ipynb", formula


def break_copy(mutation: Mutation, root: Path) -> int:
    """Make the mistake in a copy of the repository; the line of the module where it stands."""
    module = root / "gptbook" / mutation.module
    text, content = module.read_text(encoding="utf-8"), read(home(module))
    module.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    for cell, source in exported(content):
        cell["source"] = source.replace(mutation.old, mutation.new)
    write(home(module), content)
    return text[: text.index(mutation.old)].count("\n") + 1


def run(check: list[str], root: Path) -> tuple[bool, str]:
    """Whether tests, or the one check of a notebook, pass in a copy of the repository, and what was printed.

    Raises ``RuntimeError`` if that cannot be said: nothing was run, or something failed before the check.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    environment |= {"PYTHONPATH": str(root), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}

    def python(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=TIMEOUT,
        )

    used = python("-c", "import gptbook; print(gptbook.__file__)").stdout.strip()
    if Path(used).resolve().parent != (root / "gptbook").resolve():
        raise RuntimeError(f"the copy's package is not the one that is used, but {used}")
    if "::" in check[0]:
        done = python("-m", "pytest", "-x", "-p", "no:cacheprovider", *check)
        if done.returncode > 1:
            raise RuntimeError(done.stdout)
        return done.returncode == 0, done.stdout
    notebook, formula = notebook_check(check[0], root)
    content = read(notebook)
    (cell,) = checking(content, formula)
    content["cells"] = content["cells"][: content["cells"].index(cell) + 1]
    write(notebook, content)
    done = python("tests/run_notebook.py", str(notebook))
    if done.returncode and "".join(cell["source"]) not in done.stdout:
        raise RuntimeError(f"{notebook.name} failed before its check:\n{done.stdout}")
    return done.returncode == 0, done.stdout


# ---- the report ----------------------------------------------------------------------------------


def unbroken(mutations: list[Mutation], root: Path, jobs: int) -> list[str]:
    """The named checks that do not pass as things are, with what they print."""
    checks = sorted({m.check for m in mutations})
    groups = [[c for c in checks if "::" in c], *([c] for c in checks if "::" not in c)]
    copies = [shutil.copytree(root, root.with_name(f"unbroken{i}")) for i in range(len(groups))]
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(run, filter(None, groups), copies)
        return [
            f"{', '.join(group)}:\n{text}" for group, (passed, text) in zip(groups, results) if not passed
        ]


def verdict(mutation: Mutation, root: Path) -> tuple[str, str, float]:
    """ "caught", "MISSED" or "ERROR", the place of the line, and the seconds it took."""
    started = time.perf_counter()
    copy = shutil.copytree(root, root.with_name(re.sub(r"\W+", "-", mutation.name)))
    place = f"gptbook/{mutation.module}:{break_copy(mutation, copy)}"
    try:
        word = "MISSED" if run([mutation.check], copy)[0] else "caught"
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"{mutation.name}: {error}", file=sys.stderr)
        word = "ERROR"
    shutil.rmtree(copy)
    return word, place, time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="mutations at a time")
    parser.add_argument("--only", default="", help="only those with this word in their name, file or check")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import copy_repository

    mutations = [m for m in MUTATIONS if options.only in f"{m.name} {m.module} {m.check}"]
    if wrong := [fault for mutation in mutations for fault in faults(mutation)]:
        sys.exit("\n".join(wrong))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = copy_repository(Path(folder) / "repository")
        if failing := unbroken(mutations, root, options.jobs):
            sys.exit("these fail before anything is broken:\n" + "\n".join(failing))
        print(
            f"unbroken: all named tests and checks pass ({time.perf_counter() - started:.0f} s)", flush=True
        )
        width = max(len(m.name) for m in mutations)
        with ThreadPoolExecutor(options.jobs) as pool:
            words = []
            for m, (word, place, seconds) in zip(mutations, pool.map(lambda m: verdict(m, root), mutations)):
                words.append(word)
                print(f"{word}  {m.name:{width}}  {place:25}  {m.check}  ({seconds:.0f} s)", flush=True)
    print(f"{words.count('caught')} of {len(words)} caught ({time.perf_counter() - started:.0f} s)")
    return int(words.count("caught") < len(words))


if __name__ == "__main__":
    sys.exit(main())
