"""How the run on tinyshakespeare's characters became fast, one change at a time, for chapter 13.

    python tools/bench/story.py [--text ../shared/data/tinyshakespeare.txt] [--out nbs/results/speed.json]

The budget of each line is searched, not chosen: the fewest steps, of 2,000, 1,800, ... each a tenth less, with which both
of two seeds reach the goal on the whole held-out part. The schedule is as long as the run. Then each line is timed, as a
process of its own, with the first seed. What is in the file already is not run again.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from characters import run
from characters_run import GOAL, OURS, PLAIN, STEPS, STORY, TRIED
from peers import machine

from gptbook.workshop.files import read_json, write_json

BUDGETS = [round(STEPS * 0.9**k) for k in range(32)]
SEEDS = (0, 1)


def fewest(reached: Callable[[int], bool], start: int) -> int | None:
    """The last k from which on ``reached`` fails, looked for near ``start``; None if it fails at 0, too."""
    if not reached(start):
        while start > 0:
            start -= 1
            if reached(start):
                return start
        return None
    stride = 1
    while start + stride < len(BUDGETS) and reached(start + stride):
        start, stride = start + stride, 2 * stride
    failed = min(start + stride, len(BUDGETS))
    while failed - start > 1:
        middle = (start + failed) // 2
        start, failed = (middle, failed) if reached(middle) else (start, middle)
    return start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, default=Path("../shared/data/tinyshakespeare.txt"))
    parser.add_argument("--out", type=Path, default=Path("nbs/results/speed.json"))
    arguments = parser.parse_args()
    record = read_json(arguments.out) if arguments.out.is_file() else {"goal": GOAL, "lines": {}}
    lines = record["lines"]

    def keep() -> None:
        write_json(arguments.out, record | {"machine": machine()})

    def look(name: str, steps: int) -> bool:
        losses = lines.setdefault(name, {}).setdefault("losses", {}).setdefault(str(steps), [])
        while len(losses) < len(SEEDS) and all(loss <= GOAL for loss in losses):
            result = run(name, arguments.text, steps, SEEDS[len(losses)])
            losses.append(result["val_loss"])
            print(f"{name:<40}{steps:>6,} steps, loss {losses[-1]:.4f}", flush=True)
            keep()
        return all(loss <= GOAL for loss in losses)

    place, of_ours = 0, 0
    for name in (PLAIN, *STORY, *TRIED):
        if name in TRIED:
            place = of_ours
        if name == PLAIN:  # as it is: its budget is a part of the recipe
            found = 0 if look(name, STEPS) else None
        else:
            found = fewest(lambda k, name=name: look(name, BUDGETS[k]), place)
        place = found or 0
        of_ours = place if name == OURS else of_ours
        lines[name] |= {"steps": BUDGETS[place], "reached": found is not None, "tried": name in TRIED}
        keep()
    for name, line in lines.items():
        if "wall_seconds" not in line:
            line["wall_seconds"] = run(name, arguments.text, line["steps"], SEEDS[0])["wall_seconds"]
            keep()
        print(f"{name:<40}{line['steps']:>6,} steps {line['wall_seconds']:>6.1f} s")


if __name__ == "__main__":
    main()
