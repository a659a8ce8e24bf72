"""Writes what every contestant reads: a tokenizer, the chats, and a model with its first weights. The same every time.

python corpus.py TASK_JSON FOLDER
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
OPENED, END, CLOSED = "<|{}|>\n", "<|end|>", "<|end|>\n"
Chat = list[dict[str, str]]


class Language:
    """Words that follow one another by a rule which a model can learn."""

    def __init__(self, dice: random.Random, words: int = 7000) -> None:
        self.dice = dice
        syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "os")]
        vocabulary: dict[str, None] = {}
        while len(vocabulary) < words:
            vocabulary["".join(dice.choices(syllables, k=dice.choice((1, 2, 2, 3))))] = None
        self.words = list(vocabulary)
        self.cumulative = [0.0]
        for rank in range(words):
            self.cumulative.append(self.cumulative[-1] + 1 / (rank + 10))
        del self.cumulative[0]
        self.next = {word: self._draw(4) for word in self.words}

    def _draw(self, count: int) -> list[str]:
        return self.dice.choices(self.words, cum_weights=self.cumulative, k=count)

    def text(self, words: int) -> str:
        sequence = self._draw(1)
        while len(sequence) < words:
            sequence.append(self.dice.choice(self.next[sequence[-1]]) if self.dice.random() < 0.8 else self._draw(1)[0])
        return " ".join(sequence).capitalize() + "."

    def chat(self, words: int) -> Chat:
        """Turns of about that many words in all, some six in ten of them the assistant's."""
        exchanges = min(self.dice.choice((1, 1, 2, 3)), max(1, words // 12))
        turns: Chat = []
        for _ in range(exchanges):
            length = max(2, round(words / exchanges * self.dice.uniform(0.25, 0.55)))
            turns.append({"role": "user", "content": self.text(length)})
            answered = max(2, round(words / exchanges) - length)
            turns.append({"role": "assistant", "content": self.text(answered)})
        return turns


def train_tokenizer(texts: list[str], vocabulary: int, folder: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    # written by hand, in the form that transformers 4 and 5 both read
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|pad|>",
        "eos_token": "<|end|>",
        "additional_special_tokens": SPECIAL[2:],
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    return tokenizer


def rendered(chat: Chat) -> str:
    return "".join(OPENED.format(turn["role"]) + turn["content"] + CLOSED for turn in chat)


def labelled(chat: Chat, tokenizer: Any) -> dict[str, list[int]]:
    """The tokens of a chat and their labels, -100 where there is no target: turn by turn, without a template."""
    ids: list[int] = []
    labels: list[int] = []
    for turn in chat:
        opened = tokenizer.encode(OPENED.format(turn["role"])).ids
        content = tokenizer.encode(turn["content"]).ids + tokenizer.encode(END).ids
        line = tokenizer.encode(CLOSED).ids[1:]
        ids += opened + content + line
        labels += [-100] * len(opened) + (content if turn["role"] == "assistant" else [-100] * len(content))
        labels += [-100] * len(line)
    assert ids == tokenizer.encode(rendered(chat)).ids
    return {"input_ids": ids, "labels": labels}


def fitted(chat: Chat, longest: int, tokenizer: Any) -> Chat:
    """The chat, the ends of its longest turns cut off until it has at most that many tokens."""
    while (too_many := len(tokenizer.encode(rendered(chat)).ids) - longest) > 0:
        turn = max(chat, key=lambda one: len(one["content"]))
        turn["content"] = " ".join(turn["content"].split()[: -max(1, too_many // 3)]) + "."
    return chat


def write_model(task: dict[str, Any], llama: dict[str, Any], folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(task["seed"])
    llama = llama | {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in llama.items() if k != "torch_dtype"}))
    assert sum(p.numel() for p in model.parameters()) == task["parameters"]
    # with the metadata that transformers 4 asks for
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(llama, indent=1))


def main(folder: Path) -> None:
    task = json.loads((folder / "task.json").read_text())
    dice = random.Random(task["seed"])
    language = Language(dice)
    model, data, held_out = (folder / name for name in ("model", "data", "held_out"))
    for one in (model, data, held_out):
        one.mkdir(parents=True, exist_ok=True)
    sample = [rendered(language.chat(100)) for _ in range(600)]
    tokenizer = train_tokenizer(sample, task["model"]["vocabulary"], model)
    per_word = sum(len(tokenizer.encode(text).ids) for text in sample[:100]) / 100 / 100

    def chats(count: int) -> list[Chat]:
        samples = []
        for _ in range(count):
            tokens = (
                task["median_tokens"] * 2.718281828 ** dice.gauss(0, task["spread"])
                if task["spread"]
                else (1.1 * task["max_length"])
            )
            words = max(6, round(min(tokens, 1.1 * task["max_length"]) / per_word))
            samples.append(fitted(language.chat(words), task["max_length"], tokenizer))
        return samples

    train, test = chats(task["rows"]), chats(task["held_out_rows"])
    for path, rows in ((data / "train.jsonl", train), (held_out / "train.jsonl", test)):
        path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in rows))
    write_model(task, task["llama"], model)
    (folder / "held_out.json").write_text(json.dumps([labelled(chat, tokenizer) for chat in test]))
    lengths = [len(tokenizer.encode(rendered(chat)).ids) for chat in train]
    ids = {
        "pad_id": tokenizer.token_to_id("<|pad|>"),
        "end_id": tokenizer.token_to_id("<|end|>"),
        "assistant_ids": tokenizer.encode(OPENED.format("assistant")).ids,
    }
    summary = {
        "rows": len(train),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "vocabulary": tokenizer.get_vocab_size(),
    } | ids
    (folder / "corpus.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    for one in sys.argv[1:]:
        main(Path(one))
