"""A model, a tokenizer and chats small enough for a test, made here and the same every time."""

import json
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "add",
    "sum",
    "what",
    "is",
    "the",
    "of",
    "and",
    "please",
    "say",
    "again",
    "yes",
    "no",
]


def save_tokenizer(folder: Path, template: str | None = CHAT_TEMPLATE) -> Path:
    """A byte-level BPE tokenizer with a chat template and a pad token of its own; 320 tokens or fewer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(_WORDS)] * 4 + ["user assistant system"] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token=None, eos_token="<|im_end|>", model_max_length=512
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def save_model(folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """A Llama of some 30,000 weights with `save_tokenizer`'s tokenizer, as a folder that transformers loads."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    save_tokenizer(folder)
    shape = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 3,
        "tie_word_embeddings": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(shape | overrides)))
    model.save_pretrained(folder)
    return folder


def encoder_decoder(kind: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A small t5, bart or marian with the ids of `save_tokenizer`'s tokens, without dropout."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    shape: dict[str, Any] = {"vocab_size": 320, "pad_token_id": 0, "eos_token_id": 3, "d_model": 32}
    if kind == "t5":
        shape |= {"d_ff": 64, "d_kv": 8, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
        shape |= {"decoder_start_token_id": 0}
    else:
        for part in ("encoder", "decoder"):
            shape |= {f"{part}_layers": 1, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 64}
        shape |= {"max_position_embeddings": 64, "bos_token_id": None, "forced_eos_token_id": None, "dropout": 0.0}
        shape |= {"decoder_start_token_id": 3 if kind == "bart" else 0, "attention_dropout": 0.0}
    shape |= {"decoder_vocab_size": 320} if kind == "marian" else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **{**shape, **overrides}))


def save_encoder_decoder(folder: Path, kind: str = "t5", **overrides: Any) -> Path:
    """`encoder_decoder` with `save_tokenizer`'s tokenizer without a chat template, as a folder that transformers
    loads."""
    save_tokenizer(folder, template=None)
    encoder_decoder(kind, **overrides).save_pretrained(folder)
    return folder


def chats(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of ``messages`` of one to three turns and lopsided lengths."""
    import random

    draw = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(draw.choice(_WORDS) for _ in range(draw.randint(1, most)))

    rows = []
    for _ in range(count):
        messages = []
        for _ in range(draw.randint(1, 3)):
            messages += [{"role": "user", "content": words(12)}, {"role": "assistant", "content": words(20)}]
        rows.append({"messages": messages})
    return rows


def save_chats(path: Path, count: int = 24, *, seed: int = 0) -> Path:
    """`chats` as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in chats(count, seed=seed)), encoding="utf-8")
    return path
