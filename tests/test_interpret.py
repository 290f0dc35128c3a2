"""Hooks, lenses, heads, probes and patches: they read what the model computed, and leave nothing behind."""

import pytest
import torch
from torch import Tensor

from gptbook import microworld
from gptbook.config import GPTConfig
from gptbook.interpret import (
    PARTS,
    Site,
    attention_weights,
    fit_probe,
    head_scores,
    intervene,
    logit_lens,
    mean_heads,
    neuron_contexts,
    neuron_promotes,
    patch,
    record,
    silence_heads,
)
from gptbook.model import GPT
from gptbook.training import book_model

SHAPES = {
    "gpt2": {"position": "learned", "norm": "layernorm", "ffn": "gelu", "bias": True, "tie_embeddings": True},
    "llama": {"position": "rope", "norm": "rmsnorm", "ffn": "swiglu", "bias": False, "n_kv_head": 2},
}


@pytest.fixture(params=SHAPES, scope="module")
def model(request: pytest.FixtureRequest) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig.tiny(vocab_size=50, context_length=24, **SHAPES[request.param])).eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_every_site_can_be_read_and_changed(model: GPT, ids: Tensor) -> None:
    before = model(ids)
    sites = [Site(0), *(Site(layer, part) for layer in (1, 2) for part in PARTS)]
    found = record(model, ids, sites)
    assert list(found) == sites or set(found) == set(sites)
    for site in sites:
        with intervene(model, {site: lambda x: x}):
            assert torch.equal(model(ids), before)
        with intervene(model, {site: lambda x: x + 1 + torch.arange(x.shape[-1])}):
            assert not torch.allclose(model(ids), before, atol=1e-3), site
        assert torch.equal(model(ids), before)


@torch.no_grad()
def test_the_stream_is_the_sum_of_what_was_written(model: GPT, ids: Tensor) -> None:
    sites = [Site(0), Site(2), *(Site(layer, part) for layer in (1, 2) for part in ("attention", "ffn"))]
    found = record(model, ids, sites)
    written = sum(found[site] for site in sites[2:])
    torch.testing.assert_close(found[Site(0)] + written, found[Site(2)], atol=1e-5, rtol=1e-4)


def test_hooks_go_also_after_an_error(model: GPT, ids: Tensor) -> None:
    before = model(ids)
    with pytest.raises(RuntimeError), intervene(model, {Site(1, "ffn"): lambda x: 0 * x}):
        raise RuntimeError
    assert torch.equal(model(ids), before)
    with (
        pytest.raises(ValueError, match="layer 3"),
        intervene(model, {Site(1): lambda x: 0 * x, Site(3): lambda x: x}),
    ):
        pass
    assert torch.equal(model(ids), before)
    with pytest.raises(ValueError, match="layer 0 of ffn"), intervene(model, {Site(0, "ffn"): lambda x: x}):
        pass
    with pytest.raises(ValueError, match="part"), intervene(model, {Site(1, "brain"): lambda x: x}):
        pass


def test_the_last_lens_is_the_model(model: GPT, ids: Tensor) -> None:
    lens = logit_lens(model, ids)
    assert lens.shape == (3, 3, 12, 50)
    torch.testing.assert_close(lens[-1], model(ids))
    assert not torch.allclose(lens[0], lens[-1], atol=1e-3)
    with pytest.raises(ValueError, match="pre-norm"):
        logit_lens(GPT(GPTConfig.article(50, n_layer=1, n_head=1, d_model=8, context_length=8)), ids)


def test_attention_weights_are_those_of_the_layers(model: GPT, ids: Tensor) -> None:
    weights = attention_weights(model, ids)
    assert weights.shape == (2, 3, 4, 12, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 4, 12))
    assert (weights.triu(1) == 0).all()
    assert torch.equal(model(ids), model(ids))


def test_head_scores_by_hand() -> None:
    model = GPT(GPTConfig.tiny(vocab_size=50, context_length=24)).eval()
    with torch.no_grad():  # equal scores: each position looks at all before it alike
        for block in model.blocks:
            block.attention.qkv.weight.zero_()
    previous, induction = head_scores(model, period=8)
    want = (1 / torch.arange(9.0, 17)).mean()
    torch.testing.assert_close(previous, want.expand(2, 4))
    torch.testing.assert_close(induction, want.expand(2, 4))
    with pytest.raises(ValueError, match="period = 13"):
        head_scores(model, period=13)


