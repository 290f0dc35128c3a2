"""Chapters 5, 10 and 12: configurations, the whole model in float64, its files, and the optimiser."""

import copy
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gptbook.config import FFNS, POSITIONS, GPTConfig
from gptbook.embedding import LearnedPositions, RotaryPositions, SinusoidalPositions
from gptbook.model import GPT, count_params, flops_per_token, load_weights
from gptbook.optim import AdamW, clip_gradients, decay_groups, warmup_cosine

V, T = 23, 12
CONFIGS = {
    "article": GPTConfig.article(V, context_length=T, n_layer=2, n_head=2, d_model=16),
    "gpt2": GPTConfig.gpt2(vocab_size=V, context_length=T, n_layer=2, n_head=2, d_model=16),
    "llama": GPTConfig.llama(
        vocab_size=V, context_length=T, n_layer=2, n_head=4, n_kv_head=2, d_model=16, d_ff=24
    ),
    "tiny": GPTConfig.tiny(V, context_length=T),
    "sinusoidal": GPTConfig.tiny(
        V, context_length=T, position="sinusoidal", norm="layernorm", ffn="relu2", bias=True
    ),
    "qk-norm": GPTConfig.tiny(
        V, context_length=T, qk_norm=True, n_kv_head=1, tie_embeddings=False, ffn="gelu"
    ),
    "post-rms": GPTConfig.tiny(V, context_length=T, norm_position="post", position="learned"),
}
each_config = pytest.mark.parametrize("name", CONFIGS)


def build(config: GPTConfig, seed: int = 0) -> GPT:
    """A model whose every parameter is random, so that none hides behind a start at 0 or 1; in float64."""
    torch.manual_seed(seed)
    model = GPT(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.15)
    return model


def random_ids(*shape: int) -> Tensor:
    return torch.randint(0, V, shape)


def close(ours: Tensor, theirs: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def steps_of(model: GPT, ids: Tensor, cuts: list[int], **kwargs) -> Tensor:
    """The logits of all positions, computed piece by piece with a cache."""
    cache, parts = model.new_cache(len(ids), ids.shape[1]), []
    for start, end in zip([0, *cuts], [*cuts, ids.shape[1]]):
        parts.append(model(ids[:, start:end], cache=cache, **kwargs))
    return torch.cat(parts, 1)


# ---- configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dials", "words"),
    [
        ({"d_model": 100, "n_head": 3}, r"d_model = 100 is not divisible by n_head = 3"),
        ({"n_head": 4, "d_model": 64, "n_kv_head": 3}, r"n_head = 4 is not divisible by n_kv_head = 3"),
        ({"position": "roep"}, r"position.*'roep'.*learned.*did you mean 'rope'"),
        ({"norm": "layer_norm"}, r"norm.*'layer_norm'.*did you mean 'layernorm'"),
        ({"ffn": "swigl"}, r"ffn.*'swigl'.*did you mean 'swiglu'"),
        ({"norm_position": "pots"}, r"norm_position.*'pots'.*did you mean 'post'"),
        ({"n_head": 2, "d_model": 6}, r"head width.*= 3 must be even for rotary"),
        ({"n_head": 1, "d_model": 7, "position": "sinusoidal"}, r"d_model = 7 must be even for sinusoidal"),
        ({"dropout": 1.0}, r"dropout = 1.0 must be in \[0, 1\)"),
        ({"dropout": float("nan")}, r"dropout = nan"),
        *(
            ({name: bad}, rf"{name} = .* at least 1")
            for name in ("n_layer", "d_ff")
            for bad in (0, -1, 2.0, "6", True)
        ),
        *(
            ({name: 0}, rf"{name} = 0")
            for name in ("vocab_size", "context_length", "n_head", "n_kv_head", "d_model")
        ),
    ],
)
def test_config_refuses(dials: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GPTConfig(**({"vocab_size": V} | dials))


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("norm_eps", "small"),
        ("norm_eps", -1.0),
        ("rope_theta", None),
        ("rope_theta", 0.0),
        ("dropout", "much"),
        ("bias", "no"),
        ("tie_embeddings", None),
        ("qk_norm", []),
    ],
)
def test_config_refuses_what_a_foreign_file_may_hold(name: str, bad: object) -> None:
    """By name, and at once; not as a TypeError or as nan deep in the model."""
    with pytest.raises(ValueError, match=name):
        GPTConfig.from_dict({"vocab_size": V, name: bad})


