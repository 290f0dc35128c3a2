"""Does chapter 17's model translate because it has read pages in two languages?

Two small base models read the same sentences. For the second one, each page with the same sentences in both
languages is cut into a page in English and one in Chinese, which stand far from each other. Both are then
fine-tuned on the same translations. Takes about forty minutes on one core; writes
nbs/results/two_languages.json.

    python tools/two_languages.py [--work runs/two_languages]
"""

import argparse
import json
import re
from pathlib import Path

from finetune_base import SETTINGS

from gptbook.config import FinetuneConfig, TrainConfig
from gptbook.finetune import all_tasks, answers, finetune, reading_matter, score
from gptbook.training import load_run, read_metrics, train
from gptbook.workshop.files import write_json

OUT = Path(__file__).resolve().parents[1] / "nbs" / "results" / "two_languages.json"
DOCUMENTS, STEPS, EXAMPLES, TEST = 20_000, 2000, 240, 100
TASKS = [task for task in all_tasks() if task.name in ("English to Chinese", "Chinese to English")]


def apart(documents: list[str]) -> list[str]:
    """The same lines, but no document with lines that alternate between the languages."""
    whole, halves = [], []
    for text in documents:
        lines = text.split("\n")
        chinese = [bool(re.search("[\u4e00-\u9fff]", line)) for line in lines]
        if any(chinese) and not all(chinese) and chinese[::2] == [chinese[0]] * len(chinese[::2]):
            whole.append("\n".join(lines[::2]))
            halves.append("\n".join(lines[1::2]))
        else:
            whole.append(text)
    step = len(whole) // max(len(halves), 1)
    for i, text in enumerate(halves[len(halves) // 2 :] + halves[: len(halves) // 2]):
        whole.insert(i * (step + 1), text)
    return whole


def measure(work: Path, documents: list[str]) -> dict[str, float]:
    """Pre-train on the documents, fine-tune on translations, and mark new ones: percent right."""
    reading, run = work / "reading", work / "run"
    reading.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(documents):
        (reading / f"{i:05d}.txt").write_text(text, encoding="utf-8")
    resume = (run / "last.json").is_file()
    settings = SETTINGS | {"steps": STEPS, "corpus": str(reading), "out": str(run)}
    train(TrainConfig(**settings), resume=resume, overwrite=not resume)
    lessons = work / "lessons.jsonl"
    items = [item for task in TASKS for item in task.items(EXAMPLES)]
    lessons.write_text(
        "".join(json.dumps(item.example, ensure_ascii=False) + "\n" for item in items), encoding="utf-8"
    )
    tuned = finetune(
        FinetuneConfig(
            run=str(run),
            data=str(lessons),
            out=str(work / "tuned"),
            epochs=6,
            batch_size=8,
            lr=8e-4,
            precision="fp32",
        )
    )
    base, tokenizer = load_run(run)
    found = {"held-out loss": read_metrics(run)[-1]["val_loss"]}
    for task in TASKS:
        test = task.items(TEST, "test")
        found[f"{task.name}, base"] = score(task, test, answers(base, tokenizer, test, framed=False))
        found[task.name] = score(task, test, answers(tuned.model, tuned.tokenizer, test))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/two_languages"))
    work, together = parser.parse_args().work, reading_matter(DOCUMENTS)
    runs = {
        name: measure(work / name, documents)
        for name, documents in (("together", together), ("apart", apart(together)))
    }
    settings = {"documents": DOCUMENTS, "steps": STEPS, "examples": EXAMPLES, "test": TEST}
    write_json(OUT, {"settings": settings, "runs": runs})
    print(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
