"""Train a first GPT on Shakespeare's plays, measure it and let it write: what `make gpt` does, on any system.

Runs the same commands that a reader would type, and shows them. With --record FILE, what was measured and
written is kept as JSON; the preface quotes nbs/results/first_gpt.json.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

RUN = Path("runs/make-gpt")  # belongs to this program, which replaces it each time
PROMPTS = ("ROMEO:\n", "LADY MACBETH:\nCome, you spirits", "Enter two Clowns\n\n")


def gptbook(*arguments: str) -> str:
    """Run a command and return what it printed; a training run shows its progress as it goes."""
    shown = " ".join(f'"{a}"' if " " in a or "\n" in a else a for a in arguments).replace("\n", "\\n")
    print(f"\n$ gptbook {shown}", flush=True)
    command = [sys.executable, "-m", "gptbook", *arguments]
    result = subprocess.run(
        command, encoding="utf-8", stdout=None if arguments[0] == "train" else subprocess.PIPE
    )
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout or ""


def main() -> None:
    started = time.perf_counter()
    gptbook("train", "--corpus", "shakespeare", "--out", str(RUN), "--minutes", "3.5", "--overwrite")
    measured = json.loads(gptbook("eval", str(RUN), "--baseline"))
    ngram = measured["ngram"]
    print(
        f"on four plays it has never seen: {measured['bits_per_byte']:.3f} bits per byte\n"
        f"the best character n-gram there:   {ngram['bits_per_byte']:.3f} bits per byte "
        f"(order {ngram['order']}, by counting alone)"
    )
    samples = []
    for seed, prompt in enumerate(PROMPTS):
        arguments = [
            "--prompt",
            prompt,
            "--max-new-tokens",
            "150",
            "--temperature",
            "0.7",
            "--seed",
            str(seed),
        ]
        samples.append(gptbook("sample", str(RUN), *arguments).rstrip("\n"))
        print(samples[-1], flush=True)
    if "--record" in sys.argv:
        run = json.loads((RUN / "run.json").read_text(encoding="utf-8"))
        record = {
            "measured": measured,
            "samples": samples,
            "train": run["train"],
            "versions": run["versions"],
        }
        Path(sys.argv[sys.argv.index("--record") + 1]).write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    print(
        f"\nDone in {time.perf_counter() - started:.0f} seconds. "
        f"The run is in {RUN}, its loss curve in {RUN / 'loss.png'}.\n"
        "Try next:\n"
        f'  gptbook sample {RUN} --prompt "JULIET:" --temperature 0.6 --num-samples 3\n'
        "  gptbook train --corpus python --out runs/python            (writes Python)\n"
        "  gptbook train --corpus my_texts/ --out runs/mine --steps 4000"
    )


if __name__ == "__main__":
    main()
