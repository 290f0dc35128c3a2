"""The command line, as a reader meets it: what it writes, and the one line it has for each mistake."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptbook import __main__ as entry
from gptbook import cli

TEXT = (
    "ROMEO:\nBut soft, what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n\n"
)
SMALL = "--preset tiny --vocab-size 300 --context-length 16 --batch-size 4 --steps 6 --eval-every 3".split()
SMALL += ["--threads", "1"]


def gptbook(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", "gptbook", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=cwd, env=environment)


def fails(*arguments: str | Path, saying: str, cwd: Path | None = None) -> str:
    """Exit status 2, nothing on stdout's last lines to be taken for a result, and one line that says it."""
    done = gptbook(*arguments, cwd=cwd)
    assert done.returncode == 2, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("gptbook: "), done.stderr
    assert saying in lines[0], lines[0]
    return lines[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "play.txt"
    path.write_text("".join(f"{i}. {TEXT}" for i in range(80)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    done = gptbook("train", "--corpus", text, "--out", folder, *SMALL)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_train_leaves_a_whole_run(run: Path) -> None:
    names = {p.name for p in run.iterdir()}
    assert {
        "run.json",
        "tokenizer.json",
        "data",
        "checkpoints",
        "best.json",
        "last.json",
        "metrics.jsonl",
    } <= names
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "lr", "grad_norm", "tokens_per_s"} <= metrics[0].keys() and "val_loss" in metrics[2]
    assert not [p for p in run.rglob("*") if p.name.startswith(".")], "temporary files are left"


def test_sample_is_the_same_twice(run: Path) -> None:
    first, second = (gptbook("sample", run, "--prompt", "ROMEO:", "--seed", "1") for _ in range(2))
    assert first.returncode == 0 and first.stdout.startswith("ROMEO:") and len(first.stdout) > 20
    assert first.stdout == second.stdout
    assert gptbook("sample", run, "--prompt", "ROMEO:", "--seed", "2").stdout != first.stdout


def test_many_samples_are_written_in_even_blocks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A block of one text would be rounded otherwise than the others."""
    blocks = []

    def write(
        model: object, tokenizer: object, prompts: list[str], *args: int, seed: int, **_: object
    ) -> list:
        blocks.append((seed, len(prompts)))
        return [f"text {seed + i}" for i in range(len(prompts))]

    monkeypatch.setattr("gptbook.sample.generate_text", write)
    assert cli.main(["sample", "story", "--num-samples", "65", "--seed", "3"]) == 0
    assert blocks == [(3, 21), (24, 22), (46, 22)]
    texts = capsys.readouterr().out.rstrip("\n").split("\n\n----------\n\n")
    assert texts == [f"text {3 + i}" for i in range(65)]


def test_sample_several_and_stop(run: Path) -> None:
    three = gptbook("sample", run, "--prompt", "It", "--num-samples", "3", "--max-new-tokens", "8").stdout
    texts = three.rstrip("\n").split("\n\n----------\n\n")
    assert len(texts) == 3
    second = gptbook("sample", run, "--prompt", "It", "--seed", "1", "--max-new-tokens", "8").stdout.rstrip(
        "\n"
    )
    assert second == texts[1], "sample i has the seed of the first plus i"
    stopped = gptbook("sample", run, "--prompt", "It", "--max-new-tokens", "60", "--stop", "e", "\n").stdout
    assert "e" not in stopped and "\n" not in stopped.rstrip("\n")


def test_models_of_the_book_go_by_name(tmp_path: Path) -> None:
    wrote = gptbook("sample", "reader", "--prompt", "It was", "--max-new-tokens", 5, cwd=tmp_path)
    assert wrote.returncode == 0 and wrote.stdout.startswith("It was"), wrote.stderr
    told = gptbook("sample", "story", "--max-new-tokens", 30, cwd=tmp_path)
    assert told.returncode == 0 and " in the " in told.stdout, told.stderr
    (tmp_path / "reader").mkdir()  # a folder of that name comes first
    fails("sample", "reader", "--prompt", "It was", saying="reader is not a gptbook run", cwd=tmp_path)
    fails("sample", "../models/reader", "--prompt", "It was", saying="no such run folder", cwd=tmp_path)


def test_a_folder_comes_before_the_public_model(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "smollm2")
    fails("chat", "smollm2", saying="was not fine-tuned for conversations", cwd=tmp_path)
    done = gptbook("sample", "smollm2", "--prompt", "It", "--max-new-tokens", 2, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("It"), done.stderr
    fails("sample", "smollm2", saying="gptbook chat smollm2 talks with it", cwd=run)


def test_chat_help_promises_no_more_than_there_is(tmp_path: Path) -> None:
    words = " ".join(gptbook("chat", "--help").stdout.replace("│", " ").split())
    assert "have learned no conversations" in words
    for name in ("story", "reader"):
        fails("chat", name, saying="was not fine-tuned for conversations", cwd=tmp_path)


def test_sample_constrained(run: Path) -> None:
    choice = gptbook("sample", run, "--prompt", "It", "--choices", " is", " was", "--max-new-tokens", "20")
    assert choice.stdout in ("It is\n", "It was\n"), choice.stderr
    long = gptbook("sample", run, "--choices", "ab " * 2000, "--max-new-tokens", "6")
    assert long.returncode == 0 and ("ab " * 6).startswith(long.stdout.strip()), long.stderr
    numbers = gptbook("sample", run, "--prompt", "x=", "--pattern", r"\d{2}", "--num-samples", "2").stdout
    first, _, _, _, second = numbers.rstrip("\n").split("\n")
    assert all(line.startswith("x=") and line[2:].isdigit() and len(line) == 4 for line in (first, second))


def test_long_prompt_is_cut_with_notice(run: Path) -> None:
    done = gptbook("sample", run, "--prompt", TEXT * 3, "--max-new-tokens", "4")
    assert (
        done.returncode == 0
        and "the model sees the last 8" in done.stderr
        and done.stdout.startswith(TEXT * 3)
    )


def test_eval_prints_one_json_line(run: Path) -> None:
    done = gptbook("eval", run, "--baseline")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    values = json.loads(line)
    assert {"loss", "perplexity", "bits_per_byte", "tokens"} <= values.keys()
    assert 0 < values["ngram"]["bits_per_byte"] < 8 and values["split"] == "val"
    other = json.loads(gptbook("eval", run, "--split", "train").stdout)
    assert other["tokens"] > values["tokens"]


def test_tokenizer(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "tok.json"
    done = gptbook("tokenizer", "--corpus", text, "--vocab-size", "290", "--out", out)
    assert done.returncode == 0 and "290 tokens" in done.stdout
    before = out.read_bytes()
    fails("tokenizer", "--corpus", text, "--out", out, saying="exists")
    fails("tokenizer", "--corpus", text, "--out", tmp_path / "no" / "t.json", saying="does not exist")
    fails("tokenizer", "--corpus", text, "--vocab-size", "3", "--out", tmp_path / "t.json", saying="3")
    assert out.read_bytes() == before


def test_corpora_and_help_need_no_torch() -> None:
    code = "import sys; from gptbook.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    for arguments in (["corpora"], ["--help"], ["train", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.stdout.strip().endswith("False"), done.stdout + done.stderr
    assert "shakespeare" in gptbook("corpora").stdout


def test_resume_and_overwrite(copied: Path, text: Path, tmp_path: Path) -> None:
    before = snapshot(copied)
    start = ["train", "--corpus", text, "--out", copied, *SMALL]
    assert "--resume" in fails(*start, saying="holds another run")
    fails(*start, "--resume", "--overwrite", saying="contradict")
    fails(
        "train",
        "--corpus",
        text,
        "--out",
        tmp_path / "new",
        "--steps",
        "3",
        "--minutes",
        "1",
        saying="contradict",
    )
    fails(*start, "--resume", "--lr", "0.5", saying="--lr")
    fails("train", "--corpus", "nothing", "--out", copied, "--overwrite", saying="nothing")
    assert snapshot(copied) == before, "something that was there has changed"
    done = gptbook(*start, "--resume")  # it is finished: nothing to do, and no harm
    assert done.returncode == 0, done.stderr
    assert gptbook(*start, "--overwrite", "--seed", "3").returncode == 0
    assert json.loads((copied / "run.json").read_text())["train"]["seed"] == 3
    fails(
        "train", "--corpus", text, "--out", tmp_path / "new", "--resume", *SMALL, saying="no such run folder"
    )


def test_folders_that_are_no_runs_are_left_alone(text: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"x")
    for more in ([], ["--overwrite"]):
        fails(
            "train", "--corpus", text, "--out", tmp_path / "photos", *SMALL, *more, saying="holds other files"
        )
    (tmp_path / "file").write_text("x")
    fails("train", "--corpus", text, "--out", tmp_path / "file", *SMALL, saying="is a file")
    assert (tmp_path / "photos" / "one.jpg").read_bytes() == b"x"


BAD_CORPORA = {
    "missing": (None, "no corpus, file or folder"),
    "empty.txt": (b"", "is empty"),
    "blank.txt": (b" \n\n ", "is empty"),
    "short.txt": (b"To be, or not to be.\nThat is it.\n", "too short"),
    "picture.png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "binary file"),
    "latin.txt": ("caf\u00e9 ".encode("latin-1") * 500, "offset 3"),
}


@pytest.mark.parametrize("name", BAD_CORPORA)
def test_bad_corpus(name: str, tmp_path: Path) -> None:
    content, saying = BAD_CORPORA[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    line = fails("train", "--corpus", name, "--out", "out", *SMALL, saying=saying, cwd=tmp_path)
    assert name in line and ("--encoding" in line) == (name == "latin.txt")
    assert not (tmp_path / "out").exists(), "a run that could not start leaves no folder"


def test_encoding(tmp_path: Path) -> None:
    (tmp_path / "诗.txt").write_bytes(("不识庐山真面目，只缘身在此山中。\n" * 200).encode("gb18030"))
    fails("train", "--corpus", "诗.txt", "--out", "out", *SMALL, saying="not utf-8", cwd=tmp_path)
    fails(
        "train",
        "--corpus",
        "诗.txt",
        "--out",
        "out",
        *SMALL,
        "--encoding",
        "klingon",
        saying="klingon",
        cwd=tmp_path,
    )
    done = gptbook(
        "train", "--corpus", "诗.txt", "--out", "out", *SMALL, "--encoding", "gb18030", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert gptbook("sample", "out", "--prompt", "不识", cwd=tmp_path).stdout.startswith("不识")


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        ("train --corpus x --out y --stepz 3", "--steps"),
        ("train --corpus x", "--out"),
        ("train --corpus x --out y --d-model 65 --n-head 4", "not divisible"),
        ("train --corpus x --out y --steps 0", "steps = 0"),
        ("train --corpus x --out y --steps many", "many"),
        ("train --corpus x --out y --preset smal", "small"),
        ("trian", "train"),
        ("", "train"),
        ("sample nowhere", "no such run folder"),
        ("eval nowhere", "no such run folder"),
        ("sample nowhere --temprature 1", "--temperature"),
    ],
)
def test_bad_options(options: str, saying: str, tmp_path: Path) -> None:
    fails(*options.split(), saying=saying, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "saying"),
    [
        ("--temperature", "-0.5", "temperature"),
        ("--top-p", "0", "top_p"),
        ("--top-p", "1.5", "top_p"),
        ("--top-k", "0", "top_k"),
        ("--min-p", "2", "min_p"),
        ("--max-new-tokens", "-1", "max_new_tokens"),
        ("--num-samples", "0", "num_samples"),
        ("--repetition-penalty", "0", "repetition_penalty"),
        ("--pattern", "(", "cannot be used"),
        ("--stop", "", "stop"),
        ("--num-samples", "1" + "0" * 30, "num_samples"),
        ("--seed", "1" + "0" * 30, "seed"),
        ("--presence-penalty", "nan", "presence_penalty"),
        ("--frequency-penalty", "inf", "frequency_penalty"),
    ],
)
def test_bad_sampling(run: Path, option: str, value: str, saying: str) -> None:
    """Before a model is loaded, where its tokenizer is not needed: so there may be none."""
    fails("sample", run if option == "--pattern" else run / "nowhere", option, value, saying=saying)


def test_overwrite_removes_nothing_but_a_run(copied: Path, text: Path) -> None:
    (copied / "mytext.txt").write_text("mine")
    start = ["train", "--corpus", text, "--out", copied, *SMALL]
    fails(*start, "--overwrite", saying="mytext.txt")
    fails(*start, "--overwrite", "--lr", "inf", saying="lr = inf")
    assert (copied / "mytext.txt").read_text() == "mine" and (copied / "best.json").is_file()


@pytest.mark.parametrize("settings", [["--temperature", "1e-45"], ["--top-p", "1e-320"]])
def test_extreme_settings_are_greedy(run: Path, settings: list[str]) -> None:
    greedy = gptbook("sample", run, "--prompt", "It", "--temperature", "0").stdout
    assert gptbook("sample", run, "--prompt", "It", *settings).stdout == greedy


def test_damaged_runs(copied: Path, tmp_path: Path) -> None:
    def refused(saying: str) -> None:
        for command in ("sample", "eval"):
            fails(command, copied, saying=saying)

    weights = (
        copied
        / "checkpoints"
        / json.loads((copied / "best.json").read_text())["checkpoint"]
        / "model.safetensors"
    )
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused("the previous one is whole: --checkpoint previous")
    assert gptbook("eval", copied, "--checkpoint", "previous").returncode == 0
    weights.unlink()
    refused("model.safetensors is missing")
    (copied / "best.json").unlink()
    refused("no best checkpoint")
    settings = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps(settings | {"version": 99}))
    refused("version 99")
    (copied / "run.json").write_text('{"format": ')
    refused("not valid JSON")
    (copied / "run.json").write_text("[]")
    refused("not of a gptbook run")
    (copied / "run.json").unlink()
    refused("run.json")
    (tmp_path / "empty").mkdir()
    fails("sample", tmp_path / "empty", saying="not a gptbook run")


def test_prompt_longer_than_learned_positions(text: Path, tmp_path: Path) -> None:
    small = [*SMALL, "--preset", "gpt2", "--n-layer", "1", "--n-head", "2", "--d-model", "16"]
    assert gptbook("train", "--corpus", text, "--out", tmp_path / "r", *small).returncode == 0
    fails("sample", tmp_path / "r", "--prompt", TEXT * 3, saying="longer than the context of 16")
    done = gptbook("sample", tmp_path / "r", "--prompt", "It", "--max-new-tokens", "50")
    assert done.returncode == 0 and len(done.stdout) > 20, (
        "writing goes on past the context, from its last half"
    )


def test_debug_shows_the_traceback(run: Path, monkeypatch: Callable) -> None:
    monkeypatch.setenv("GPTBOOK_DEBUG", "1")
    done = gptbook("sample", run, "--top-p", "2")
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("command", "saying"),
    [
        ("train --corpus text --out loop", "loop"),
        (f"train --corpus text --out {'a' * 300}", "too long"),
        (f"train --corpus {'a' * 300} --out new", "too long"),
        (f"sample {'a' * 300}", "too long"),
        ("tokenizer --corpus text --out loop", "exists"),
        ("tokenizer --corpus text --out nowhere", "exists"),
        ("train --corpus wide --out new", "--encoding utf-32"),
        ("train --corpus text --out text/new", "is a file"),
        ("train --corpus text --out text/new/er", "is a file"),
        ("train --corpus text --out /", "cannot be the folder of a run"),
        ("tokenizer --corpus text --out .", "must name a file"),
        ("export story --to hf --out text/new", "text/new: Not a directory"),
        ("plan --params 1B --tokens 20B --gpus 8 --dollars-per-hour inf --json", "must be a finite number"),
    ],
)
def test_names_that_lead_nowhere(command: str, saying: str, tmp_path: Path) -> None:
    """Links that turn in a circle or to nothing, names too long for a disk, a file in a rare encoding."""
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    (tmp_path / "wide").write_text(TEXT, encoding="utf-32")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("missing")
    fails(*command.split(), saying=saying, cwd=tmp_path)
    assert not (tmp_path / "missing").exists() and not (tmp_path / "new").exists()


def test_an_interruption_while_the_command_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("gptbook.cli.main", interrupted)
    assert entry.main() == 130 and capsys.readouterr().err == "gptbook: interrupted\n"


@pytest.mark.parametrize("written", ["--out {}", "--out={}"])
def test_an_interruption_says_how_to_go_on_if_there_is_something(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gptbook.training.train", interrupted)
    command = ["train", "--corpus", "shakespeare", *written.format(tmp_path / "run").split()]
    assert cli.main(command) == 130 and capsys.readouterr().err == "gptbook: interrupted\n"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert cli.main(command) == 130 and "--resume to go on" in capsys.readouterr().err


def test_version() -> None:
    done = gptbook("--version")
    assert done.returncode == 0 and re.fullmatch(r"gptbook \d+(\.\d+)+\S*\n", done.stdout)


def test_what_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part of a folder that is closed to the user; pretended, since root may read everything."""
    (tmp_path / "text" / "closed").mkdir(parents=True)
    (tmp_path / "text" / "open.txt").write_text(TEXT * 20)
    scandir = os.scandir

    def guarded(path: str | Path = "."):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    arguments = ["train", "--corpus", str(tmp_path / "text"), "--out", str(tmp_path / "run"), *SMALL]
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.strip() == f"gptbook: no permission for {tmp_path / 'text' / 'closed'}"


@pytest.mark.skipif(os.name == "nt", reason="there, the encoding is always UTF-8")
def test_letters_in_a_locale_without_letters(text: Path, tmp_path: Path) -> None:
    """They arrive in texts, in names of files, and in what is talked."""
    environment = os.environ | {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "OMP_NUM_THREADS": "1",
    }

    def plain(*arguments: str, said: bytes = b"") -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "gptbook", *arguments]
        return subprocess.run(command, input=said, capture_output=True, cwd=tmp_path, env=environment)

    shutil.copy(text, tmp_path / "诗.txt")
    done = plain("train", "--corpus", "诗.txt", "--out", "诗", *SMALL)
    assert done.returncode == 0 and not done.stderr.decode().count("Glyph"), done.stderr.decode()
    assert json.loads((tmp_path / "诗" / "run.json").read_text("utf-8"))["train"]["corpus"] == "诗.txt"
    done = plain("sample", "诗", "--prompt", "é", "--max-new-tokens", "2")
    assert done.returncode == 0 and done.stdout.decode().startswith("é"), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, names of files are letters")
def test_a_name_in_a_corpus_that_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in (b"a.txt", b"caf\xe9.txt"):
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_text(f"{name}\n" + TEXT * 40)
    done = gptbook("train", "--corpus", folder, "--out", tmp_path / "run", *SMALL)
    assert done.returncode == 0, done.stderr
    assert r"caf\\udce9.txt" in (tmp_path / "run" / "data" / "corpus.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_too_little_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*args, **kwargs):
        raise error

    monkeypatch.delenv("GPTBOOK_DEBUG", raising=False)
    monkeypatch.setattr("gptbook.training.load_run", failing)
    assert cli.main(["sample", "story"]) == 1
    assert capsys.readouterr().err.startswith("gptbook: there is not enough memory; take a smaller model")


def test_a_file_that_cannot_be_written_has_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Not that of the file beside it, or of the lock, that stands for it meanwhile."""
    cli._fail(FileNotFoundError(2, "No such file or directory", "there/.it.txt.123.tmp"))
    cli._fail(PermissionError(13, "Permission denied", "there/.it.lock"))
    assert capsys.readouterr().err.splitlines() == [
        "gptbook: there/it.txt: No such file or directory", "gptbook: no permission for there/it",
    ]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="there, arguments are no bytes")
def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gptbook", "sample", "story", "--prompt", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == "gptbook: 'caf\\xe9' is not valid UTF-8\n"


def test_a_home_that_cannot_be_written_is_no_news(run: Path, text: Path, tmp_path: Path) -> None:
    """matplotlib remarks on where it keeps its cache, in several lines."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    }
    (tmp_path / "file").write_text("no folder")
    environment |= {"HOME": str(tmp_path / "file"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gptbook", "eval", str(run), "--report", str(tmp_path / "report.html")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_closed_pipes_end_in_peace_or_in_one_line(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m gptbook"

    def shell(line: str) -> subprocess.CompletedProcess:
        return subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)

    done = shell(f"{command} plan --params 1B --tokens 20B --gpus 8 | true")
    assert (done.returncode, done.stderr) == (0, "")
    train = f"train --corpus microworld-en --out {tmp_path / 'run'} --steps 1"
    done = shell(f"PYTHONUNBUFFERED=1 {command} {train} | true")  # what was not done is no success
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "train has stopped" in done.stderr, (
        done.stderr
    )
    done = shell(f"{command} chat story <&-")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "standard input" in done.stderr
