"""A trainer without parts has what a trainer of a run has before they are built."""

from pathlib import Path
from typing import Any

from arctic_training import SFTTrainer, get_config
from arctic_training.trainer.bare import bare
from tests import tiny


def test_it_has_what_a_run_begins_with(tmp_path: Path, tiny_model: Path) -> None:
    recipe = {
        "type": "sft",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": [str(tiny.save_chats(tmp_path / "chats.jsonl", 4))], "max_length": 400},
        "output_dir": str(tmp_path / "run"),
    }
    config = get_config(recipe)
    heard: list[Any] = []

    class Heard(SFTTrainer):
        callbacks = [("pre-init", heard.append)]

        def on_init_start(self) -> None:
            heard.append(self)

    one = bare(Heard, config, session := object())
    assert not heard and not (tmp_path / "run").exists()
    assert (one.config, one.session, one.progress.step, one.engines, one.eval_loaders) == (config, session, 0, {}, {})
    trainer = SFTTrainer(config)
    mutable = {name for name, value in vars(one).items() if isinstance(value, list | dict | set)}
    shared = [name for name in mutable if vars(bare(Heard, config))[name] is vars(one)[name]]
    assert vars(one).keys() <= vars(trainer).keys() and shared == []
    trainer.close()