def test_config_presets() -> None:
    with pytest.raises(ValueError, match=r"size.*'smal'.*small, medium, large, xl.*did you mean 'small'"):
        GPTConfig.gpt2("smal")
    article, llama = GPTConfig.article(), GPTConfig.llama(n_head=8, n_kv_head=2, d_model=64)
    assert (article.position, article.ffn) == ("none", "relu")
    assert (article.norm_position, article.norm, article.tie_embeddings) == ("post", "layernorm", False)
    assert (llama.position, llama.norm, llama.ffn, llama.bias) == ("rope", "rmsnorm", "swiglu", False)
    assert (llama.kv_heads, llama.d_k) == (2, 8)
    assert GPTConfig.tiny(99).replace(n_layer=5).n_layer == 5
    with pytest.raises(ValueError, match="d_model = 65"):
        GPTConfig.tiny(99).replace(d_model=65)


@each_config
def test_config_round_trip(name: str) -> None:
    config = CONFIGS[name]
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_config_from_dict_refuses() -> None:
    with pytest.raises(
        ValueError, match=r"'n_layers' is not one that gptbook supports.*did you mean 'n_layer'"
    ):
        GPTConfig.from_dict({"vocab_size": 5, "n_layers": 3})
    with pytest.raises(ValueError, match="'sliding_window'"):
        GPTConfig.from_dict({"vocab_size": 5, "sliding_window": 1})
    with pytest.raises(ValueError, match="vocab_size"):
        GPTConfig.from_dict({"n_layer": 3})
    with pytest.raises(ValueError, match="not list"):
        GPTConfig.from_dict([1, 2])


# ---- size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "params"),
    [("small", 124439808), ("medium", 354823168), ("large", 774030080), ("xl", 1557611200)],
)
def test_gpt2_has_the_published_number_of_parameters(size: str, params: int) -> None:
    config = GPTConfig.gpt2(size)
    with torch.device("meta"):
        assert GPT(config).num_params() == params
    assert count_params(config) == params


def test_llama_2_7b_has_the_published_number_of_parameters() -> None:
    assert count_params(GPTConfig.llama()) == 6738415616


@settings(max_examples=60)
@given(st.data())
def test_params_by_formula_are_params_counted(data: st.DataObject) -> None:
    n_head = data.draw(st.sampled_from([1, 2, 4]))
    config = GPTConfig(
        vocab_size=data.draw(st.integers(1, 50)),
        context_length=data.draw(st.integers(1, 20)),
        n_layer=data.draw(st.integers(1, 3)),
        n_head=n_head,
        n_kv_head=data.draw(st.sampled_from([None, 1, n_head])),
        d_model=n_head * data.draw(st.sampled_from([2, 4, 10])),
        d_ff=data.draw(st.sampled_from([None, 1, 17])),
        position=data.draw(st.sampled_from(POSITIONS)),
        norm=data.draw(st.sampled_from(["layernorm", "rmsnorm"])),
        ffn=data.draw(st.sampled_from(FFNS)),
        norm_position=data.draw(st.sampled_from(["pre", "post"])),
        bias=data.draw(st.booleans()),
        tie_embeddings=data.draw(st.booleans()),
        qk_norm=data.draw(st.booleans()),
    )
    with torch.device("meta"):
        model = GPT(config)
    assert model.num_params() == count_params(config)


def test_flops_by_the_counter_of_torch() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for name in ("gpt2", "llama", "tiny"):
        config, ids = CONFIGS[name], random_ids(1, T)
        model = GPT(config)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            loss = model(ids).sum()
        forward = counter.get_total_flops()
        assert forward == T * flops_per_token(config, T)
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        assert counter.get_total_flops() + forward == T * flops_per_token(config, T, training=True)


# ---- logits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
@pytest.mark.parametrize("position", POSITIONS)
@settings(max_examples=8)
@given(cuts=st.sets(st.integers(1, T - 1), max_size=4), seed=st.integers(0, 9))
def test_cached_logits_are_the_logits(position: str, n_kv_head: int, cuts: set[int], seed: int) -> None:
    model = build(GPTConfig.tiny(V, context_length=T, position=position, n_kv_head=n_kv_head), seed)
    ids = random_ids(2, T)
    close(steps_of(model, ids, sorted(cuts)), model(ids))


