"""Fine-tuning: the data, the frame, the loss, low-rank updates, a run, and a conversation."""

import dataclasses
import inspect
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gptbook.cli import finetune_command
from gptbook.config import FinetuneConfig, GPTConfig, TrainConfig
from gptbook.evaluate import evaluate_run
from gptbook.finetune import (
    CHAT_TOKENS,
    BadLine,
    Chat,
    ChatTemplate,
    Classifier,
    LoRALinear,
    add_lora,
    answer_loss,
    chat_loop,
    contrastive_loss,
    embed,
    finetune,
    fit_answers,
    grow_vocabulary,
    mean_answer_loss,
    merge_lora,
    pack,
    parse_example,
    read_examples,
)
from gptbook.model import GPT
from gptbook.sample import generate_text
from gptbook.tokenizer import BPETokenizer, CharTokenizer, WordTokenizer, load_tokenizer
from gptbook.training import load_run, read_run, train

WORDS = "the cat sat on the mat and the dog ran to the cat. "
TOKENIZER = BPETokenizer.train(WORDS * 20, 300).with_special_tokens(CHAT_TOKENS)


def tiny(vocab_size: int = TOKENIZER.vocab_size, **changes) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig.tiny(vocab_size, **({"context_length": 48} | changes))).eval()


def talk(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


# ---- tokenizers with more special tokens ---------------------------------------------------------


@pytest.mark.parametrize(
    "tokenizer", [CharTokenizer.train(WORDS), WordTokenizer.train(WORDS), BPETokenizer.train(WORDS, 280)]
)
def test_special_tokens_are_added_behind_all_others(tokenizer, tmp_path: Path) -> None:
    more = tokenizer.with_special_tokens(CHAT_TOKENS)
    assert more.vocab_size == tokenizer.vocab_size + 4 and more.encode(WORDS) == tokenizer.encode(WORDS)
    assert [more.special_tokens[name] for name in CHAT_TOKENS] == [tokenizer.vocab_size + i for i in range(4)]
    assert more.end_of_text == tokenizer.end_of_text
    assert more.with_special_tokens(CHAT_TOKENS).vocab_size == more.vocab_size
    more.save(tmp_path / "t.json")
    again = load_tokenizer(tmp_path / "t.json")
    assert again.special_tokens == more.special_tokens and again.encode(WORDS) == more.encode(WORDS)


# ---- the data ------------------------------------------------------------------------------------


def test_examples_of_both_forms() -> None:
    pair = parse_example('{"prompt": "a", "completion": "b"}')
    assert pair == talk("a", "b")
    assert parse_example(json.dumps({"messages": talk("a", "b", "c", "d")})) == talk("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "not valid JSON"),
        ("[1]", "a JSON object is needed, not list"),
        ('{"prompt": "a"}', "there is: prompt"),
        ('{"prompt": "a", "completion": "b", "x": 1}', "there is: completion, prompt, x"),
        ('{"prompt": "a", "completion": 3}', "must be texts"),
        ('{"prompt": "a", "completion": " "}', "an answer is empty"),
        ('{"prompt": "\\ud800", "completion": "b"}', "surrogate"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": [{"role": "user"}]}', "exactly the fields role and content"),
        ('{"messages": [{"role": "robot", "content": ""}]}', "choose from system, user, assistant"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "must be the user's"),
        (json.dumps({"messages": [*talk("a", "b"), *talk("c", "d")[1:]]}), "message 3 breaks that"),
        (json.dumps({"messages": talk("a", "b", "c")}), "the last message must be the assistant's"),
        (json.dumps({"messages": talk("a", "b"), "x": 1}), "unknown field 'x'"),
    ],
)
def test_a_bad_line_says_what_is_wrong(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        parse_example(line)


def test_bad_lines_have_their_numbers(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('\n{"prompt": "a", "completion": "b"}\n\nwrong\n{"prompt": "a"}\n', encoding="utf-8")
    good, bad = read_examples(file)
    assert list(good) == [2] and [b.number for b in bad] == [4, 5] and isinstance(bad[0], BadLine)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_examples(tmp_path / "nowhere.jsonl")
    for content, saying in (
        (b"\xff\xfe\x00", "not UTF-8: line 1 holds the byte 0xff, after 0 bytes"),
        (b"\xef\xbb\xbf{}\r\n{}\n\xc3\xa9 caf\xe9\n", "not UTF-8: line 3 holds the byte 0xe9, after 6 bytes"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=saying):
            read_examples(file)
    with pytest.raises(ValueError, match="is a folder; a file of JSON lines"):
        read_examples(tmp_path)


# ---- the frame -----------------------------------------------------------------------------------


def test_template_learns_the_answers_and_their_ends() -> None:
    template = ChatTemplate(TOKENIZER)
    messages = [{"role": "system", "content": "be brief"}, *talk("the cat", "sat", "the dog", "ran")]
    ids, mask = template.example(messages)
    text = TOKENIZER.decode(ids)
    assert text == (
        "<|endoftext|><|system|>be brief<|end|><|user|>the cat<|end|><|assistant|>sat<|end|>"
        "<|user|>the dog<|end|><|assistant|>ran<|end|>"
    )
    assert TOKENIZER.decode([i for i, m in zip(ids, mask) if m]) == "sat<|end|>ran<|end|>"
    assert ids[: len(template(messages[:2]))] == template(messages[:2])  # as in training, so in conversation


def test_template_takes_names_of_special_tokens_as_text() -> None:
    template = ChatTemplate(TOKENIZER)
    ids = template(talk("<|end|><|assistant|>yes"))
    assert ids.count(template.end) == 1 and TOKENIZER.decode(ids).count("<|end|>") == 2


def test_template_needs_the_tokens() -> None:
    with pytest.raises(ValueError, match=r"no <\|system\|>.*gptbook finetune"):
        ChatTemplate(BPETokenizer.train(WORDS, 280))


# ---- packing and the loss ------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 11), min_size=1, max_size=30))
def test_packing_loses_nothing_and_fills_rows(lengths: list[int]) -> None:
    examples = [([100 + i] * n, [j % 2 == 1 for j in range(n)]) for i, n in enumerate(lengths)]
    packed = pack(examples, 10, padding=7)
    found = []
    for row, learned, documents in zip(
        packed.ids.tolist(), packed.learned.tolist(), packed.documents.tolist()
    ):
        assert len(row) == 11 and documents == sorted(documents)
        for number in sorted(set(documents)):
            part = [i for i in range(11) if documents[i] == number]
            tokens = [row[i] for i in part]
            if tokens[0] != 7:
                found.append((tokens, [learned[i] for i in part]))
            else:
                assert not any(learned[i] for i in part)
    assert sorted(found) == sorted(examples)
    assert len(packed) <= 2 * math.ceil(sum(lengths) / 11) + 1


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="12 tokens, a row holds 11"):
        pack([([1] * 12, [True] * 12)], 10)
    with pytest.raises(ValueError, match="no examples"):
        pack([], 10)


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal", "none"])
def test_packed_loss_is_that_of_the_examples_alone(position: str) -> None:
    model, template = tiny(position=position).double(), ChatTemplate(TOKENIZER)
    examples = [
        template.example(talk(a, b)) for a, b in (("the cat", "sat"), ("on", "the mat"), ("dog", "ran to"))
    ]
    packed = pack(examples, 47, TOKENIZER.end_of_text)
    assert len(packed) < len(examples)
    total = count = 0
    for ids, mask in examples:
        logits = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        wanted = [-logits[t, ids[t + 1]] for t in range(len(ids) - 1) if mask[t + 1]]
        total, count = total + sum(wanted), count + len(wanted)
    loss, n = answer_loss(model, packed)
    assert n == count and torch.allclose(loss, total / count, atol=1e-10)
    assert mean_answer_loss(model, packed, batch_size=1) == pytest.approx((total / count).item(), abs=1e-10)


# ---- low-rank updates ----------------------------------------------------------------------------


def test_lora_begins_as_the_model_and_merges_exactly() -> None:
    model = tiny().double()
    ids = torch.randint(0, 250, (2, 20), generator=torch.Generator().manual_seed(1))
    before = model(ids)
    learning = add_lora(model, rank=3)
    assert torch.equal(model(ids), before)
    assert sum(p.numel() for p in learning) == 2 * 3 * (64 + 192 + 64 + 64 + 64 + 2 * 176 + 176 + 64)
    generator = torch.Generator().manual_seed(2)
    for p in learning:
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    changed = model(ids)
    assert not torch.allclose(changed, before, atol=1e-3)
    merge_lora(model)
    assert torch.allclose(model(ids), changed, atol=1e-12)
    assert list(model.state_dict()) == list(tiny().state_dict()) and all(
        p.requires_grad for p in model.parameters()
    )


def test_what_lora_held_learns_again_when_it_is_merged() -> None:
    model = tiny()
    add_lora(model, 2, new_tokens=4)
    model(torch.arange(20)[None]).logsumexp(-1).sum().backward()
    assert model.embedding.weight.grad[:-4].eq(0).all() and model.embedding.weight.grad[-4:].ne(0).any()
    merge_lora(model).zero_grad()
    model(torch.arange(20)[None]).logsumexp(-1).sum().backward()
    assert model.embedding.weight.grad[:-4].ne(0).any()


def test_lora_leaves_everything_else_alone() -> None:
    model = tiny()
    before = {name: p.clone() for name, p in model.named_parameters()}
    add_lora(model, rank=2, targets=("attention.qkv",), new_tokens=4)
    template = ChatTemplate(TOKENIZER)
    fit_answers(model, pack([template.example(talk("the", "cat"))], 47), 3, lr=1e-2, weight_decay=0.0)
    merge_lora(model)
    after = dict(model.named_parameters())
    for name, p in before.items():
        if "attention.qkv" in name:
            assert not torch.equal(after[name], p)
        elif name == "embedding.weight":
            assert torch.equal(after[name][:-4], p[:-4]) and not torch.equal(after[name][-4:], p[-4:])
        else:
            assert torch.equal(after[name], p), name


def test_lora_of_full_rank_reaches_every_matrix() -> None:
    linear = torch.nn.Linear(6, 4, bias=False).double()
    wanted = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = LoRALinear(linear, rank=4, alpha=8.0)
    u, s, vt = torch.linalg.svd((wanted - linear.weight) / layer.scale, full_matrices=False)
    layer.B.data, layer.A.data = u * s, vt
    assert torch.allclose(layer.merged().weight, wanted, atol=1e-12)
    with pytest.raises(ValueError, match="rank = 5 must be from 1 to 4"):
        LoRALinear(linear, rank=5)


# ---- growing, classifying, searching -------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_growing_keeps_what_was_there(tied: bool) -> None:
    model = tiny(100, tie_embeddings=tied)
    grown = grow_vocabulary(model, 104)
    ids = torch.arange(20)[None]
    assert torch.allclose(grown(ids)[..., :100], model(ids), atol=1e-6)
    old, new = model(ids).log_softmax(-1), grown(ids).log_softmax(-1)[..., :100]
    assert (old - new).max() < 2 * math.log(1.04)  # the new tokens take about their share of the mass
    assert len({tuple(row) for row in grown.embedding.weight[100:].tolist()}) == 4
    with pytest.raises(ValueError, match="at least the model's 100"):
        grow_vocabulary(model, 99)


def test_classifier_does_not_see_its_padding() -> None:
    classifier = Classifier(tiny().double(), 3).double()
    alone, together = classifier([[5, 6, 7]]), classifier([[5, 6, 7], list(range(20))])
    assert torch.allclose(alone[0], together[0], atol=1e-10)
    texts, labels = [[5, 6, 7], [8, 9]], torch.tensor([0, 2])
    plain, mixed = (classifier.loss(texts, labels, weight) for weight in (0.0, 0.5))
    lm = [
        F.cross_entropy(classifier.model(torch.tensor([t[:-1]]))[0], torch.tensor(t[1:]), reduction="sum")
        for t in texts
    ]
    assert torch.allclose(plain, F.cross_entropy(classifier(texts), labels))
    assert torch.allclose(mixed, plain + 0.5 * sum(lm) / 3)


def test_embeddings_are_unit_vectors_whatever_the_batch() -> None:
    model = tiny().double()
    alone, together = embed(model, TOKENIZER, ["the cat"]), embed(model, TOKENIZER, ["the cat", WORDS])
    assert torch.allclose(alone[0], together[0], atol=1e-10)
    assert torch.allclose(together.norm(dim=-1), torch.ones(2, dtype=torch.float64))
    same = torch.eye(4, dtype=torch.float64)
    assert contrastive_loss(same, same) < 1e-6 < contrastive_loss(same, same.roll(1, 0))


# ---- a conversation ------------------------------------------------------------------------------


class Parrot:
    """Stands in for a template: keeps what it was given."""

    stop_tokens = (TOKENIZER.special_tokens["<|end|>"],)

    def __init__(self) -> None:
        self.seen: list[list[dict[str, str]]] = []
        self.inner = ChatTemplate(TOKENIZER)

    def __call__(self, messages) -> list[int]:
        self.seen.append(list(messages))
        return self.inner(messages)


def test_chat_keeps_the_history_and_resets() -> None:
    chat = Chat(tiny(), TOKENIZER, Parrot(), system="be brief", max_new_tokens=3, temperature=0)
    pieces = list(chat.reply("the cat"))
    assert [m["role"] for m in chat.messages] == ["user", "assistant"]
    assert chat.messages[1]["content"] == "".join(pieces) and chat.notice is None
    chat.reset()
    assert chat.messages == [] and chat.ask("the cat") == "".join(pieces)  # greedy: the same again
    assert [m["role"] for m in chat.template.seen[-1]] == ["system", "user"]


def test_a_reply_that_nobody_reads_is_a_turn_all_the_same() -> None:
    chat = Chat(tiny(), TOKENIZER, Parrot(), max_new_tokens=3, temperature=0)
    chat.reply("the cat")
    chat.ask("the dog")
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2


def test_chat_cuts_the_oldest_and_says_so() -> None:
    chat = Chat(tiny(), TOKENIZER, Parrot(), system="s", max_new_tokens=4, temperature=0)
    notices = []
    for i in range(8):
        chat.ask(f"the cat sat on {i}")
        notices.append(chat.notice)
        last = chat.template.seen[-1]
        assert len(chat.template.inner(last)) + 4 <= 48
        assert [m["role"] for m in last] == [
            "system",
            *["user", "assistant"] * ((len(last) - 2) // 2),
            "user",
        ]
    assert notices[0] is None and "2 oldest messages" in notices[-1]


def test_chat_refuses_a_message_that_cannot_fit_and_keeps_the_rest() -> None:
    chat = Chat(tiny(), TOKENIZER, ChatTemplate(TOKENIZER), max_new_tokens=4, temperature=0)
    chat.ask("the cat")
    before = list(chat.messages)
    with pytest.raises(ValueError, match="too long"):
        chat.reply(WORDS * 10)
    assert chat.messages == before


@pytest.mark.parametrize(
    "setting",
    [{"temperature": -1}, {"top_p": 2}, {"top_k": 0}, {"min_p": -1}, {"max_new_tokens": 0}, {"seed": 2**70}],
)
def test_chat_refuses_settings_at_once(setting: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Chat(tiny(), TOKENIZER, ChatTemplate(TOKENIZER), **setting)


def test_a_long_system_text_is_not_the_users_fault() -> None:
    """It fails before the first message; one that just fits is named beside the message."""
    frame = ChatTemplate(TOKENIZER)
    with pytest.raises(ValueError, match=r"the system's text is too long: with its frame \d+ tokens"):
        Chat(tiny(), TOKENIZER, frame, system=WORDS * 10)
    length = next(
        n for n in range(1, 48) if len(frame([{"role": "system", "content": " cat" * n}, *talk("")])) == 43
    )
    chat = Chat(tiny(), TOKENIZER, frame, system=" cat" * length, max_new_tokens=4, temperature=0)
    chat.ask("a")
    with pytest.raises(ValueError, match="with its frame and the system text"):
        chat.ask("the cat")


def test_chat_never_shows_special_tokens() -> None:
    model = tiny()
    bias = {TOKENIZER.special_tokens["<|user|>"]: 1e9}
    chat = Chat(model, TOKENIZER, ChatTemplate(TOKENIZER), max_new_tokens=5, temperature=0, logit_bias=bias)
    assert chat.ask("the cat") == ""


def test_chat_loop_obeys_its_commands() -> None:
    chat = Chat(tiny(), TOKENIZER, ChatTemplate(TOKENIZER), max_new_tokens=2, temperature=0)
    written, notes = [], []
    lines = [
        "the cat\n",
        "\n",
        "/reset\n",
        "/help\n",
        WORDS * 10 + "\n",
        "caf\udce9\n",
        "the dog\n",
        "/quit\n",
        "never\n",
    ]
    chat_loop(chat, lines, written.append, notes.append, "> ")
    assert [m["content"] for m in chat.messages if m["role"] == "user"] == ["the dog"]
    assert len(notes) == 4 and "anew" in notes[0] and "/quit" in notes[1] and "too long" in notes[2]
    assert "not valid UTF-8" in notes[3]
    assert written.count("> ") == 8


# ---- a run ---------------------------------------------------------------------------------------

ANSWERS = {"the cat": " sat", "the dog": " ran", "the mat": " and"}  # words that the base has read


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    (folder / "text.txt").write_text("".join(f"{i}. {WORDS}" for i in range(200)), encoding="utf-8")
    config = TrainConfig(
        corpus=str(folder / "text.txt"), out=str(folder / "base"), steps=60, preset="tiny", vocab_size=300,
        context_length=48, batch_size=4, eval_every=50, threads=1, precision="fp32", warmup=10,
    )  # fmt: skip
    train(config, progress=False, log=lambda _: None)
    lines = [{"prompt": q, "completion": a} for q, a in ANSWERS.items()] * 20
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def config(base: Path, out: str = "tuned", **changes) -> FinetuneConfig:
    usual = {
        "run": str(base / "base"),
        "data": str(base / "data.jsonl"),
        "out": str(base / out),
        "precision": "fp32",
        "threads": 1,
    }
    usual |= {"batch_size": 4, "lr": 3e-3} | ({} if "steps" in changes else {"epochs": 15})
    return FinetuneConfig(**(usual | changes))


def quiet(settings: FinetuneConfig, **more) -> list[str]:
    lines: list[str] = []
    finetune(settings, progress=False, log=lines.append, **more)
    return lines


@pytest.mark.parametrize("lora", [False, True])
def test_a_fine_tuned_run_answers_and_is_a_run(base: Path, lora: bool) -> None:
    out = f"tuned-{lora}"
    lines = quiet(config(base, out, lora=lora, lr=1e-2 if lora else 3e-3, epochs=30 if lora else 15))
    model, tokenizer = load_run(base / out)
    chat = Chat(model, tokenizer, ChatTemplate(tokenizer), max_new_tokens=8, temperature=0)
    for question, answer in ANSWERS.items():
        chat.reset()
        assert chat.ask(question) == answer
    assert any("before" in line and "after" in line for line in lines)
    assert 0 < evaluate_run(base / out).loss < 20
    assert generate_text(model, tokenizer, "the cat", 3, temperature=0).startswith("the cat")
    info = json.loads((base / out / "run.json").read_text())
    assert info["finetune"]["settings"]["lora"] is lora and info["finetune"]["base_loss"]["after"] > 0
    assert load_run(base / out, "last")[0].config == model.config
    assert read_run(base / out).shape == read_run(base / "base").shape
    sizes = json.loads((base / out / "data" / "corpus.json").read_text())["bytes"]
    assert sum(sizes.values()) == sum(len(q + a) for q, a in ANSWERS.items()) * 20  # no marks of turns
    assert not [p.name for p in base.iterdir() if p.name.startswith(".")]  # no lock, no half-made folder


def test_a_small_file_is_learned_without_asking(base: Path) -> None:
    """Three times through a few examples would be three steps."""
    lines = quiet(config(base, "few", epochs=None))
    assert any("steps: 100" in line for line in lines)
    assert any("steps: 2" in line for line in quiet(config(base, "fewer", epochs=2, batch_size=1000)))


def test_lora_says_how_little_learns(base: Path) -> None:
    lines = quiet(config(base, "little", lora=True, rank=2, steps=2))
    (line,) = [line for line in lines if "learn (rank 2)" in line]
    assert f"{2 * 2 * 2 * (64 + 192) + 2 * 2 * (64 + 64) * 0:,}" not in line  # not only attention
    per_block = 2 * (64 + 192 + 64 + 64 + 64 + 2 * 176 + 176 + 64)
    assert f"{2 * per_block + 4 * 64:,} learn" in line


def test_bad_lines_are_an_error_or_named(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    long = json.dumps({"prompt": WORDS * 30, "completion": "b"})
    data.write_text((base / "data.jsonl").read_text() + "wrong\n" + long + "\n", encoding="utf-8")
    with pytest.raises(
        ValueError,
        match=r"2 lines that cannot be used: line 61: not valid JSON.*line 62: \d+ tokens.*--skip-bad",
    ):
        quiet(config(base, "bad", data=str(data)))
    assert not (base / "bad").exists()
    lines = quiet(config(base, "bad", data=str(data), skip_bad=True, steps=2))
    assert [line[:18] for line in lines[:2]] == ["left out: line 61:", "left out: line 62:"]
    left_out = json.loads((base / "bad" / "run.json").read_text())["finetune"]["left_out"]
    assert [number for number, _ in left_out] == [61, 62]


def test_a_single_bad_line_is_one_line(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text((base / "data.jsonl").read_text() + "wrong\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"1 line that cannot be used: .*\(--skip-bad leaves it out\)"):
        quiet(config(base, "single", data=str(data)))
    lines = quiet(config(base, "single", data=str(data), skip_bad=True, steps=1))
    assert any(line.endswith("1 line left out") for line in lines)


def test_a_rank_above_full_rank_is_refused(base: Path) -> None:
    with pytest.raises(ValueError, match="rank = 65 is above full rank, which is 64"):
        quiet(config(base, "full", lora=True, rank=65, steps=1))
    quiet(config(base, "full", lora=True, rank=64, steps=1))


def test_a_loss_that_is_not_measured_is_named(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base / "base", tmp_path / "base"))
    shutil.rmtree(folder / "data")
    lines = quiet(config(base, "unmeasured", run=str(folder), steps=1))
    (line,) = [line for line in lines if "base run's held-out text" in line]
    assert line.endswith(f"not measured, as {folder / 'data'} no longer holds that text")


def test_a_checkpoint_that_never_was(base: Path) -> None:
    quiet(config(base, "once", steps=1))
    with pytest.raises(FileNotFoundError, match="no previous checkpoint; there is none before the last one"):
        load_run(base / "once", "previous")


def test_out_is_guarded(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other than the base run"):
        quiet(config(base, "base"))
    with pytest.raises(ValueError, match="outside it"):
        quiet(config(base, "base/tuned"))
    quiet(config(base, "guarded", steps=1))
    with pytest.raises(ValueError, match="--overwrite"):
        quiet(config(base, "guarded", steps=1))
    quiet(config(base, "guarded", steps=2), overwrite=True)
    assert json.loads((base / "guarded" / "last.json").read_text())["step"] == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        quiet(config(base, out=str(other)), overwrite=True)
    assert (other / "letter.txt").read_text() == "mine"


def test_an_interruption_leaves_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gptbook.finetune as module

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quiet(config(base, "interrupted"))
    assert not [p for p in base.iterdir() if "interrupted" in p.name]


def test_weights_that_are_no_numbers_are_not_saved(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the last step breaks them, after which only the held-out answers could tell."""
    import gptbook.finetune as module

    class Broken(module.AdamW):
        def step(self, *args):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.fill_(math.nan)

    monkeypatch.setattr(module, "AdamW", Broken)
    with pytest.raises(ValueError, match="step 1: the loss of held-out answers is not finite"):
        quiet(config(base, "broken", steps=1))
    assert not [p for p in base.iterdir() if "broken" in p.name]


@pytest.mark.parametrize(("mark", "seen"), [(None, None), (0, [0, 0, 0, 1, 1, 1])])
def test_replay_can_keep_documents_apart(mark: int | None, seen: list[int] | None) -> None:
    row, found = np.array([[1, 2, 3, 0, 4, 5, 6]]), []

    class Text:
        def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
            return row[:, :-1], row[:, 1:]

    def look(model: GPT, args: tuple, kwargs: dict) -> None:
        if args[0].shape == (1, 6):
            found.append(kwargs.get("documents"))

    model = tiny()
    model.register_forward_pre_hook(look, with_kwargs=True)
    example = pack([ChatTemplate(TOKENIZER).example(talk("the", "cat"))], 47)
    fit_answers(model, example, 1, lr=1e-3, replay=(0.5, Text()), replay_mark=mark)
    assert [None if f is None else f[0].tolist() for f in found] == [seen]


def test_replay_needs_the_text_and_keeps_more(base: Path) -> None:
    plain, replayed = (
        quiet(config(base, "plain", lr=1e-2)),
        quiet(config(base, "replayed", lr=1e-2, replay=0.5)),
    )
    after = [float(lines[-1].split("before, ")[1].split()[0]) for lines in (plain, replayed)]
    assert after[1] < after[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 0),
        ("epochs", 0),
        ("lr", 0.0),
        ("replay", 1.0),
        ("val_fraction", 0.9),
        ("checkpoint", "first"),
        ("seed", -1),
    ],
)
def test_settings_out_of_range(name: str, value) -> None:
    with pytest.raises(ValueError, match=name):
        FinetuneConfig(run="r", data="d", out="o", **{name: value})


# ---- the commands --------------------------------------------------------------------------------


def command(*arguments: str | Path, said: str = "") -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    line = [sys.executable, "-m", "gptbook", *map(str, arguments)]
    return subprocess.run(line, input=said, capture_output=True, text=True, encoding="utf-8", env=environment)


def test_what_cannot_be_is_refused_before_the_work(base: Path) -> None:
    for changes, saying in (
        ({"out": base / "path"}, "out = .* must be str"),
        ({"epochs": 2, "steps": 3}, "contradict"),
        ({"lora": True, "weight_decay": 0.1}, "cannot be used together"),
        ({"weight_decay": 1e6}, "below 1e6"),
        ({"eval_every": 2 * 10**9}, "at most"),
    ):
        with pytest.raises(ValueError, match=saying):
            FinetuneConfig(**({"run": "r", "data": "d", "out": "o"} | changes))


def test_what_is_not_known_or_not_held_out_is_said(base: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 60)
    letters = TrainConfig(
        corpus=str(tmp_path / "text.txt"), out=str(tmp_path / "letters"), steps=1, preset="tiny",
        tokenizer="char", context_length=48, batch_size=2, threads=1, precision="fp32",
    )  # fmt: skip
    train(letters, progress=False, log=lambda _: None)
    (tmp_path / "data.jsonl").write_text('{"prompt": "the cat", "completion": "zzz"}\n' * 4)
    paths = {"run": letters.out, "data": str(tmp_path / "data.jsonl"), "out": str(tmp_path / "new")}
    lines = quiet(config(base, **paths, steps=1, val_fraction=0.0))
    assert any("12 tokens of the examples stand for text" in line for line in lines)
    assert any("nothing is held out" in line for line in lines)


def test_command_has_the_settings_of_the_config() -> None:
    options = inspect.signature(finetune_command).parameters
    for field in dataclasses.fields(FinetuneConfig):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        if field.name in ("rank", "alpha"):  # with --lora only: the command must know whether they were given
            default = None
        assert options[field.name].default == default, field.name


def test_commands_from_data_to_conversation(base: Path) -> None:
    settings = "--epochs 15 --batch-size 4 --lr 3e-3 --threads 1".split()
    done = command("finetune", base / "base", "--data", base / "data.jsonl", "--out", base / "cli", *settings)
    assert done.returncode == 0, done.stderr
    assert f"gptbook chat {base / 'cli'}" in done.stdout
    talked = command("chat", base / "cli", "--temperature", "0", said="the cat\n/reset\nthe dog\n")
    assert talked.stdout == " sat\n ran\n" and talked.stderr == "note: the conversation begins anew\n"


FINETUNE = ("finetune", "{base}/base", "--data", "{base}/data.jsonl", "--out", "{base}/x")


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (("chat", "{base}/base"), "was not fine-tuned for conversations"),
        (("chat", "{base}/nowhere"), "no such run folder"),
        (("chat", "{base}/base", "--max-new-tokens", "0"), "max_new_tokens = 0"),
        (("chat", "{base}/nowhere", "--temperature", "-1"), "temperature = -1.0"),
        (("chat", "{base}/text.txt"), "text.txt is a file; a run is a folder"),
        (
            ("finetune", "{base}/text.txt", "--data", "{base}/data.jsonl", "--out", "{base}/x"),
            "a run is a folder",
        ),
        (("finetune", "{base}/base", "--data", "{base}", "--out", "{base}/x"), "is a folder"),
        (("finetune", "smollm2", "--data", "{base}/data.jsonl", "--out", "{base}/x"), "gptbook chat smollm2"),
        (
            (*FINETUNE, "--rank", "8"),
            "--rank is for low-rank updates: add --lora",
        ),
        (
            (*FINETUNE, "--epochs", "2", "--steps", "3"),
            "--epochs and --steps contradict",
        ),
        (
            (*FINETUNE, "--lora", "--weight-decay", "1"),
            "--weight-decay and --lora",
        ),
        (("finetune", "{base}/base", "--data", "{base}/none.jsonl", "--out", "{base}/x"), "no such file"),
        (
            ("finetune", "{base}/base", "--data", "{base}/text.txt", "--out", "{base}/x"),
            "line 1: not valid JSON",
        ),
        (
            ("finetune", "{base}/nowhere", "--data", "{base}/data.jsonl", "--out", "{base}/x"),
            "no such run folder",
        ),
        (
            (*FINETUNE, "--lora", "--rank", "0"),
            "at least 1",
        ),
        (("finetune", "{base}/base", "--data", "{base}/data.jsonl"), "--out"),
    ],
)
def test_commands_have_one_line_for_a_mistake(base: Path, arguments: tuple[str, ...], saying: str) -> None:
    done = command(*(a.format(base=base) for a in arguments))
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("gptbook: "), done.stderr
    assert saying in lines[0], lines[0]
    assert not (base / "x").exists()
