"""The long experiments of chapters 20 and 21: ``make experiments``.

Each adds lines to ``nbs/results/emergence.jsonl``: its settings, what was measured, with which versions, and
from which code: ``commit`` is the short hash of the commit that was checked out, with "+changes" if a file
that git knows (results apart) differed from it. (In lines recorded before this field was written it is the
commit that added the line, whose code they come from or a version shortly before it.)
What is there already is not run again, so that an interrupted call goes on where it stopped, model by model.
The trained story model goes to ``gptbook/models/story``.

    python tools/experiments.py [story] [no-drill] [ablations] [sizes] [objectives] [scaling]
"""

import argparse
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from gptbook import microworld
from gptbook.block import Block
from gptbook.config import GPTConfig, TrainConfig
from gptbook.data import Document, encode_documents
from gptbook.emergence import (
    DRILL,
    Lesson,
    story_batches,
    story_loss,
    story_model,
    story_tokenizer,
    tell_stories,
    train_on_stories,
)
from gptbook.evaluate import StoryJudge
from gptbook.interpret import Site, intervene
from gptbook.microworld import told_within
from gptbook.model import GPT
from gptbook.objectives import (
    MaskedLM,
    any_order_loss,
    fill,
    gibbs_sample,
    mask_tokens,
    masked_loss,
    order_log_prob,
)
from gptbook.probability import NGram
from gptbook.tokenizer import Tokenizer
from gptbook.training import FORMAT, VERSION
from gptbook.workshop.checks import one_of, require
from gptbook.workshop.files import sha256_file, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "nbs" / "results" / "emergence.jsonl"
DRILL_LESSON, STORY = Lesson(1500, bounds=DRILL), Lesson(1500)
FAST = {"lr": 3e-3, "muon_lr": 0.02, "decay": 0.3}  # for the drill
WATCH = (0, 25, 50, 75, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600, 700, 850, 1000, 1200)
VERSIONS = {"torch": torch.__version__, "python": platform.python_version()}
SEEDS = (0, 1, 2)
MORE_SEEDS, SELDOM = (3, 4, 5), (100, 300, 600, 1000)  # of these only what came out counts
NEAR = 8  # tokens that a block may look at, without "far": three blocks reach 21 back, some four sentences
MASKED = ("any number", "BERT, 15 %")  # of masks; the objectives of masked models
WINDOW = 128  # tokens that a masked model reads and writes: room for any story of a drill, and its end
AHEAD = 4  # how many calls ahead of the training the stories are told, by another process


class Teller:
    """`tell_stories`, done ahead of time by a second process; calls come in the order of their seeds."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self.pool, self.told = pool, {}

    def __call__(self, tokenizer: Tokenizer, first: int, count: int, **bounds: Any) -> Tensor:
        for begin in range(first, first + AHEAD * count, count):
            key = begin, count, str(bounds)
            if key not in self.told:
                self.told[key] = self.pool.submit(tell_stories, tokenizer, begin, count, **bounds)
        ready: Future = self.told.pop((first, count, str(bounds)))
        return ready.result()


def commit() -> str:
    """The short hash of the code that runs, "+changes" if it is not as committed; "unknown" without git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!nbs/results")
        return git("rev-parse", "--short", "HEAD") + "+changes" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def done() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


@contextmanager
def taken_away(model: GPT, part: str) -> Iterator[None]:
    """The model without "attention" or "ffn" in each block, or with "far" tokens out of sight."""

    def narrow(
        block: Block, args: tuple[Tensor], look: dict[str, Any]
    ) -> tuple[tuple[Tensor], dict[str, Any]]:
        past = look["cache"].length if look.get("cache") else 0
        here = torch.arange(past, past + args[0].shape[1])
        near = here[:, None] - torch.arange(past + args[0].shape[1]) < NEAR  # (T, T_k)
        mask = look.get("mask")
        return args, look | {"mask": near if mask is None else near & mask}

    with ExitStack() as stack:
        if part == "far":
            for block in model.blocks:
                stack.callback(block.register_forward_pre_hook(narrow, with_kwargs=True).remove)
        elif part:
            sites = [Site(layer, part) for layer in range(1, len(model.blocks) + 1)]
            stack.enter_context(intervene(model, dict.fromkeys(sites, torch.zeros_like)))
        yield