@each_config
def test_cached_logits_of_every_config(name: str) -> None:
    model, ids = build(CONFIGS[name]), random_ids(2, T)
    close(steps_of(model, ids, list(range(1, T))), model(ids))
    close(model(ids, last_only=True), model(ids)[:, -1:])


@each_config
def test_no_logit_depends_on_later_tokens(name: str) -> None:
    model, ids = build(CONFIGS[name]), random_ids(2, T)
    before = model(ids)
    for j in range(T):
        changed = ids.clone()
        changed[:, j] = (ids[:, j] + 1 + torch.randint(0, V - 1, (2,))) % V
        moved = (model(changed) - before).abs().amax(-1)  # (B, T)
        assert not (moved[:, :j] > 1e-13).any(), f"token {j} changed an earlier logit"
        assert (moved[:, j:] > 1e-9).all(), f"token {j} did not change a later logit"


@each_config
def test_padded_rows_are_the_rows_alone(name: str) -> None:
    model, padding = build(CONFIGS[name]), torch.tensor([0, 1, 5, T - 1])
    ids = random_ids(4, T)
    whole = model(ids, padding=padding)
    stepwise = steps_of(model, ids, [4, 5, 9], padding=padding)
    for i, n in enumerate(padding.tolist()):
        alone = model(ids[i : i + 1, n:])
        close(whole[i : i + 1, n:], alone)
        close(stepwise[i : i + 1, n:], alone)
    assert whole.isfinite().all()


@pytest.mark.parametrize("name", CONFIGS)
def test_documents_in_one_row_do_not_see_each_other(name: str) -> None:
    """A row of three documents gives each what it gives alone; their numbers need not be consecutive."""
    model, ids = build(CONFIGS[name]), random_ids(2, T)
    cuts = [0, 3, 4, T]
    documents = torch.tensor([[2] * 3 + [5] + [6] * (T - 4)] * 2)
    together = model(ids, documents=documents)
    for start, end in itertools.pairwise(cuts):
        close(together[:, start:end], model(ids[:, start:end]))
    close(model(ids, documents=torch.ones_like(ids)), model(ids))
    assert (together - model(ids)).abs().max() > 1e-3


def test_padding_is_not_read() -> None:
    model, ids, padding = build(CONFIGS["tiny"]), random_ids(2, T), torch.tensor([3, 6])
    other = ids.clone()
    for i, n in enumerate(padding.tolist()):
        other[i, :n] = random_ids(n)
    a, b = model(ids, padding=padding), model(other, padding=padding)
    for i, n in enumerate(padding.tolist()):
        assert torch.equal(a[i, n:], b[i, n:])


@pytest.mark.parametrize("position", ["rope", "sinusoidal", "learned"])
def test_only_rotary_positions_are_relative(position: str) -> None:
    """Moving the whole text along changes nothing for rotary positions, and much for those that are added."""
    kind = {"rope": RotaryPositions, "sinusoidal": SinusoidalPositions, "learned": LearnedPositions}[position]

    class Moved(kind):
        def forward(self, positions: Tensor, *args: torch.dtype):
            return super().forward(positions + 17, *args)

    model, ids = build(GPTConfig.tiny(V, context_length=40, position=position)), random_ids(2, T)
    before = model(ids)
    model.positions.__class__ = Moved
    change = (model(ids) - before).abs().max().item()
    if position == "rope":
        assert change < 1e-12
    else:
        assert change > 1e-2


def test_without_positions_order_is_seen_only_through_the_mask() -> None:
    """In one layer without positions, shuffling the earlier tokens does not change the last logit."""
    for position, same in (("none", True), ("rope", False)):
        model, ids = build(GPTConfig.tiny(V, n_layer=1, position=position)), random_ids(1, T)
        shuffled = torch.cat([ids[:, torch.randperm(T - 1)], ids[:, -1:]], 1)
        change = (model(ids, last_only=True) - model(shuffled, last_only=True)).abs().max().item()
        assert (change < 1e-12) == same


def test_rows_of_a_batch_do_not_touch() -> None:
    model, ids = build(CONFIGS["llama"]), random_ids(3, T)
    for i in range(3):
        close(model(ids[i : i + 1])[0], model(ids)[i])


