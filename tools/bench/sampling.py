"""Tokens per second when writing 200 tokens, greedily, against `transformers.generate`.

    python tools/bench/sampling.py [--repeats 9]

First the same GPT-2 with the same weights in float32 on both sides: the texts must be equal. Then our default shape as
`gptbook sample` uses it (int8, or float16 without fast products of bytes, where the processor has products for them), for
one prompt and for eight. The same in float32 must give the same texts as the model itself. Last, int8 against float16.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peers import SIZES, medians, our_default, save, take_turns, their_gpt2

from gptbook.config import GPTConfig
from gptbook.model import GPT
from gptbook.sample import DecodingModel, generate

NEW, PROMPT = 200, 16


def same_weights(theirs: torch.nn.Module) -> GPT:
    """Our GPT-2 with their weights (their linear layers store the transpose)."""
    ours = GPT(GPTConfig.gpt2(**SIZES)).eval()
    state = theirs.state_dict()
    names = {
        "norm1": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj", "norm2": "ln_2",
        "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj",
    }  # fmt: skip
    found = {
        "embedding.weight": state["transformer.wte.weight"],
        "positions.weight": state["transformer.wpe.weight"],
        "head.weight": state["transformer.wte.weight"],
    }
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = state[f"transformer.ln_f.{kind}"]
        for l in range(SIZES["n_layer"]):
            for name, other in names.items():
                value = state[f"transformer.h.{l}.{other}.{kind}"]
                found[f"blocks.{l}.{name}.{kind}"] = value.T if value.ndim == 2 else value
    ours.load_state_dict(found)
    return ours


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    theirs = their_gpt2().eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))  # texts that do not repeat one token
    whole = GPT(our_default()).eval()
    twin, default, fp32 = (
        DecodingModel(same_weights(theirs), "fp32"),
        DecodingModel(whole),
        DecodingModel(whole, "fp32"),
    )
    rows, rates = [], {}

    def write(ids: torch.Tensor) -> torch.Tensor:
        return theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )

    def prompt(batch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(SIZES["vocab_size"], (batch, PROMPT), generator=generator)

    def compare(batch: int, what: str, ours: Callable[[], Any], peer: Callable[[], Any], goal: float) -> None:
        seconds = medians(take_turns({"peer": peer, "ours": ours}, repeats))
        rate = {name: batch * NEW / value for name, value in seconds.items()}
        ratio = rate["ours"] / rate["peer"]
        rates[f"batch {batch}, {what}"] = rate
        rows.append([f"sampling, batch {batch}, tokens/s", what, rate["ours"], rate["peer"], ratio, goal])
        print(
            f"sampling  batch {batch}, {what}: {rate['ours']:,.0f} against {rate['peer']:,.0f} tokens/s, ratio {ratio:.2f}"
        )

    for batch, ours, what, goal in (
        (1, twin, "the same GPT-2, fp32 both", 1.4),
        (1, default, "our default", 2.5),
        (8, default, "our default", 3.0),
    ):
        ids = prompt(batch)
        pair = (write(ids), twin) if ours is twin else (generate(whole, ids, NEW, temperature=0), fp32)
        assert torch.equal(pair[0], generate(pair[1], ids, NEW, temperature=0)), "the texts differ"
        compare(
            batch,
            f"{what} against transformers.generate fp32",
            partial(generate, ours, ids, NEW, temperature=0),
            partial(write, ids),
            goal,
        )
    if torch.backends.quantized.engine in ("x86", "fbgemm"):  # others have neither
        int8, fp16 = (
            partial(generate, DecodingModel(whole, precision), prompt(1), NEW, temperature=0)
            for precision in ("int8", "fp16")
        )
        compare(1, "our default shape in int8 against fp16, ours both; no goal was set", int8, fp16, 0.0)
    save("sampling", {"tokens_per_second": rates, "rows": rows})


if __name__ == "__main__":
    main()
