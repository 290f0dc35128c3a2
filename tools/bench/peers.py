"""What the benchmarks share: the model they speed up, its peer, and taking turns."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from gptbook.config import GPTConfig
from gptbook.workshop.files import write_json

SIZES = {"vocab_size": 8192, "context_length": 512, "n_layer": 6, "n_head": 6, "d_model": 384}
BATCH, LENGTH = 8, 256


def their_gpt2() -> torch.nn.Module:
    """Hugging Face's GPT-2 in the size of the benchmarks, random weights, no dropout."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=SIZES["vocab_size"],
        n_positions=SIZES["context_length"],
        n_embd=SIZES["d_model"],
        n_layer=SIZES["n_layer"],
        n_head=SIZES["n_head"],
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.GPT2LMHeadModel(config)


def our_default() -> GPTConfig:
    """The shape that `gptbook train` uses by default, in the size of the benchmarks."""
    return GPTConfig(**SIZES, qk_norm=True)


def take_turns(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, measured in turn, so that what disturbs the machine disturbs all. The first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(repeats + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The median of each side."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    names = (
        [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        if os.path.exists("/proc/cpuinfo")
        else []
    )
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "bf16_in_hardware": bool(bf16),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def save(name: str, result: dict[str, Any]) -> None:
    """Write bench-results/NAME.json."""
    Path("bench-results").mkdir(exist_ok=True)
    write_json(f"bench-results/{name}.json", result | {"machine": machine()})