def test_text_longer_than_the_context() -> None:
    model = build(CONFIGS["gpt2"])
    with pytest.raises(ValueError, match=f"{T + 1} tokens are longer than the context of {T}"):
        model(random_ids(1, T + 1))
    cache = model.new_cache(1, 2 * T)
    model(random_ids(1, T), cache=cache)
    with pytest.raises(ValueError, match=f"{T + 1} tokens are longer"):
        model(random_ids(1, 1), cache=cache)
    for name in ("llama", "sinusoidal", "article"):
        assert build(CONFIGS[name])(random_ids(1, 3 * T)).shape == (1, 3 * T, V)
    with pytest.raises(ValueError, match="room for 3 positions, 4 are needed"):
        build(CONFIGS["llama"])(random_ids(1, 4), cache=build(CONFIGS["llama"]).new_cache(1, 3))


# ---- the start -----------------------------------------------------------------------------------


def test_initial_loss_is_that_of_knowing_nothing() -> None:
    for config in (GPTConfig.gpt2(vocab_size=500, n_layer=2, n_head=4, d_model=64), GPTConfig.tiny(500)):
        torch.manual_seed(0)
        logits = GPT(config)(torch.randint(0, 500, (8, 64)))
        loss = F.cross_entropy(logits.flatten(0, 1), torch.randint(0, 500, (8 * 64,)))
        assert loss.item() == pytest.approx(math.log(500), abs=0.05)


def test_initial_scales() -> None:
    n_layer = 8
    model = GPT(GPTConfig.gpt2(vocab_size=400, context_length=64, n_layer=n_layer, n_head=4, d_model=64))
    for name, p in model.named_parameters():
        if p.ndim == 2:
            writes = name.endswith(("attention.out.weight", "ffn.down.weight"))
            expected = 0.02 / math.sqrt(2 * n_layer) if writes else 0.02
            assert p.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * p.numel())), name
            assert abs(p.mean().item()) < 5 * expected / math.sqrt(p.numel()), name
        elif name.endswith("bias"):
            assert not p.any(), name
        else:
            assert (p == 1).all(), name


@each_config
def test_tied_tables_are_one(name: str) -> None:
    model = GPT(CONFIGS[name])
    assert (model.head.weight is model.embedding.weight) == CONFIGS[name].tie_embeddings
    if CONFIGS[name].tie_embeddings:
        assert copy.deepcopy(model).head.weight.data_ptr() != model.embedding.weight.data_ptr()
        again = copy.deepcopy(model)
        assert again.head.weight is again.embedding.weight


@each_config
def test_gradient_reaches_every_parameter(name: str) -> None:
    model, ids = build(CONFIGS[name]), random_ids(4, T + 1)
    F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    for name, p in model.named_parameters():
        if name.endswith("qkv.bias"):  # a bias on the keys adds the same to all scores of a query
            assert p.grad.chunk(3)[0].any() and p.grad.chunk(3)[2].any(), name
        else:
            assert p.grad is not None and p.grad.any() and p.grad.isfinite().all(), name


def test_dropout_only_in_training() -> None:
    model, ids = GPT(GPTConfig.tiny(V, dropout=0.3)), random_ids(1, T)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_the_same_seed_gives_the_same_model() -> None:
    def make(seed: int) -> GPT:
        torch.manual_seed(seed)
        return GPT(CONFIGS["tiny"])

    a, b, c = make(1).state_dict(), make(1).state_dict(), make(2).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["embedding.weight"], c["embedding.weight"])


# ---- files ---------------------------------------------------------------------------------------