@torch.no_grad()
def test_a_silent_head_writes_nothing(model: GPT, ids: Tensor) -> None:
    d_k = model.config.d_k
    with silence_heads(model, [(1, 2)]):
        silent = model(ids)
    weight = model.blocks[0].attention.out.weight
    kept = weight.clone()
    weight[:, 2 * d_k : 3 * d_k] = 0
    torch.testing.assert_close(silent, model(ids))
    weight.copy_(kept)
    one = ids[:1, :1]  # the mean over one position is that position: nothing changes
    with silence_heads(model, [(1, 0), (2, 3)], mean_heads(model, one)):
        with_means = model(one)
    torch.testing.assert_close(with_means, model(one))
    with pytest.raises(ValueError, match="head 4"), silence_heads(model, [(1, 4)]):
        pass


@torch.no_grad()
def test_patching_all_or_nothing(model: GPT, ids: Tensor) -> None:
    other = ids.flip(0).roll(1, 1)
    columns = torch.arange(12).expand(3, -1)
    for site in (Site(0), Site(1), Site(2)):
        there = record(model, other, [site])[site]
        torch.testing.assert_close(patch(model, ids, site, columns, there), model(other))
        assert torch.equal(patch(model, ids, site, columns[:, :0], there[:, :0]), model(ids))
    early = record(model, other, [Site(1)])[Site(1)]
    late = patch(model, ids, Site(1), columns[:, 6:], early[:, 6:])
    torch.testing.assert_close(late[:, :6], model(ids)[:, :6])  # the past does not change


def test_probe() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator)
    y = (x[:, 1] > 0).long() + 2 * (x[:, 3] * 100 > 0).long()
    probe = fit_probe(x[:200] * torch.tensor([1, 1, 1, 100.0, 1]), y[:200], 4)
    assert probe.accuracy(x[200:] * torch.tensor([1, 1, 1, 100.0, 1]), y[200:]) > 0.85
    assert probe.accuracy(torch.randn(400, 5, generator=generator), torch.randint(4, (400,))) < 0.45
    with pytest.raises(ValueError, match="must be"):
        fit_probe(x, y[:3], 4)


def test_neurons(model: GPT, ids: Tensor) -> None:
    width = model.config.ffn_width
    contexts = neuron_contexts(model, ids, Site(1, "neurons"), 5)
    assert contexts.shape == (width, 5) and contexts.max() < ids.numel()
    active = record(model, ids, [Site(1, "neurons")])[Site(1, "neurons")].flatten(0, 1)
    assert torch.equal(active[:, 7].argmax(), contexts[7, 0])
    valid = torch.arange(12).expand(3, -1) < 6
    contexts = neuron_contexts(model, ids, Site(1, "neurons"), 18, valid)
    assert (contexts % 12 < 6).all()
    assert neuron_promotes(model, 2).shape == (width, 5)


@torch.no_grad()
def test_what_a_neuron_promotes_goes_through_the_final_norm(ids: Tensor) -> None:
    for shape in SHAPES.values():
        torch.manual_seed(0)
        model = GPT(GPTConfig.tiny(vocab_size=50, context_length=24, **shape)).eval()
        model.norm.weight.uniform_(-2, 2)
        # a push so long that nothing else counts: the logits are in the order of what is promoted
        push = 1e6 * model.blocks[-1].ffn.down.weight[:, 3]
        with intervene(model, {Site(2): lambda x, push=push: x + push}):
            logits = model(ids)[0, 0]
        assert logits.topk(5).indices.tolist() == neuron_promotes(model, 2)[3].tolist()


def test_the_story_model_looks_places_up_by_name() -> None:
    """Its answers are right. Another place in the stream is another answer, and so are exchanged names,
    or, after block 1, what then stands at the words of the places: the same words in both texts."""
    model, tokenizer = book_model("story")
    names = list(microworld.PLACES)
    places = torch.tensor([tokenizer.encode(f" {place}")[0] for place in names])
    told = "Anna is in the {}. The {} is in the {}. There is a {} in the {}.\nWhere is the key? In the"

    def said(logits: torch.Tensor) -> str:
        return names[logits[0, -1, places].argmax()]

    right = moved = by_name = bound = 0
    with torch.no_grad():
        for n, place in enumerate(names):
            stands, other, new = names[n - 2], names[n - 3], names[n - 1]
            here, there, swapped = (
                torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(told.format(stands, *rest))]])
                for rest in (
                    ("key", place, "cup", other),
                    ("key", new, "cup", other),
                    ("cup", place, "key", other),
                )
            )
            word = (here != there).nonzero()[:, 1:]
            elsewhere = (here == places[names.index(other)]).nonzero()[-1:, 1:]
            words, site = torch.cat([word, elsewhere], dim=1), Site(1)
            right += said(model(here)) == place
            moved += (
                said(patch(model, here, site, word, record(model, there, [site])[site][:, word[0]])) == new
            )
            by_name += said(model(swapped)) == other
            values = record(model, swapped, [site])[site][:, words[0]]
            bound += said(patch(model, here, site, words, values)) == other
    assert (right, moved, by_name, bound) == (6, 6, 6, 6)
