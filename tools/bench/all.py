"""Run all benchmarks one after the other, and show one table: `make bench`.

    python tools/bench/all.py [--record nbs/results/bench.json] [--skip NAME ...]

Each is a program of its own that compares with a named peer in the same run. "At least" is what we promise; a row that does
not reach it is marked. Ratios are what counts: the seconds are those of this machine. A record keeps the ratios of the one
that it replaces, since they move from day to day.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from peers import machine

from gptbook.workshop.files import read_json, write_json

HERE, RESULTS = Path(__file__).parent, Path("bench-results")


def plays() -> list[list]:
    """`make gpt`: bits per byte on four held-out plays, against the best character n-gram of any order."""
    record = RESULTS / "first_gpt.json"
    subprocess.run([sys.executable, "tools/first_gpt.py", "--record", record], check=True)
    measured = read_json(record)["measured"]
    ours, theirs = measured["bits_per_byte"], measured["ngram"]["bits_per_byte"]
    return [
        [
            "bits per byte, make gpt",
            f"held-out plays, against the best n-gram (order {measured['ngram']['order']})",
            ours,
            theirs,
            theirs - ours,
            0.05,
        ]
    ]


def bpe() -> list[list]:
    """BPE training, against tokenizers: its time may be five times theirs at most."""
    subprocess.run([sys.executable, HERE / "bpe.py"], check=True)
    result = read_json(RESULTS / "bpe.json")
    ours, theirs = (result["median_seconds"][side] for side in ("gptbook", "tokenizers"))
    return [
        [
            "seconds, BPE of 8,192 tokens",
            f"{result['bytes'] / 1e6:.1f} MB, against tokenizers",
            ours,
            theirs,
            theirs / ours,
            0.2,
        ]
    ]


def program(name: str) -> list[list]:
    (RESULTS / f"{name}.json").unlink(missing_ok=True)
    subprocess.run([sys.executable, HERE / f"{name}.py"], check=True)
    return read_json(RESULTS / f"{name}.json")["rows"] if (RESULTS / f"{name}.json").is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path)
    parser.add_argument(
        "--skip",
        nargs="*",
        default=[],
        choices=["training", "sampling", "smollm2", "world", "characters", "plays", "bpe"],
    )
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    rows, failed = [], []
    for name, run in (
        ("training", lambda: program("training")),
        ("sampling", lambda: program("sampling")),
        ("smollm2", lambda: program("smollm2")),
        ("world", lambda: program("world")),
        ("characters", lambda: program("characters")),
        ("plays", plays),
        ("bpe", bpe),
    ):
        if name not in arguments.skip:
            try:
                rows += run()
            except subprocess.CalledProcessError:  # it has said why
                failed.append(name)
    print(f"\n{'what':<34}{'ours':>9}{'peer':>9}{'ratio':>8}{'at least':>10}  compared")
    for what, compared, ours, theirs, ratio, least in rows:
        mark = "" if ratio >= least else "   NOT REACHED"
        print(f"{what:<34}{ours:>9,.4g}{theirs:>9,.4g}{ratio:>8.2f}{least:>10.2f}  {compared}{mark}")
    result = {
        "machine": machine(),
        "columns": ["what", "compared", "ours", "peer", "ratio", "at least"],
        "rows": rows,
    }
    write_json(RESULTS / "table.json", result)
    if arguments.record and not failed:
        old = read_json(arguments.record)["rows"] if arguments.record.is_file() else []
        write_json(
            arguments.record,
            result | {"before": [[what, compared, ratio] for what, compared, _, _, ratio, _ in old]},
        )
    print(json.dumps(result["machine"]))
    if failed:
        sys.exit(f"bench: these failed and have no row: {', '.join(failed)}")


if __name__ == "__main__":
    main()