def window(rows: Tensor, end: int) -> Tensor:
    """What a masked model reads: rows (B, T) of whole stories -> (B, WINDOW), without the token before them,
    filled up with the token that ends a text."""
    require(rows.shape[1] <= WINDOW + 1, "a story is longer than the window")
    filled = F.pad(rows[:, 1:], (0, WINDOW + 1 - rows.shape[1]), value=-1)
    return filled.masked_fill(filled < 0, end)


def masked_objective(name: str, end: int, seed: int) -> Callable[[MaskedLM, Tensor], Tensor]:
    """The loss of a masked model on rows of stories, by its name in ``MASKED``."""
    generator = torch.Generator().manual_seed(seed)

    def loss(model: MaskedLM, rows: Tensor) -> Tensor:
        ids = window(rows, end)
        if name == MASKED[0]:
            return any_order_loss(model, ids, generator).mean() / WINDOW
        inputs, selected = mask_tokens(ids, 0.15, model.mask_id, generator, replace=0.1, keep=0.1)
        return masked_loss(model(inputs), ids, selected)

    return loss


def until_end(tokenizer: Tokenizer, rows: list[list[int]]) -> list[str]:
    """The text of each row before its first end-of-text token."""
    end = tokenizer.end_of_text
    return [tokenizer.decode(row[: [*row, end].index(end)]) for row in rows]


class MaskedJudge(StoryJudge):
    """The same measures of a masked model: it reads and writes a window that ends in end-of-text tokens.

    Nats and answers are those of revealing from the left, as a causal model must. Beyond them: the nats of a
    random order, the answers with everything around them in sight, and stories after Gibbs sampling.
    """

    @torch.no_grad()
    def score(self, model: MaskedLM, rows: Tensor) -> tuple[Tensor, Tensor]:
        ids, places = window(rows, self.tokenizer.end_of_text), torch.arange(WINDOW)
        nats, hits = torch.zeros(len(ids), dtype=torch.float64), torch.zeros(ids.shape, dtype=torch.bool)
        for t in range(WINDOW):
            logits = model(ids.where(places < t, model.mask_id))[:, t]
            nats += F.cross_entropy(logits, ids[:, t], reduction="none")
            hits[:, t] = logits.argmax(-1) == ids[:, t]
        return nats, hits

    def random_order(self, model: MaskedLM) -> float:
        """Nats above the entropy of revealing in an order of chance, another one for each story."""
        ids = window(self.rows, self.tokenizer.end_of_text)
        order = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)).argsort(1)
        return float((self.logprobs - order_log_prob(model, ids, order).numpy()).mean())

    @torch.no_grad()
    def both_sides(self, model: MaskedLM) -> float:
        """The share of answers that are right when all but the answer is in sight."""
        ids = window(self.rows, self.tokenizer.end_of_text)[[asked.row for asked in self.answers]]
        begin, end = torch.tensor([(asked.begin, asked.end) for asked in self.answers]).T
        places, right = torch.arange(WINDOW), torch.ones(len(ids), dtype=torch.bool)
        for k in range(int((end - begin).max())):
            blank = (places >= (begin + k)[:, None]) & (places < end[:, None])  # (answers, WINDOW)
            at = (begin + k).clamp(max=WINDOW - 1)[:, None]
            first = torch.cat(
                [model(part).argmax(-1) for part in ids.masked_fill(blank, model.mask_id).split(self.n)]
            )
            right &= (first.gather(1, at) == ids.gather(1, at))[:, 0] | (begin + k >= end)
        return right.double().mean().item()

    def tell(self, model: MaskedLM, seed: int = 0) -> list[str]:
        self.written = fill(model, torch.full((self.n, WINDOW), model.mask_id), seed=seed)
        return until_end(self.tokenizer, self.written.tolist())

    def __call__(self, model: MaskedLM, seed: int = 0) -> dict[str, Any]:
        measured = super().__call__(model, seed)
        redrawn = gibbs_sample(model, self.written, 2)
        again = microworld.grade(until_end(self.tokenizer, redrawn.tolist()), self.language)
        return measured | {
            "nats_above_entropy_any_order": self.random_order(model),
            "answered_both_sides": self.both_sides(model),
            "gibbs": {"sweeps": 2, "grammatical": again.grammatical, "true": again.true},
        }