@each_config
def test_save_and_load_bit_for_bit(name: str, tmp_path) -> None:
    model = build(CONFIGS[name]).float()
    model.save_pretrained(tmp_path / "a" / "model", layout="gptbook")
    again = GPT.from_pretrained(tmp_path / "a" / "model")
    assert again.config == model.config and not again.training
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(p, state[name]) for name, p in model.state_dict().items())
    assert (again.head.weight is again.embedding.weight) == model.config.tie_embeddings
    ids = random_ids(2, T)
    assert torch.equal(model(ids), again(ids))
    assert sorted(path.name for path in (tmp_path / "a" / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    before = (tmp_path / "a" / "model" / "model.safetensors").read_bytes()
    again.save_pretrained(tmp_path / "a" / "model", layout="gptbook")
    assert (tmp_path / "a" / "model" / "model.safetensors").read_bytes() == before


def test_missing_files_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        GPT.from_pretrained(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        GPT.from_pretrained(tmp_path / "empty")
    GPT(CONFIGS["tiny"]).save_pretrained(tmp_path / "half", layout="gptbook")
    (tmp_path / "half" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"half.model\.safetensors"):
        GPT.from_pretrained(tmp_path / "half")


@pytest.mark.parametrize("config", ["tiny", "qk-norm"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: b + b"\0",
        lambda b: b"",
        lambda b: b"\xff" * 8 + b[8:],
        lambda b: b[:8] + b"x" + b[9:],
        lambda b: b[:4],
    ],
    ids=["half", "one byte less", "one byte more", "empty", "length", "header", "four bytes"],
)
def test_damaged_weights_are_refused(config: str, damage, tmp_path) -> None:
    GPT(CONFIGS[config]).save_pretrained(tmp_path, layout="gptbook")
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors.*damaged"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "\x80",
        "{}",
        '{"vocab_size": 5, "n_layers": 2}',
        '{"vocab_size": 0}',
        '{"vocab_size": 5, "d_model": 7, "n_head": 2}',
        '{"vocab_size": 5, "dropout": "much"}',
    ],
)
def test_damaged_config_is_refused_by_its_name(content: str, tmp_path) -> None:
    GPT(CONFIGS["tiny"]).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config\.json"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CONFIGS["tiny"].replace(n_layer=3), r"no tensor 'blocks\.2"),
        (CONFIGS["tiny"].replace(n_layer=1), r"tensor 'blocks\.1.*' that the model does not have"),
        (
            CONFIGS["tiny"].replace(vocab_size=V + 1),
            rf"'embedding.weight' has the shape \({V}, 64\), the model needs \({V + 1}, 64\)",
        ),
        (CONFIGS["tiny"].replace(tie_embeddings=False), r"no tensor 'head\.weight'"),
        (CONFIGS["tiny"].replace(qk_norm=True), "no tensor 'blocks.0.attention.k_norm"),
    ],
)
def test_weights_of_another_shape_are_refused(config: GPTConfig, words: str, tmp_path) -> None:
    model = GPT(CONFIGS["tiny"])
    model.save_pretrained(tmp_path, layout="gptbook")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(ValueError, match=r"model\.safetensors.*" + words):
        GPT.from_pretrained(tmp_path)


def test_loading_wrong_weights_changes_nothing(tmp_path) -> None:
    GPT(CONFIGS["tiny"].replace(n_layer=3)).save_pretrained(tmp_path, layout="gptbook")
    model = GPT(CONFIGS["tiny"])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="blocks"):
        load_weights(model, tmp_path / "model.safetensors")
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gptbook.model

    GPT(CONFIGS["tiny"]).save_pretrained(tmp_path, layout="gptbook")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(tensors: dict) -> bytes:
        raise OSError("No space left on device")

    monkeypatch.setattr(gptbook.model, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        build(CONFIGS["tiny"], 1).float().save_pretrained(tmp_path, layout="gptbook")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- the optimiser -------------------------------------------------------------------------------


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,), (2, 2, 2), (1,)]
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) * 10.0 ** (i - 1)
        p.grad = None if i == 2 and step % 3 == 0 else grad  # now and then one gets no gradient


def groups(params: list[nn.Parameter]) -> list[dict]:
    return [
        {"params": params[:2], "lr": 0.01, "weight_decay": 0.3},
        {"params": params[2:], "betas": (0.5, 0.6), "eps": 1e-3},
    ]


@pytest.mark.parametrize("grouped", [False, True])
def test_adamw_equals_torch(grouped: bool) -> None:
    ours, theirs = parameters(), parameters()
    dials = {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    a = AdamW(groups(ours) if grouped else ours, **dials)
    b = torch.optim.AdamW(groups(theirs) if grouped else theirs, **dials)
    for step in range(30):
        set_gradients(ours, step), set_gradients(theirs, step)
        for group_a, group_b in zip(a.param_groups, b.param_groups):  # a schedule
            group_a["lr"] = group_b["lr"] = 0.02 / (1 + step)
        a.step(), b.step()
        for p, q in zip(ours, theirs):
            close(p, q, 1e-14)


def test_adamw_state_dict_round_trip(tmp_path) -> None:
    params = parameters()
    optimizer = AdamW(groups(params))
    for step in range(5):
        set_gradients(params, step)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    twins = copy.deepcopy(params)
    again = AdamW(groups(twins), lr=7.0)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in optimizer.param_groups]
    for step in range(5, 12):
        set_gradients(params, step), set_gradients(twins, step)
        optimizer.step(), again.step()
        assert all(torch.equal(p, q) for p, q in zip(params, twins))
    fresh, copies = AdamW(groups(copy.deepcopy(params))), copy.deepcopy(params)
    assert len(fresh.state) == 0 and len(AdamW(copies).state) == 0


