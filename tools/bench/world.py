"""Three minutes of training on the microworld, against the n-gram that writes the most true stories.

    python tools/bench/world.py

`gptbook train --corpus microworld-en --minutes 3`, then `gptbook eval --baseline`, as one would type them. We promise 95 %
grammatical sentences, and true stories far more often than the n-gram, which is fitted to the same stories.
"""

import json
import subprocess
import sys
import tempfile

from peers import save

MINUTES, GRAMMATICAL, AHEAD = 3, 0.95, 0.05


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        gptbook = [sys.executable, "-m", "gptbook"]
        train = [*gptbook, "train", "--corpus", "microworld-en", "--minutes", str(MINUTES), "--out", run]
        subprocess.run(train, check=True)
        done = subprocess.run(
            [*gptbook, "eval", run, "--baseline"], check=True, capture_output=True, text=True
        )
    found = json.loads(done.stdout)
    ours, theirs = found, found["world_ngram"]
    ratio = ours["grammatical"] / theirs["grammatical"]
    rows = [
        [
            f"grammatical sentences, {MINUTES} minutes",
            f"microworld, against the best of n-grams; {GRAMMATICAL:.0%} are promised",
            ours["grammatical"],
            theirs["grammatical"],
            ratio,
            GRAMMATICAL / theirs["grammatical"],
        ],
        [
            f"true stories, {MINUTES} minutes",
            f"microworld, against the best of n-grams (order {theirs['order']}); the difference",
            ours["true"],
            theirs["true"],
            ours["true"] - theirs["true"],
            AHEAD,
        ],
    ]
    save("world", {"measured": found, "rows": rows})
    print(
        f"world     true stories {ours['true']:.1%} against {theirs['true']:.1%}, grammatical sentences {ours['grammatical']:.1%} against {theirs['grammatical']:.1%}"
    )


if __name__ == "__main__":
    main()
