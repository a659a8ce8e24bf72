"""A saved model ends its answers with the token that its chat template taught it, whatever its base model ends with."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arctic_training import SFTTrainer, get_config
from arctic_training.checkpoint.saved_model import find_saved_model
from arctic_training.data.tokenization.closing_tokens import add_end_tokens
from arctic_training.deployment.export import ExportOptions, export
from tests import tiny
from tests.deployment.runs import make_files, recipe

BASE_END, TURN_END = "<|endoftext|>", "<|im_end|>"


@pytest.mark.parametrize(
    ("declared", "template", "expected"),
    [
        ([BASE_END], tiny.CHAT_TEMPLATE, [BASE_END, TURN_END]),
        (BASE_END, tiny.CHAT_TEMPLATE, [BASE_END, TURN_END]),
        (None, tiny.CHAT_TEMPLATE, [TURN_END]),
        (TURN_END, tiny.CHAT_TEMPLATE, TURN_END),
        ([TURN_END, BASE_END], tiny.CHAT_TEMPLATE, [TURN_END, BASE_END]),
        ([BASE_END], None, [BASE_END]),
        ([BASE_END], "{% for message in messages %}{{ message['content'] }}\n{% endfor %}", [BASE_END]),
    ],
)
def test_the_token_that_ends_an_answer_is_added(tmp_path: Path, declared: Any, template: Any, expected: Any) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny.save_tokenizer(tmp_path, template))
    tokenizer.eos_token = BASE_END
    model: Any = SimpleNamespace(generation_config=GenerationConfig())
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(declared) if declared else None
    for _ in range(2):
        add_end_tokens(model, tokenizer, {})
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(expected)


@pytest.mark.parametrize("lora", [False, True])
def test_checkpoints_and_exports_end_where_they_have_learned_to(tmp_path: Path, lora: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    make_files(tmp_path)
    base = tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = BASE_END
    tokenizer.save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    ends = tokenizer.convert_tokens_to_ids([BASE_END, TURN_END])
    model.generation_config = GenerationConfig(eos_token_id=ends[0], do_sample=True, temperature=0.5)
    model.save_pretrained(base)
    trainer = SFTTrainer(get_config(recipe(tmp_path, lora=lora, evaluators=[], evaluate_last=False)))
    trainer.train()
    trainer.close()
    folders = []
    for kind in ("deepspeed", "huggingface"):
        checkpoint = trainer.run_dir / "checkpoints" / kind / "step_4"
        export(find_saved_model(str(checkpoint)), tmp_path / kind, ExportOptions())
        folders += [tmp_path / kind, *([checkpoint] if kind == "huggingface" and not lora else [])]
    for folder in folders:
        saved = GenerationConfig.from_pretrained(folder)
        assert (saved.eos_token_id, saved.do_sample, saved.temperature) == (ends, True, 0.5)
