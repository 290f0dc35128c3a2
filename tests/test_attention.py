"""Chapters 6 to 9 against PyTorch's own layers, in float64: attention, heads, feed-forward, norms, blocks."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gptbook.attention import KVCache, causal_mask, scaled_dot_product_attention
from gptbook.block import Block, LayerNorm, RMSNorm, make_norm
from gptbook.embedding import (
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    TokenEmbedding,
    apply_rotary,
)
from gptbook.feedforward import FeedForward, default_d_ff, gelu, gelu_tanh, relu2
from gptbook.multihead import MultiHeadAttention

FFNS = ("relu", "gelu", "gelu_tanh", "swiglu", "relu2")


def close(ours: Tensor, theirs: Tensor, atol: float = 1e-13) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def randomize(module: nn.Module) -> nn.Module:
    """Random numbers in every parameter, also where the start is 0 or 1 and hides a mistake; float64."""
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    return module


# ---- scaled dot-product attention ----------------------------------------------------------------


@st.composite
def shapes(draw):
    n_key = draw(st.integers(1, 9))
    return {
        "batch": draw(st.integers(1, 3)),
        "n_head": draw(st.integers(1, 3)),
        "n_query": draw(st.integers(1, n_key)),
        "n_key": n_key,
        "d_k": draw(st.integers(1, 7)),
        "d_v": draw(st.integers(1, 7)),
        "causal": draw(st.booleans()),
        "masked": draw(st.sampled_from([None, "rows", "all"])),
        "seed": draw(st.integers(0, 99)),
    }


@settings(max_examples=60)
@given(shapes())
def test_attention_equals_torch(s: dict) -> None:
    torch.manual_seed(s["seed"])
    q = randn(s["batch"], s["n_head"], s["n_query"], s["d_k"])
    k = randn(s["batch"], s["n_head"], s["n_key"], s["d_k"])
    v = randn(s["batch"], s["n_head"], s["n_key"], s["d_v"])
    allowed = torch.ones(s["n_query"], s["n_key"], dtype=torch.bool)
    if s["causal"]:
        allowed = allowed.tril(s["n_key"] - s["n_query"])
    mask = None
    if s["masked"]:
        heads = s["n_head"] if s["masked"] == "all" else 1
        mask = torch.rand(s["batch"], heads, s["n_query"], s["n_key"]) < 0.6
        allowed = allowed & mask
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    for fused in (True, False):
        close(scaled_dot_product_attention(q, k, v, causal=s["causal"], mask=mask, fused=fused), expected)
    out, weights = scaled_dot_product_attention(q, k, v, causal=s["causal"], mask=mask, return_weights=True)
    close(out, expected)
    close(weights @ v, expected)
    sums = allowed.any(-1).to(weights.dtype).expand(weights.shape[:-1])
    close(weights.sum(-1), sums)
    assert not weights.masked_select(~allowed.expand_as(weights)).any()


def test_a_query_that_may_look_nowhere_gets_zero_and_a_gradient_that_is_a_number() -> None:
    q, k, v = (randn(1, 1, 3, 4).requires_grad_() for _ in range(3))
    mask = torch.tensor([[True, False, False], [False, False, False], [True, True, True]])
    for fused in (True, False):
        out = scaled_dot_product_attention(q, k, v, mask=mask, fused=fused)
        assert not out[0, 0, 1].any()
        for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_bfloat16(causal: bool, masked: bool) -> None:
    """Whichever path is chosen for training in half precision: outputs and gradients are those of float32."""
    exact = [torch.randn(2, 3, 40, 16).bfloat16().float().requires_grad_() for _ in range(3)]
    short = [x.detach().bfloat16().requires_grad_() for x in exact]
    mask = (torch.arange(40) >= torch.tensor([0, 7])[:, None])[:, None, None] if masked else None
    seen = torch.rand(2, 3, 40, 16)
    if masked and causal:
        seen[1, :, :7] = 0  # what stands at the padding is not read by anyone
    outs = [scaled_dot_product_attention(*qkv, causal=causal, mask=mask) for qkv in (exact, short)]
    assert outs[1].dtype == torch.bfloat16
    close(outs[1].float(), outs[0], 0.03)
    for a, b in zip(*(torch.autograd.grad((o * seen).sum(), qkv) for o, qkv in zip(outs, (exact, short)))):
        close(b.float(), a, 0.06 * a.abs().max().item())


def test_attention_of_large_scores_does_not_overflow() -> None:
    q = k = torch.full((1, 1, 4, 8), 1e4)
    v = torch.arange(4.0)[None, None, :, None].expand(1, 1, 4, 8)
    for fused in (True, False):
        close(scaled_dot_product_attention(q, k, v, fused=fused), torch.full((1, 1, 4, 8), 1.5), 1e-6)


def test_a_forbidden_key_gets_nothing_however_large_its_score() -> None:
    """Minus infinity, not a large number: the scores of later keys are above it by 90,000 a position."""
    q, k = torch.full((1, 1, 4, 4), 300.0), torch.arange(4.0)[:, None].expand(1, 1, 4, 4) * 150
    v = randn(1, 1, 4, 3).float()
    last_two = torch.tensor([[False, False, True, True]])
    for fused in (True, False):
        assert torch.equal(scaled_dot_product_attention(q, k, v, causal=True, fused=fused), v)
        out = scaled_dot_product_attention(q, k, v, mask=~last_two, fused=fused)
        assert torch.equal(out, v[:, :, 1:2].expand(1, 1, 4, 3))


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    q, k = randn(1, 1, 1, 4), randn(1, 1, 20_000, 4) * 0
    ones = torch.ones(1, 1, 20_000, 1, dtype=torch.float64)
    for fused in (True, False):
        out = scaled_dot_product_attention(q, k, ones, dropout=0.25, fused=fused).item()
        assert out != 1 and out == pytest.approx(1, abs=5 * math.sqrt(0.25 / 0.75 / 20_000))
    _, weights = scaled_dot_product_attention(q, k, ones, dropout=0.25, return_weights=True)
    assert weights.sum().item() == pytest.approx(1)  # before dropout


def test_causal_mask() -> None:
    assert causal_mask(3, 3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]
    with pytest.raises(ValueError, match="3 queries but only 2 keys"):
        causal_mask(3, 2)
    with pytest.raises(ValueError, match="3 queries but only 2 keys"):
        scaled_dot_product_attention(randn(1, 1, 3, 2), randn(1, 1, 2, 2), randn(1, 1, 2, 2), causal=True)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_cache_gives_back_what_was_stored(pieces: list[int]) -> None:
    n = sum(pieces)
    k, v, cache, start = randn(2, 3, n, 4), randn(2, 3, n, 4), KVCache(2, 3, n, 4, dtype=torch.float64), 0
    for length in pieces:
        keys, values = cache.append(k[:, :, start : start + length], v[:, :, start : start + length])
        start += length
        assert cache.length == start
        assert torch.equal(keys, k[:, :, :start]) and torch.equal(values, v[:, :, :start])
    with pytest.raises(ValueError, match=f"room for {n} positions, {n + 1} are needed"):
        cache.append(k[:, :, :1], v[:, :, :1])
    assert cache.length == n


# ---- several heads -------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_head", [1, 2, 6])
def test_multihead_equals_torch(n_head: int, causal: bool, bias: bool) -> None:
    ours = randomize(MultiHeadAttention(12, n_head, bias=bias))
    theirs = nn.MultiheadAttention(12, n_head, bias=bias, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.out_proj.weight.copy_(ours.out.weight)
        if bias:
            theirs.in_proj_bias.copy_(ours.qkv.bias)
            theirs.out_proj.bias.copy_(ours.out.bias)
    x = randn(3, 7, 12)
    padding = torch.tensor([0, 2, 5])
    hidden = torch.arange(7) < padding[:, None]  # (B, T): the padding at the start of each row
    future = ~causal_mask(7, 7) if causal else None
    expected, weights = theirs(x, x, x, attn_mask=future, average_attn_weights=False)
    close(ours(x, causal=causal), expected)
    out, our_weights = ours(x, causal=causal, return_weights=True)
    close(out, expected)
    close(our_weights, weights)
    expected, _ = theirs(x, x, x, attn_mask=future, key_padding_mask=hidden, need_weights=True)
    real = ~hidden  # in a causal row the padding sees nothing: theirs is not a number there
    close(ours(x, causal=causal, mask=~hidden[:, None, None])[real], expected[real])


@pytest.mark.parametrize(("n_head", "n_kv_head"), [(4, 1), (4, 2), (6, 3), (4, 4)])
def test_grouped_queries_are_shared_weights(n_head: int, n_kv_head: int) -> None:
    """The same as ordinary attention whose key and value rows are copied for every head of a group."""
    d_model = 24
    d_k, group = d_model // n_head, n_head // n_kv_head
    grouped, plain = (
        MultiHeadAttention(d_model, n_head, n_kv_head, bias=True),
        MultiHeadAttention(24, n_head, bias=True),
    )
    randomize(grouped), randomize(plain)
    rows_q, rows_kv = n_head * d_k, n_kv_head * d_k
    with torch.no_grad():
        for ours, theirs in ((grouped.qkv.weight, plain.qkv.weight), (grouped.qkv.bias, plain.qkv.bias)):
            q, k, v = ours.split([rows_q, rows_kv, rows_kv])
            for part, source in zip(theirs.split(rows_q), (q, k, v)):
                for head in range(n_head):
                    from_head = head if source is q else head // group
                    part[head * d_k : (head + 1) * d_k] = source[from_head * d_k : (from_head + 1) * d_k]
    plain.out.load_state_dict(grouped.out.state_dict())
    x, rotary = randn(2, 5, d_model), RotaryPositions(d_k)(torch.arange(5))
    close(grouped(x, rotary=rotary), plain(x, rotary=rotary))


def test_multihead_sizes_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="d_model = 10 is not divisible by n_head = 3"):
        MultiHeadAttention(10, 3)
    with pytest.raises(ValueError, match="n_head = 4 is not divisible by n_kv_head = 3"):
        MultiHeadAttention(8, 4, 3)


def test_attention_dropout_only_in_training() -> None:
    layer, x = randomize(MultiHeadAttention(8, 2, dropout=0.5)), randn(2, 6, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


# ---- positions and embeddings --------------------------------------------------------------------


def test_rotary_is_a_rotation_of_complex_numbers() -> None:
    d_k, theta = 8, 500.0
    x, positions = randn(2, 3, 6, d_k), torch.tensor([0, 1, 2, 30, 31, 1000])
    omega = torch.tensor([theta ** (-2 * i / d_k) for i in range(d_k // 2)], dtype=torch.float64)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * positions[:, None] * omega)
    expected = torch.cat([turned.real, turned.imag], -1)
    close(apply_rotary(x, *RotaryPositions(d_k, theta)(positions)), expected, 1e-3)  # angles are float32
    near = apply_rotary(x[:, :, :3], *RotaryPositions(d_k, theta)(positions[:3]))
    close(near, expected[:, :, :3], 1e-6)
    assert apply_rotary(x.float(), *RotaryPositions(d_k)(positions)).dtype == torch.float32


def test_rotary_positions_of_a_batch() -> None:
    x, module = randn(2, 3, 4, 6), RotaryPositions(6)
    rows = torch.tensor([[0, 1, 2, 3], [7, 8, 9, 10]])
    together = apply_rotary(x, *module(rows))
    for i in range(2):
        close(together[i], apply_rotary(x[i : i + 1], *module(rows[i]))[0])


def test_sinusoids_by_the_paper_s_formula() -> None:
    d_model, positions = 10, torch.tensor([0, 1, 17, 400])
    table = SinusoidalPositions(d_model)(positions).double()
    for row, p in enumerate(positions.tolist()):
        for i in range(d_model // 2):
            angle = p / 10000 ** (2 * i / d_model)
            assert table[row, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-4)
            assert table[row, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-4)


def test_odd_widths_are_refused() -> None:
    for make in (RotaryPositions, SinusoidalPositions):
        with pytest.raises(ValueError, match=r"= 7 must be even"):
            make(7)


def test_embedding_is_one_hot_times_matrix() -> None:
    table, ids = TokenEmbedding(11, 4).double(), torch.tensor([[3, 0, 3], [10, 1, 2]])
    close(table(ids), F.one_hot(ids, 11).double() @ table.weight)
    positions = LearnedPositions(11, 4)
    assert torch.equal(positions(ids[0]), positions.weight[ids[0]])
    positions.check(11)
    with pytest.raises(ValueError, match="12 tokens are longer than the context of 11"):
        positions.check(12)


# ---- feed-forward and norms ----------------------------------------------------------------------


def test_activations_equal_torch() -> None:
    x = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    close(gelu(x), F.gelu(x))
    close(gelu_tanh(x), F.gelu(x, approximate="tanh"))
    close(relu2(x), F.relu(x) ** 2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ffn", FFNS)
def test_feed_forward_by_hand(ffn: str, bias: bool) -> None:
    layer, x = randomize(FeedForward(6, 10, ffn, bias=bias)), randn(2, 3, 6)
    up = F.linear(x, layer.up.weight, layer.up.bias)
    bend = {"relu": F.relu, "gelu": F.gelu, "relu2": lambda z: F.relu(z) ** 2}
    bend["gelu_tanh"] = lambda z: F.gelu(z, approximate="tanh")
    bend["swiglu"] = lambda z: F.silu(z[..., :10]) * z[..., 10:]
    close(layer(x), F.linear(bend[ffn](up), layer.down.weight, layer.down.bias))
    assert (layer.up.bias is not None) == (layer.down.bias is not None) == bias


def test_feed_forward_sizes_and_errors() -> None:
    assert default_d_ff(768, "gelu") == 3072 and default_d_ff(12, "swiglu") == 32
    for d_model in range(1, 200):
        assert default_d_ff(d_model, "swiglu") == math.ceil(d_model * 8 / 3 / 8) * 8
    with pytest.raises(ValueError, match=r"ffn.*'swigl'.*did you mean 'swiglu'"):
        FeedForward(8, ffn="swigl")


def test_norms_equal_torch() -> None:
    x = randn(2, 5, 12) * 3 + 1
    for bias in (True, False):
        ours, theirs = (
            randomize(LayerNorm(12, 1e-3, bias)),
            nn.LayerNorm(12, 1e-3, bias=bias, dtype=torch.float64),
        )
        theirs.load_state_dict(ours.state_dict())
        close(ours(x), theirs(x))
    ours, theirs = randomize(RMSNorm(12, 1e-3)), nn.RMSNorm(12, 1e-3, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    close(ours(x), theirs(x))
    assert (
        isinstance(make_norm("layernorm", 8), LayerNorm)
        and make_norm("layernorm", 8, bias=False).bias is None
    )
    with pytest.raises(ValueError, match=r"norm.*'rmsnrom'.*did you mean 'rmsnorm'"):
        make_norm("rmsnrom", 8)


# ---- the block -----------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("ffn", ["relu", "gelu"])
def test_block_equals_torch(ffn: str, norm_position: str, causal: bool) -> None:
    """The article's box is an encoder layer; with a causal mask it is a GPT's block."""
    d_model, n_head, d_ff = 12, 3, 20
    ours = randomize(Block(d_model, n_head, d_ff=d_ff, ffn=ffn, norm_position=norm_position, norm_eps=1e-4))
    theirs = nn.TransformerEncoderLayer(
        d_model, n_head, d_ff, 0.0, ffn, 1e-4, batch_first=True, norm_first=norm_position == "pre"
    ).double()
    names = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj.": "attention.out.",
        "linear1.": "ffn.up.",
        "linear2.": "ffn.down.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    weights = ours.state_dict()
    theirs.load_state_dict({a + s: weights[b + s] for a, b in names.items() for s in ("weight", "bias")})
    x = randn(2, 6, d_model)
    future = ~causal_mask(6, 6) if causal else None
    close(ours(x, causal=causal), theirs(x, src_mask=future, is_causal=causal))


def test_block_without_bias_has_none() -> None:
    block = Block(8, 2, bias=False, norm="layernorm")
    assert not [name for name, _ in block.named_parameters() if name.endswith("bias")]


def test_block_dropout_only_in_training() -> None:
    block, x = randomize(Block(8, 2, dropout=0.3)), randn(2, 4, 8)
    assert not torch.equal(block(x), block(x))
    quiet = copy.deepcopy(block).eval()
    assert torch.equal(quiet(x), quiet(x))


def test_block_unknown_norm_position() -> None:
    with pytest.raises(ValueError, match=r"norm_position.*'per'.*did you mean 'pre'"):
        Block(8, 2, norm_position="per")


def test_qk_norm_makes_scores_independent_of_scale() -> None:
    block, x = Block(8, 2, norm="rmsnorm", bias=False, qk_norm=True).double(), randn(1, 5, 8)
    before = block.attention(x, return_weights=True)[1]
    with torch.no_grad():
        block.attention.qkv.weight[:16] *= 100  # the rows of queries and keys
    close(block.attention(x, return_weights=True)[1], before, 1e-3)
    plain = Block(8, 2, norm="rmsnorm", bias=False).double()
    before = plain.attention(x, return_weights=True)[1]
    with torch.no_grad():
        plain.attention.qkv.weight[:16] *= 100
    assert (plain.attention(x, return_weights=True)[1] - before).abs().max() > 0.1
