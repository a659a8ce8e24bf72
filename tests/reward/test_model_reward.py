"""A reward model reads a completion as the trainer `reward` does, whatever its tokenizer adds to a text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.reward.model import ModelReward, ModelRewardConfig
from arctic_training.reward.reward import Completion
from tests import tiny
from tests.objectives import tiny_runs
from tests.objectives.dpo_runs import first_batch

PAIRS = [("one two", " three four", " five"), ("add", " ten", " sum sum sum"), ("what is", " yes", " no no")]
BEGIN, END = "<|endoftext|>", "<|im_end|>"
CHAT = "{{ '" + BEGIN + "' }}" + tiny.CHAT_TEMPLATE


def save_tokenizer(folder: Path, frame: str, **special: str | None) -> None:
    """Saves the tokenizer of `tiny`, which puts a text into a ``frame`` such as ``[CLS] $A [SEP]``."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.save_tokenizer(folder, template=CHAT))
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in frame.split() if token != "$A"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=frame, special_tokens=ids)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)


def save_encoder(folder: Path) -> dict[str, Any]:
    from transformers import BertConfig, BertModel

    save_tokenizer(folder, f"{BEGIN} $A {END}", eos_token=None, cls_token=BEGIN, sep_token=END)
    shape = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    torch.manual_seed(0)
    BertModel(BertConfig(**shape, num_attention_heads=2, pad_token_id=0)).save_pretrained(folder)
    return {"name_or_path": str(folder), "new_weights": ["classifier"], "dtype": "fp32"}


def save_decoder(folder: Path) -> dict[str, Any]:
    tiny.save_model(folder)
    save_tokenizer(folder, f"{BEGIN} $A", bos_token=BEGIN)
    return {"name_or_path": str(folder), "new_weights": ["score"], "dtype": "fp32"}


@pytest.mark.parametrize(("save", "chats"), [(save_encoder, False), (save_decoder, False), (save_decoder, True)])
def test_a_completion_is_read_as_it_was_learned(save: Any, chats: bool, tmp_path: Path) -> None:
    """The trainer's own reward of a row of its data is the reward of the completion in it."""
    model = save(tmp_path / "model")
    rows = [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in PAIRS]
    if chats:
        rows = [{"question": row.pop("prompt"), **row} for row in rows]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = tiny_runs.make_trainer(
        tmp_path,
        {"model": model, "data": {"sources": [str(path)], "max_length": 64, "cache_dir": str(tmp_path / "cache")}},
        type="reward",
        micro_batch_size=len(PAIRS),
        train_iters=1,
        checkpoint={"type": "huggingface", "save_end_of_training": True},
    )
    batch = first_batch(trainer)
    order = list(trainer.train_loader.samples(0, 0))
    trainer.train()
    with torch.no_grad():
        trainer.model.module.eval()
        expected = trainer.rewards(batch)
    trainer.close()
    (folder,) = (tmp_path / "run" / "checkpoints" / "huggingface").glob("step_*")
    reward = ModelReward(ModelRewardConfig(type="model", name_or_path=str(folder), dtype="fp32"))
    reward.load()
    template = "<|endoftext|><|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n" if chats else "{}"
    completions = [
        Completion(template.format(PAIRS[n][0]), PAIRS[n][which], "", 1, True) for which in (1, 2) for n in order
    ]
    assert len({*expected.tolist()}) == len(completions)
    assert reward(completions) == pytest.approx(expected.tolist(), abs=1e-5)
    reward.max_length = 4
    seen = reward.tokenizer(PAIRS[0][0] + PAIRS[0][1] + (reward.tokenizer.eos_token or ""))["input_ids"]
    if not chats:  # what begins a text is seen, however long it is
        assert len(reward._row(seen[1:])) == 4 and reward._row(seen[1:])[0] == seen[0]
