"""How the run on tinyshakespeare's characters became fast, line by line, for chapter 13.

    python tools/bench/story.py [--text ../shared/data/tinyshakespeare.txt] [--out nbs/results/speed.json]

Each line is a process of its own, timed from its start. What is in the file already is not run again.
"""

import argparse
from pathlib import Path

from characters import run
from characters_run import STORY
from peers import machine

from gptbook.workshop.files import read_json, write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, default=Path("../shared/data/tinyshakespeare.txt"))
    parser.add_argument("--out", type=Path, default=Path("nbs/results/speed.json"))
    arguments = parser.parse_args()
    found = read_json(arguments.out)["lines"] if arguments.out.is_file() else {}
    for name in STORY:
        if name not in found:
            found[name] = run(name, arguments.text)
            found = {line: found[line] for line in STORY if line in found}  # in the order of the story
            write_json(arguments.out, {"machine": machine(), "goal": 1.886, "lines": found})
        print(
            f"{name:<55}{found[name]['steps']:>6,} steps {found[name]['wall_seconds']:>6.1f} s, loss {found[name]['val_loss']:.3f}"
        )


if __name__ == "__main__":
    main()