class Counted(NamedTuple):
    """An n-gram of one order, to be judged as a model is."""

    ngram: NGram
    order: int
    config: GPTConfig


class CountedJudge(StoryJudge):
    """The same measures of an n-gram."""

    def score(self, model: Counted, rows: Tensor) -> tuple[Tensor, Tensor]:
        nats, hits = torch.zeros(len(rows), dtype=torch.float64), rows[:, 1:] < -1
        for i, row in enumerate(rows):
            ids = row[row >= 0].numpy()
            nats[i] = -model.ngram.logprobs(ids, model.order)[1:].sum()
            for t in range(1, len(ids)):
                first = model.ngram.next_probs(ids[:t], model.order).argmax()
                hits[i, t - 1] = bool(first == ids[t])
        return nats, hits

    def tell(self, model: Counted, seed: int = 0) -> list[str]:
        end, longest = self.tokenizer.end_of_text, model.config.context_length - 1
        rng = np.random.default_rng(seed)
        rows = [model.ngram.sample(longest, rng, [end], order=model.order).tolist() for _ in range(self.n)]
        return until_end(self.tokenizer, rows)


def in_stories(tokenizer: Tokenizer, rows: Tensor) -> frozenset[int]:
    """`hash(story)` of the stories in rows (B, T) that a model was trained on, to tell which it copies."""
    return frozenset(map(hash, until_end(tokenizer, rows[:, 1:].tolist())))


def run_ngram(lesson: Lesson, seed: int, highest: int = 12) -> None:
    """The n-gram, of the best order up to ``highest`` on the judge's stories, of all stories of a lesson."""
    key = {"experiment": "ablation", "lesson": lesson._asdict(), "seed": seed, "without": "network"}
    key = json.loads(json.dumps(key))
    if any(all(line[k] == v for k, v in key.items()) for line in done()):
        return
    tokenizer, began = story_tokenizer(), time.time()
    with ProcessPoolExecutor(1) as pool:
        batches = list(story_batches(tokenizer, lesson, seed, Teller(pool)))
        pool.shutdown(cancel_futures=True)
    told = [row[row >= 0].numpy() for batch in batches for row in batch]
    with told_within(**lesson.bounds):
        known = frozenset().union(*(in_stories(tokenizer, batch) for batch in batches))
        judge = CountedJudge(tokenizer, "en", 200, known=known)
    ngram = NGram(highest, tokenizer.vocab_size).fit(told)
    nats = ngram.nats_by_order([row[row >= 0].numpy() for row in judge.rows])
    model = Counted(ngram, min(nats, key=nats.__getitem__), GPTConfig(tokenizer.vocab_size, 256))
    line = key | {"shape": {}, "settings": {}, "start": "", "step": lesson.steps, "stories": len(told)}
    line |= {"order": model.order} | judge(model) | {"seconds": round(time.time() - began)}
    print("n-gram", seed, line, flush=True)
    with open(RESULTS, "a") as file:
        file.write(json.dumps(line | {"versions": VERSIONS, "commit": commit()}) + "\n")


