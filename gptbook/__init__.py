"""gptbook: why can a GPT write meaningful text? The code of the book, exported from its notebooks.

Names are imported when they are first used, so that `import gptbook` and `gptbook --help` stay fast.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version

_MODULES = {
    "probability": (
        "NGram",
        "best_ngram",
        "bits_per_byte",
        "cross_entropy",
        "entropy",
        "kl_divergence",
        "perplexity",
    ),
    "microworld": ("grade",),
    "tokenizer": (
        "BPETokenizer",
        "CharTokenizer",
        "Tokenizer",
        "WordTokenizer",
        "load_tokenizer",
        "train_tokenizer",
    ),
    "data": ("Batches", "Corpus", "Document", "TokenData", "encode_documents", "load_corpus"),
    "embedding": (
        "LearnedPositions",
        "RotaryPositions",
        "SinusoidalPositions",
        "TokenEmbedding",
        "apply_rotary",
    ),
    "attention": ("KVCache", "causal_mask", "scaled_dot_product_attention"),
    "multihead": ("MultiHeadAttention",),
    "feedforward": ("FeedForward",),
    "block": ("Block", "LayerNorm", "RMSNorm"),
    "config": ("FinetuneConfig", "GPTConfig", "TrainConfig"),
    "model": ("GPT", "count_params", "flops_per_token"),
    "backprop": ("NumpyAdamW", "NumpyGPT"),
    "optim": ("SGD", "AdamW", "Muon", "warmup_cosine", "warmup_stable_decay"),
    "training": ("Run", "book_model", "load_run", "train"),
    "sample": (
        "Choices",
        "DecodingModel",
        "Pattern",
        "beam_search",
        "generate",
        "generate_stream",
        "generate_text",
        "speculative",
        "stream_text",
    ),
    "objectives": (
        "MaskedLM",
        "any_order_loss",
        "fill",
        "gibbs_sample",
        "mask_tokens",
        "pseudo_log_likelihood",
    ),
    "finetune": (
        "Chat",
        "ChatTemplate",
        "Classifier",
        "add_lora",
        "merge_lora",
        "pack",
        "read_examples",
    ),
    "preference": (
        "RewardModel",
        "dpo_loss",
        "grpo_loss",
        "group_advantages",
        "kl_estimate",
        "preference_loss",
        "sequence_logprobs",
        "train_dpo",
        "train_grpo",
    ),
    "pretrained": (
        "load_gguf",
        "load_hf_tokenizer",
        "load_smollm2",
        "quantize_int8",
        "save_gguf",
    ),
    "interpret": (
        "Probe",
        "Site",
        "attention_weights",
        "fit_probe",
        "head_scores",
        "intervene",
        "logit_lens",
        "patch",
        "record",
        "silence_heads",
    ),
    "emergence": ("Lesson", "ScalingLaw", "fit_scaling", "story_batches", "story_model", "train_on_stories"),
    "limits": (
        "abstain_threshold",
        "carry_chain_probability",
        "cost_per_token",
        "filter_outcome",
        "longest_carry",
        "risk_coverage",
    ),
    "scale": ("Plan", "plan"),
    "evaluate": ("Evaluation", "evaluate_model", "evaluate_run", "ngram_baseline", "token_losses"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name == "__version__":
        return _version("gptbook")
    if name not in _HOME:
        raise AttributeError(f"module 'gptbook' has no attribute {name!r}")
    return getattr(_import_module(f"gptbook.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