def test_adamw_first_step_is_lr_in_every_coordinate() -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    set_gradients(params, 1)
    AdamW(params, lr=0.01, weight_decay=0.0).step()
    for p, q in zip(params, before):
        close(p.detach() - q, -0.01 * p.grad.sign(), 1e-6)


def test_adamw_decay_is_apart_from_the_gradient() -> None:
    (p,) = parameters()[:1]
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    AdamW([p], lr=0.1, weight_decay=0.5).step()
    close(p.detach(), before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(
    ("dials", "words"),
    [
        ({"lr": -1.0}, "lr = -1"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": (-0.1, 0.9)}, "betas"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_adamw_refuses(dials: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AdamW(parameters(), **dials)


def test_decay_groups() -> None:
    for config in CONFIGS.values():
        model = GPT(config)
        decay, rest = decay_groups(model, 0.1)
        assert decay["weight_decay"] == 0.1 and rest["weight_decay"] == 0
        assert all(p.ndim >= 2 for p in decay["params"]) and all(p.ndim == 1 for p in rest["params"])
        found = [*decay["params"], *rest["params"]]
        assert len(found) == len(set(found)) == len(list(model.parameters()))
    model.embedding.weight.requires_grad_(False)
    assert not any(p is model.embedding.weight for group in decay_groups(model, 0.1) for p in group["params"])


def test_warmup_cosine() -> None:
    steps, warmup, ratio = 100, 10, 0.1
    rates = [warmup_cosine(step, steps, warmup, ratio) for step in range(steps)]
    assert rates[0] == pytest.approx(1 / warmup) and rates[warmup - 1] == 1
    assert rates[-1] == pytest.approx(ratio)
    assert rates[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert all(a > b for a, b in zip(rates[warmup - 1 :], rates[warmup:]))
    assert rates[54] == pytest.approx((1 + ratio) / 2)  # halfway: 45 of 90 steps after the warm-up
    assert warmup_cosine(5000, steps, warmup, ratio) == pytest.approx(ratio)
    assert warmup_cosine(0, steps, 0, ratio) < 1 and warmup_cosine(99, steps, 0, ratio) == pytest.approx(
        ratio
    )
    for steps, warmup in ((1, 0), (1, 1), (5, 5), (3, 10)):  # short runs
        assert all(0 < warmup_cosine(step, steps, warmup, ratio) <= 1 for step in range(steps))


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e6])
def test_clip_gradients_equals_torch(max_norm: float) -> None:
    ours, theirs = parameters(), parameters()
    for step in (0, 1):  # once with a parameter that has no gradient
        set_gradients(ours, step), set_gradients(theirs, step)
        norm = clip_gradients(iter(ours), max_norm)
        close(norm, nn.utils.clip_grad_norm_(theirs, max_norm))
        for p, q in zip(ours, theirs):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                close(p.grad, q.grad)
        after = torch.stack([p.grad.norm() for p in ours if p.grad is not None]).norm()
        assert after <= max_norm * (1 + 1e-9)


def test_clip_gradients_of_nothing() -> None:
    params = parameters()
    assert clip_gradients(params, 1.0).item() == 0 == nn.utils.clip_grad_norm_(params, 1.0).item()


def test_a_model_learns() -> None:
    """The whole chain: the tiny GPT learns a text of twelve tokens by heart in a few steps."""
    model, ids = GPT(CONFIGS["tiny"]), random_ids(1, T + 1)
    optimizer = AdamW(decay_groups(model, 0.1), lr=3e-3)
    for _ in range(80):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
    assert loss.item() < 0.1
    assert torch.equal(model(ids[:, :-1]).argmax(-1), ids[:, 1:])