def run(
    name: str,
    lesson: Lesson,
    *,
    seed: int = 0,
    shape: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    start: Path | None = None,
    without: str = "",
    objective: str = "",
    watch: tuple[int, ...] = (),
    n: int = 200,
    keep: Path | None = None,
    write: bool = True,
) -> GPT | None:
    """Train one model and measure it at the steps in ``watch`` and at the end; None if that was done before.

    The model as it was measured last is in ``keep``. ``objective``: the next token, if it is not
    one of ``MASKED``.
    """
    one_of("objective", objective, ("", "next token", *MASKED))
    key = {
        "experiment": name,
        "lesson": lesson._asdict(),
        "seed": seed,
        "shape": shape or {},
        "settings": settings or {},
        "start": start.name if start else "",
        "without": without,
    } | ({"objective": objective} if objective else {})
    key = json.loads(json.dumps(key))
    if any(all(line.get(k) == v for k, v in key.items()) and line["step"] == lesson.steps for line in done()):
        return None
    tokenizer, began, seen = story_tokenizer(), time.time(), [0]
    origin = {"versions": VERSIONS, "commit": commit()}
    model = GPT.from_pretrained(start) if start else story_model(tokenizer.vocab_size, seed, **(shape or {}))
    loss, grader = story_loss, StoryJudge
    if objective in MASKED:
        require(not (start or without), "a masked model starts from nothing, and is whole")
        torch.manual_seed(seed)
        model = MaskedLM(model.config)
        loss, grader = masked_objective(objective, tokenizer.end_of_text, seed), MaskedJudge
    with told_within(**lesson.bounds):
        judge = grader(tokenizer, "en", n, known=frozenset())
    lines: list[dict[str, Any]] = []

    def look(step: int) -> None:
        measured = judge(model) if write and step else judge.read(model)
        counts = {"step": step, "stories": seen[0], "parameters": sum(p.numel() for p in model.parameters())}
        lines.append(key | counts | measured | {"seconds": round(time.time() - began)} | origin)
        shown = ("nats_above_entropy", "grammatical", "true", "answered", "told_apart", "told_apart_chance")
        print(
            name,
            seed,
            *(part for part in (shape, settings, without, lesson.bounds, lesson.stories) if part),
            step,
            {k: round(v, 3) for k, v in measured.items() if k in shown and v is not None},
            flush=True,
        )
        if keep:
            model.save_pretrained(keep)
            (keep / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def batches(teller: Teller) -> Iterator[Tensor]:
        for batch in story_batches(tokenizer, lesson, seed, teller):
            seen[0] += len(batch)
            if write:
                judge.known |= in_stories(tokenizer, batch)
            yield batch

    with ProcessPoolExecutor(1) as pool, taken_away(model, without):
        marks = {*watch, lesson.steps}
        told = batches(Teller(pool))
        train_on_stories(model, told, lesson.steps, watch=marks, look=look, loss=loss, **key["settings"])
        pool.shutdown(cancel_futures=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with open(RESULTS, "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return model


def ablations() -> None:
    """The drill, shorter, with a part taken away from the start, or with one thing changed in the stories.

    (Of the whole the file has three of the seeds twice, and of the one with the same stories one: trained
    again on another day, they ended elsewhere.)
    """
    drill = DRILL_LESSON._replace(steps=600)
    few = drill._replace(bounds=DRILL | {"questions": (1, 3)})
    for seed in (*SEEDS, *MORE_SEEDS):
        run_ngram(drill, seed)
        run("ablation", drill, seed=seed, settings=FAST)
        for part in ("attention", "ffn", "far"):
            run("ablation", drill, seed=seed, without=part, settings=FAST)
        for shape in ({"n_layer": 1}, {"position": "none"}, {"n_head": 1}):
            run("ablation", drill, seed=seed, shape=shape, settings=FAST)
        for lesson in (few, drill._replace(stories=2000)):
            run("ablation", lesson, seed=seed, settings=FAST)


def sizes() -> None:
    """The same drill for smaller models and a larger one, which write; the whole model of the ablations is
    between them."""
    for seed in SEEDS:
        for d_model in (16, 32, 144):
            shape = {"d_model": d_model, "n_head": d_model // 16}
            run("size", DRILL_LESSON._replace(steps=600), seed=seed, shape=shape, settings=FAST)


def objectives() -> None:
    """The drill of the ablations for masked models, and for a causal one with the same positions.

    And longer, and with half and twice the rates: those of the drill were chosen for a causal model.
    """
    same, short = {"position": "learned"}, DRILL_LESSON._replace(steps=600)
    for lesson, seeds in ((short, SEEDS), (DRILL_LESSON, SEEDS[:1])):
        for seed in seeds:
            for objective in ("next token", *MASKED):
                run("objectives", lesson, seed=seed, shape=same, settings=FAST, objective=objective)
    for factor in (0.5, 2.0):
        rates = {name: factor * FAST[name] for name in ("lr", "muon_lr")}
        run("objectives", short, shape=same, settings=FAST | rates, objective=MASKED[0])


def scaling() -> None:
    """Models of 36-fold different size and amounts of text of 33-fold, two seeds for each pair."""
    for seed in SEEDS[:2]:
        for d_model in (16, 32, 64, 144, 160):
            for steps in (30, 60, 125, 250, 500, 1000):
                shape = {"n_layer": 2, "d_model": d_model, "n_head": d_model // 16}
                run("scaling", Lesson(steps, 32), seed=seed, shape=shape, n=400, write=False)


def story() -> None:
    """The model of the book: chapters 20 and 21 look at it, ``gptbook sample story`` lets it write.

    The one of the first seed is the book's; the others tell how much of it is luck.
    """
    for seed in (*SEEDS, *MORE_SEEDS):
        drilled, told = (ROOT / "runs" / f"seed-{seed}" / name for name in ("drill", "story"))
        watch = WATCH if seed in SEEDS else SELDOM
        run("drill", DRILL_LESSON, seed=seed, settings=FAST, watch=watch, keep=drilled)
        trained = run("story", STORY, seed=seed, start=drilled, watch=watch, keep=told)
        if trained is not None and seed == SEEDS[0]:
            publish(told, ROOT / "gptbook" / "models" / "story", STORY.steps)


def no_drill() -> None:
    """The same model, which reads as many stories without the drill."""
    both = DRILL_LESSON.steps + STORY.steps
    for seed in (*SEEDS, *MORE_SEEDS):
        watch = (*WATCH, *range(1500, both, 300)) if seed in SEEDS else (*SELDOM, 1500, 2100)
        run("no drill", STORY._replace(steps=both), seed=seed, watch=watch)


def publish(trained: Path, out: Path, step: int) -> None:
    """Write a trained model as a run folder, in float16, with a little text that it can be measured on."""
    tokenizer, checkpoint = story_tokenizer(), out / "checkpoints" / f"step-{step:08d}"
    shutil.rmtree(out, ignore_errors=True)
    checkpoint.mkdir(parents=True)
    model = GPT.from_pretrained(trained)
    weights = {name: tensor.to(torch.float16) for name, tensor in model.state_dict().items()}
    save_file(weights, checkpoint / "model.safetensors")
    save_file({}, checkpoint / "optimizer.safetensors")
    write_json(checkpoint / "config.json", model.config.to_dict())
    write_json(checkpoint / "state.json", {"step": step, "best_loss": 0.0, "batches": step})
    tokenizer.save(out / "tokenizer.json")
    (out / "data").mkdir()
    sizes = {}
    for split, count in (("train", 300), ("val", 100)):
        texts = [microworld.sample(i, "en", split) for i in range(count)]
        documents = [Document(f"{split} {i}", text) for i, text in enumerate(texts)]
        encode_documents(documents, tokenizer, out / "data", split)
        sizes[split] = len("".join(texts).encode())
    names = {"train": [], "val": []}
    write_json(out / "data" / "corpus.json", {"name": "microworld-en", "bytes": sizes, "documents": names})
    shape = {
        k: getattr(model.config, k) for k in ("n_layer", "n_head", "d_model", "context_length", "vocab_size")
    }
    settings = TrainConfig(
        corpus="microworld-en", out="story", steps=step, batch_size=64, decay=0.9,
        document_mask=True,  # it read one story in a row
        **shape,
    )  # fmt: skip
    info = {"format": FORMAT, "version": VERSION, "train": settings.to_dict(), "versions": VERSIONS}
    write_json(out / "run.json", info | {"tokenizer": sha256_file(out / "tokenizer.json")})
    sums = {path.name: sha256_file(path) for path in sorted(checkpoint.iterdir())}
    for which in ("best", "last"):
        write_json(out / f"{which}.json", {"checkpoint": checkpoint.name, "step": step, "sha256": sums})


EXPERIMENTS = {
    "story": story,
    "no-drill": no_drill,
    "ablations": ablations,
    "sizes": sizes,
    "objectives": objectives,
    "scaling": scaling,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(EXPERIMENTS)}; all if none is named")
    torch.set_num_threads(1)
    for name in parser.parse_args().names or EXPERIMENTS:
        EXPERIMENTS[name]()


if __name__ == "__main__":
    main()
