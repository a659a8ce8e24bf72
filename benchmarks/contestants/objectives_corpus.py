"""Writes what dpo and grpo read, ours and TRL's: a tokenizer, a model, and rows in the order in which ours reads them.

python objectives_corpus.py FOLDER
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

from corpus import Language, train_tokenizer


def rows(task: dict[str, Any], language: Language, dice: random.Random) -> list[dict[str, str]]:
    """Returns the pairs, or prompts, of all steps."""
    pairs = []
    for _ in range(task["rows"] * task["steps"]):
        words = [max(4, round(40 * 2.718281828 ** dice.gauss(0, 0.6))) for _ in range(3)]
        prompt, *completions = (language.text(min(count, 100)) for count in words)
        pair = {"chosen": f" {completions[0]}", "rejected": f" {completions[1]}"}
        pairs.append({"prompt": prompt, **(pair if task["name"] == "dpo" else {"completion": completions[0]})})
    return pairs


def write_model(task: dict[str, Any], folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(task["seed"])
    settings = {name: value for name, value in task["llama"].items() if name != "torch_dtype"}
    model = LlamaForCausalLM(LlamaConfig(**settings, pad_token_id=0, eos_token_id=1, bos_token_id=None))
    # without an end token of its own: the completions of grpo all have max_new_tokens tokens
    model.generation_config.eos_token_id = None if task["name"] == "grpo" else 1
    model.save_pretrained(folder)


def main(folder: Path) -> None:
    from arctic_training.data.batching.sampler import GlobalOrder

    task = json.loads((folder / "task.json").read_text())
    dice = random.Random(task["seed"])
    language = Language(dice)
    model = folder / "model"
    model.mkdir()
    train_tokenizer([language.text(100) for _ in range(600)], 8192, model)
    written = rows(task, language, dice)
    order = GlobalOrder(size=len(written), micro_batch_size=task["rows"], seed=0).permutation(0)
    for name, some in (("ours", written), ("trl", [written[n] for n in order])):
        (folder / name).mkdir()
        if task["name"] == "grpo" and name == "trl":
            some = [{"prompt": row["prompt"]} for row in some]
        (folder / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    write_model(task, model)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
