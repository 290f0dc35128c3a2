"""Wall time from the start of the process to a validation loss of 1.886 on tinyshakespeare's characters.

    python tools/bench/characters.py [--text ../shared/data/tinyshakespeare.txt]

Both sides are `characters_run.py` in a process of its own: nanoGPT's example for a CPU with its own settings, all of its
2,000 steps, and the end of the story that chapter 13 tells, with as many steps as `story.py` found to be needed.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from characters_run import GOAL, OURS, PLAIN, STEPS
from peers import save

from gptbook.workshop.files import read_json


def run(name: str, text: Path, steps: int, seed: int) -> dict:
    start = time.perf_counter()
    program = Path(__file__).with_name("characters_run.py")
    command = [sys.executable, program, text, name, "--steps", str(steps), "--seed", str(seed)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"wall_seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, default=Path("../shared/data/tinyshakespeare.txt"))
    text = parser.parse_args().text
    if not text.is_file():
        print(f"characters: skipped, {text} is not here")
        return
    steps = read_json(Path("nbs/results/speed.json"))["lines"][OURS]["steps"]
    found = {"plain": run(PLAIN, text, STEPS, 0), "ours": run(OURS, text, steps, 0)}
    ratio = found["plain"]["wall_seconds"] / found["ours"]["wall_seconds"]
    for kind, result in found.items():
        print(
            f"characters  {kind:<6} {result['wall_seconds']:5.1f} s, {result['steps']:,} steps, validation loss {result['val_loss']:.3f}"
        )
    print(f"characters  ratio {ratio:.2f}")
    reached = found["ours"]["val_loss"] <= GOAL
    rows = [
        [
            "seconds to loss 1.886",
            "characters of tinyshakespeare, against nanoGPT's recipe",
            found["ours"]["wall_seconds"],
            found["plain"]["wall_seconds"],
            ratio if reached else 0.0,
            3.0,
        ]
    ]
    save("characters", found | {"ratio": ratio, "reached": reached, "rows": rows})


if __name__ == "__main__":
    main()
