"""Parity with other people's implementations, in float64: the same weights, outputs, losses and gradients.

Against `transformers`: GPT-2, Llama and Qwen3 (the shape of `gptbook train`'s preset), greedy decoding with
their cache, and the filters of sampling. Against PyTorch: a whole `nn.TransformerEncoder`. Single layers are
compared in test_attention.py, AdamW in test_model.py, the tokenizer in test_tokenizer.py.

A difference is measured as a part of the largest entry of the tensor it is found in.
"""

import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptbook.config import GPTConfig
from gptbook.evaluate import token_losses
from gptbook.model import GPT
from gptbook.sample import (
    add_bias,
    apply_temperature,
    beam_search,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
)
from gptbook.training import mean_loss

EXACT = 1e-13  # found: up to 7e-15, the rounding of other orders of the same sums
FLOAT32 = 1e-5  # found: up to 3e-6; the other side rounds to float32 inside, whatever the type of its weights
V, T, CONTEXT, EPS = 23, 13, 32, 3e-4  # an epsilon that can be seen in the output
SIZES = {
    "vocab_size": V,
    "context_length": CONTEXT,
    "n_layer": 3,
    "n_head": 4,
    "d_model": 24,
    "norm_eps": EPS,
}
LLAMA = SIZES | {"d_ff": 40, "n_kv_head": 2}

CONFIGS = {
    "gpt2": GPTConfig.gpt2(**SIZES),
    "gpt2 gelu": GPTConfig.gpt2(**SIZES, ffn="gelu", d_ff=40),
    "gpt2 relu untied": GPTConfig.gpt2(**SIZES, ffn="relu", tie_embeddings=False),
    "llama": GPTConfig.llama(**LLAMA),
    "llama tied": GPTConfig.llama(**LLAMA | {"n_kv_head": 4}, tie_embeddings=True, rope_theta=500.0),
    "llama one kv head": GPTConfig.llama(**LLAMA | {"n_kv_head": 1}, rope_theta=5e5),
    "llama bias": GPTConfig.llama(**LLAMA, bias=True),
    "qwen3": GPTConfig(**LLAMA, qk_norm=True, rope_theta=1e6),
    "qwen3 untied": GPTConfig(**LLAMA | {"n_kv_head": 1}, qk_norm=True, tie_embeddings=False),
}
each_config = pytest.mark.parametrize("name", CONFIGS)


def close(ours: Tensor, theirs: Tensor, tolerance: float = EXACT, what: str = "") -> None:
    """Equal up to ``tolerance`` times the largest entry of the other side."""
    assert ours.shape == theirs.shape, what
    gap, scale = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert scale > 0 and gap <= tolerance * scale, f"{what}: {gap:.3g} off, the largest entry is {scale:.3g}"


def build(config: GPTConfig, seed: int = 0, spread: float = 0.3) -> GPT:
    """A model in float64 whose every parameter is random, so that none hides behind a start at 0 or 1."""
    torch.manual_seed(seed)
    model = GPT(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (spread if p.ndim == 2 else 0.3))
    return model


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy of tokens 1, 2, ... of ids (B, T) given those before them; logits (B, T, V)."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


# ---- the names of others -------------------------------------------------------------------------


class Family(NamedTuple):
    """Where others keep our parameters: their modules by ours, to which "weight" or "bias" is added.

    Several modules for one of ours: their rows follow one another in ours.
    """

    outside: dict[str, str]
    block: str
    inside: dict[str, tuple[str, ...]]
    transposed: frozenset[str] = frozenset()  # our modules whose matrices they store as (inputs, outputs)


GPT2 = Family(
    {
        "embedding": "transformer.wte.",
        "positions": "transformer.wpe.",
        "norm": "transformer.ln_f.",
        "head": "lm_head.",
    },
    "transformer.h.{}.",
    {
        "norm1": ("ln_1.",),
        "attention.qkv": ("attn.c_attn.",),
        "attention.out": ("attn.c_proj.",),
        "norm2": ("ln_2.",),
        "ffn.up": ("mlp.c_fc.",),
        "ffn.down": ("mlp.c_proj.",),
    },
    frozenset({"attention.qkv", "attention.out", "ffn.up", "ffn.down"}),  # their Conv1D
)
LLAMA_AND_QWEN3 = Family(
    {"embedding": "model.embed_tokens.", "norm": "model.norm.", "head": "lm_head."},
    "model.layers.{}.",
    {
        "norm1": ("input_layernorm.",),
        "attention.qkv": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
        "attention.q_norm": ("self_attn.q_norm.",),
        "attention.k_norm": ("self_attn.k_norm.",),
        "attention.out": ("self_attn.o_proj.",),
        "norm2": ("post_attention_layernorm.",),
        "ffn.up": ("mlp.gate_proj.", "mlp.up_proj."),
        "ffn.down": ("mlp.down_proj.",),
    },
)


def their_names(ours: str, family: Family) -> tuple[list[str], bool]:
    """Their names for our parameter, in the order of our rows, and whether theirs are transposed."""
    module, kind = ours.rsplit(".", 1)
    if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", module):
        number, module = found.groups()
        names = [family.block.format(number) + name for name in family.inside[module]]
    else:
        names = [family.outside[module]]
    return [name + kind for name in names], kind == "weight" and module in family.transposed


def to_ours(theirs: dict[str, Tensor], names: Iterable[str], family: Family) -> dict[str, Tensor]:
    """Their weights, or gradients, under our names and in our shapes."""
    found = {}
    for ours in names:
        sources, transposed = their_names(ours, family)
        found[ours] = torch.cat([theirs[name].T if transposed else theirs[name] for name in sources])
    return found


def to_theirs(ours: dict[str, Tensor], like: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Our weights under their names; ``like`` has their shapes."""
    found = {}
    for name, tensor in ours.items():
        targets, transposed = their_names(name, family)
        sizes = [like[target].shape[1 if transposed else 0] for target in targets]
        for target, part in zip(targets, tensor.split(sizes)):
            found[target] = part.T if transposed else part
    return found


# ---- models of transformers ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def hf() -> Iterator[ModuleType]:
    """The package transformers, without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield pytest.importorskip("transformers", reason="needs transformers: pip install gptbook[dev]")


@pytest.fixture
def float64_inside(hf: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's and Qwen3's norm and angles by their own lines, without the rounding to float32 in between."""
    from transformers.models.llama import modeling_llama
    from transformers.models.qwen3 import modeling_qwen3

    def norm(self: nn.Module, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def angles(self: nn.Module, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        base, d_k = self.config.rope_parameters["rope_theta"], self.config.head_dim
        inv_freq = 1.0 / base ** (torch.arange(0, d_k, 2, dtype=torch.float64) / d_k)
        angle = (position_ids[..., None] * inv_freq).repeat(1, 1, 2)
        return angle.cos(), angle.sin()

    for file, name in ((modeling_llama, "Llama"), (modeling_qwen3, "Qwen3")):
        monkeypatch.setattr(getattr(file, f"{name}RMSNorm"), "forward", norm)
        monkeypatch.setattr(getattr(file, f"{name}RotaryEmbedding"), "forward", angles)


def their_model(hf: ModuleType, c: GPTConfig, attention: str) -> nn.Module:
    """A model of transformers for our configuration, in float64."""
    if c.position == "learned":
        config = hf.GPT2Config(
            vocab_size=c.vocab_size,
            n_positions=c.context_length,
            n_embd=c.d_model,
            n_layer=c.n_layer,
            n_head=c.n_head,
            n_inner=c.d_ff,
            activation_function={"gelu_tanh": "gelu_new"}.get(c.ffn, c.ffn),
            layer_norm_epsilon=c.norm_eps,
            tie_word_embeddings=c.tie_embeddings,
            bos_token_id=None,
            eos_token_id=None,
        )
        kind = hf.GPT2LMHeadModel
    else:
        dials = dict(
            vocab_size=c.vocab_size,
            max_position_embeddings=c.context_length,
            hidden_size=c.d_model,
            intermediate_size=c.d_ff,
            num_hidden_layers=c.n_layer,
            num_attention_heads=c.n_head,
            num_key_value_heads=c.kv_heads,
            head_dim=c.d_k,
            rms_norm_eps=c.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            attention_bias=c.bias,
            tie_word_embeddings=c.tie_embeddings,
            bos_token_id=None,
            eos_token_id=None,
        )
        if c.qk_norm:
            config, kind = hf.Qwen3Config(**dials), hf.Qwen3ForCausalLM
        else:
            config, kind = hf.LlamaConfig(**dials, mlp_bias=c.bias), hf.LlamaForCausalLM
    config._attn_implementation = attention
    return kind(config).double().eval()


def twins(hf: ModuleType, name: str, attention: str = "eager", **kind) -> tuple[GPT, nn.Module, Family]:
    """Our model, and theirs with our weights."""
    ours = build(CONFIGS[name], **kind)
    family = GPT2 if CONFIGS[name].position == "learned" else LLAMA_AND_QWEN3
    theirs = their_model(hf, CONFIGS[name], attention)
    weights, like = dict(ours.named_parameters()), dict(theirs.named_parameters())
    mapped = to_theirs({n: p.detach() for n, p in weights.items()}, like, family)
    assert mapped.keys() == like.keys(), "each parameter has its counterpart"
    theirs.load_state_dict(
        mapped, strict=not CONFIGS[name].tie_embeddings
    )  # a tied matrix has two names there
    back = to_ours({n: p.detach() for n, p in theirs.named_parameters()}, weights, family)
    assert all(torch.equal(p, back[n]) for n, p in weights.items()), "there and back"
    return ours, theirs, family


def compare_gradients(ours: GPT, theirs: nn.Module, family: Family, tolerance: float) -> None:
    """The gradient of every parameter."""
    gradients = {n: p.grad for n, p in theirs.named_parameters()}
    mapped = to_ours(gradients, dict(ours.named_parameters()), family)
    for name, p in ours.named_parameters():
        close(p.grad, mapped[name], tolerance, name)


@each_config
def test_logits_and_gradients_equal_transformers(hf: ModuleType, name: str, float64_inside: None) -> None:
    """To the last digits of float64.

    GPT-2's attention is its own; Llama's and Qwen3's rounds to float32: there PyTorch's kernel is taken.
    """
    attention = "eager" if CONFIGS[name].position == "learned" else "sdpa"
    ours, theirs, family = twins(hf, name, attention)
    ids = torch.randint(V, (3, T))
    our_logits, their_logits = ours(ids), theirs(ids).logits
    close(our_logits, their_logits, what="logits")
    next_token_loss(our_logits, ids).backward()
    next_token_loss(their_logits, ids).backward()
    compare_gradients(ours, theirs, family, EXACT)


@each_config
def test_loss_and_gradients_equal_transformers_as_it_is(hf: ModuleType, name: str) -> None:
    """Nothing changed on their side, the loss and the shift of the targets are theirs too."""
    ours, theirs, family = twins(hf, name)
    ids = torch.randint(V, (3, T))
    logits, out = ours(ids), theirs(ids, labels=ids)
    loss = next_token_loss(logits, ids)
    close(logits, out.logits, FLOAT32, "logits")
    assert loss.item() == pytest.approx(out.loss.item(), rel=FLOAT32)
    loss.backward(), out.loss.backward()
    compare_gradients(ours, theirs, family, FLOAT32)


class Row:
    """Tokens in memory, to be read as those of a corpus are."""

    def __init__(self, ids: Tensor):
        self.ids = ids.numpy()

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, length: int) -> np.ndarray:
        return self.ids[start : start + length]


def test_both_losses_of_the_package_equal_that_of_transformers(hf: ModuleType) -> None:
    """The one that training watches and the one that evaluation reports."""
    ours, theirs, _ = twins(hf, "llama")
    ids = torch.randint(V, (4, T))
    with torch.no_grad():
        expected = theirs(ids, labels=ids).loss.item()
        rows = [theirs(row[None], labels=row[None]).loss.item() for row in ids]
    assert mean_loss(ours, [(ids[:, :-1], ids[:, 1:])]) == pytest.approx(expected, rel=FLOAT32)
    for row, loss in zip(ids, rows):
        assert token_losses(ours, Row(row)).mean() == pytest.approx(loss, rel=FLOAT32)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_greedy_text_equals_transformers(hf: ModuleType, name: str, use_cache: bool) -> None:
    """Twenty tokens from our cache; theirs with a cache and without. Prompts of several lengths, padded."""
    # Their own lines for attention give NaN in float64 where there is padding. The weights are large, so that
    # the texts do not repeat one token.
    ours, theirs, _ = twins(hf, name, "sdpa", seed=2, spread=1.0)
    prompts = [torch.randint(V, (n,)).tolist() for n in (1, 4, 9, 9)]
    long = max(map(len, prompts))
    padded = torch.tensor([[0] * (long - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (long - len(p)) + [1] * len(p) for p in prompts])
    settings = {"max_new_tokens": 20, "do_sample": False, "use_cache": use_cache, "pad_token_id": 0}
    expected = theirs.generate(padded, attention_mask=mask, **settings)
    rows = generate(ours, prompts, 20, temperature=0)
    assert rows == [row[long - len(p) :].tolist() for row, p in zip(expected, prompts)]
    alone = generate(ours, torch.tensor(prompts[-1]), 20, temperature=0)
    assert alone.tolist() == theirs.generate(padded[-1:], attention_mask=mask[-1:], **settings)[0].tolist()
    assert sum(len(set(row[-20:])) for row in rows) >= 20, "texts that repeat one token compare nothing"


# ---- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (apply_temperature, "TemperatureLogitsWarper", (0.1, 0.7, 1.0, 3.0)),
        (keep_top_k, "TopKLogitsWarper", (1, 2, 7, 49, 50, 1000)),
        (keep_top_p, "TopPLogitsWarper", (1e-6, 0.1, 0.5, 0.9, 0.999)),
        (keep_min_p, "MinPLogitsWarper", (0.0, 0.01, 0.2, 1.0)),
    ],
)
def test_filters_equal_transformers(hf: ModuleType, ours, theirs: str, values: tuple[float, ...]) -> None:
    """Rows that differ much in spread, so that a filter that looks at a neighbour's row is found."""
    logits = torch.randn(64, 50, dtype=torch.float64) * torch.logspace(-1, 1, 64)[:, None]
    for value in values:
        expected = getattr(hf, theirs)(value)(None, logits.clone())
        assert torch.equal(ours(logits, value), expected), value


def test_filters_in_a_row_equal_transformers(hf: ModuleType) -> None:
    """In the order in which `generate` applies them, which is theirs: the result depends on it."""
    logits = torch.randn(64, 50, dtype=torch.float64) * 3
    chain = hf.LogitsProcessorList(
        [
            hf.TemperatureLogitsWarper(0.8),
            hf.TopKLogitsWarper(20),
            hf.TopPLogitsWarper(0.9),
            hf.MinPLogitsWarper(0.1),
        ]
    )
    expected = chain(None, logits.clone())
    assert torch.equal(
        keep_min_p(keep_top_p(keep_top_k(apply_temperature(logits, 0.8), 20), 0.9), 0.1), expected
    )


def test_repetition_penalty_and_bias_equal_transformers(hf: ModuleType) -> None:
    """The penalty counts a token once, however often it occurs, and has two rules for the two signs."""
    logits, rows = torch.randn(32, 50, dtype=torch.float64) * 3, torch.randint(50, (32, 20))
    for penalty in (0.5, 1.0, 1.3, 5.0):
        expected = hf.RepetitionPenaltyLogitsProcessor(penalty)(rows, logits.clone())
        assert torch.equal(penalize_repetition(logits, rows.tolist(), penalty), expected), penalty
    bias = {0: 2.5, 7: -1.25, 49: float("-inf")}
    expected = hf.SequenceBiasLogitsProcessor({(id,): value for id, value in bias.items()})(
        rows, logits.clone()
    )
    assert torch.equal(add_bias(logits, bias), expected)


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_beams_equal_transformers(
    hf: ModuleType, num_beams: int, length_penalty: float, early_stopping: bool
) -> None:
    """All beams and their scores, with an end token that comes early in some and never in others."""
    ends = set()
    for seed in range(6):
        ours, theirs, _ = twins(hf, "llama", "sdpa", seed=seed, spread=1.0)
        prompt = torch.randint(V, (5,))
        expected = theirs.generate(
            prompt[None], attention_mask=torch.ones(1, 5), max_new_tokens=10, do_sample=False,
            num_beams=num_beams, num_return_sequences=num_beams, length_penalty=length_penalty,
            early_stopping=early_stopping, eos_token_id=[1, 2], pad_token_id=0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        found = beam_search(
            ours, prompt, 10, num_beams=num_beams, length_penalty=length_penalty,
            early_stopping=early_stopping, stop_tokens=[1, 2],
        )  # fmt: skip
        for (text, score), row, value in zip(
            found, expected.sequences, getattr(expected, "sequences_scores", [None])
        ):
            assert text == row[: len(text)].tolist(), seed
            assert text[-1] in (1, 2) or len(text) == 15, "the rest of a row is theirs to fill"
            assert value is None or score == pytest.approx(value.item(), rel=1e-4), (
                seed
            )  # theirs is rounded to float32
            ends.add(text[-1] in (1, 2))
        assert len(found) == num_beams
    assert ends == {True, False}, "all end alike: the end token is not tested"


def test_sliding_cache_equals_attention_to_a_window(hf: ModuleType) -> None:
    """Beyond the context each token is read once and sees a window: Mistral does the same by a mask."""
    ours, theirs, _ = twins(hf, "llama", "sdpa", seed=2, spread=1.0)
    config = hf.MistralConfig(
        **theirs.config.to_dict() | {"sliding_window": CONTEXT, "max_position_embeddings": 200}
    )
    config._attn_implementation = "sdpa"
    windowed = hf.MistralForCausalLM(config).double().eval()
    windowed.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        (row,) = generate(ours, [torch.randint(V, (20,)).tolist()], 100, temperature=0, sinks=0)
        greedy, whole = (
            m(torch.tensor([row])).logits[0, 19:-1].argmax(-1).tolist() for m in (windowed, theirs)
        )
    assert row[20:] == greedy
    assert row[20:] != whole and len(set(row[20:])) > 5, (
        "the window changes nothing: the test compares nothing"
    )


# ---- PyTorch's encoder ---------------------------------------------------------------------------

ENCODER = Family(
    {"embedding": "embedding.", "norm": "encoder.norm.", "head": "head."},
    "encoder.layers.{}.",
    {
        "norm1": ("norm1.",),
        "attention.qkv": ("self_attn.in_proj_",),
        "attention.out": ("self_attn.out_proj.",),
        "norm2": ("norm2.",),
        "ffn.up": ("linear1.",),
        "ffn.down": ("linear2.",),
    },
)


class Encoder(nn.Module):
    """The article's model made of PyTorch's layers: embedding, encoder, output matrix."""

    def __init__(self, c: GPTConfig):
        super().__init__()
        pre = c.norm_position == "pre"
        layer = nn.TransformerEncoderLayer(
            c.d_model, c.n_head, 4 * c.d_model, 0.0, c.ffn, c.norm_eps, batch_first=True, norm_first=pre
        )
        norm = nn.LayerNorm(c.d_model, c.norm_eps) if pre else None
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.encoder = nn.TransformerEncoder(layer, c.n_layer, norm, enable_nested_tensor=False)
        self.head = nn.Linear(c.d_model, c.vocab_size, bias=False)

    def forward(self, ids: Tensor, causal: bool = True) -> Tensor:
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1) if causal else None
        return self.head(self.encoder(self.embedding(ids), mask, is_causal=causal))


@pytest.mark.parametrize(
    "dials", [{}, {"norm_position": "pre", "ffn": "gelu"}], ids=["post-norm", "pre-norm"]
)
def test_model_equals_the_encoder_of_torch_with_a_mask(dials: dict) -> None:
    """The article's GPT is an encoder with a causal mask: logits and all gradients. Without it, it is not."""
    config = GPTConfig.article(**SIZES | dials)
    ours, theirs = build(config), Encoder(config).double()
    like = dict(theirs.named_parameters())
    theirs.load_state_dict(to_theirs(ours.state_dict(), like, ENCODER))
    ids = torch.randint(V, (3, T))
    our_logits, their_logits = ours(ids), theirs(ids)
    close(our_logits, their_logits, what="logits")
    next_token_loss(our_logits, ids).backward()
    next_token_loss(their_logits, ids).backward()
    compare_gradients(ours, theirs, ENCODER, EXACT)
    gap = (theirs(ids, causal=False) - our_logits).abs().amax((0, 2))  # by position
    assert gap[:-1].min() > 0.01 * our_logits.abs().max(), "an encoder sees what comes later"
    single = theirs(ids[:, :1], causal=False)  # where nothing comes later there is no difference
    close(single, our_logits[:, :1])
