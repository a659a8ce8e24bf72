"""A project of ArcticTraining 0.8, its `train.py` and its recipe, is trained by the command as it is."""

import json
import shutil
from pathlib import Path
from typing import Any

from arctic_training.checkpoint.folder import read_manifest
from tests import tiny
from tests.command import Run


def test_a_project_is_trained_by_the_command(tmp_path: Path, tiny_model: Path) -> None:
    tiny.save_chats(tmp_path / "chats.jsonl", 8)
    shutil.copy(Path(__file__).parent / "project_08.py", tmp_path / "train.py")
    recipe: dict[str, Any] = {
        "type": "scaled_08",
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "epochs": 1,
        "exit_iteration": 2,
        "train_log_iter_interval": 1,
        "model": {
            "type": "scaled_08",
            "name_or_path": str(tiny_model),
            "dtype": "bf16",
            "attn_implementation": "sdpa",
            "disable_activation_checkpoint": True,
            "factor": 0.5,
        },
        "tokenizer": {"type": "huggingface", "name_or_path": str(tiny_model)},
        "data": {
            "type": "sft",
            "sources": [{"type": "chats_08", "name_or_path": str(tmp_path / "chats.jsonl")}],
            "max_length": 400,
            "num_proc": 1,
            "dl_num_workers": 0,
            "cache_dir": str(tmp_path / "cache"),
            "use_data_cache": True,
        },
        "optimizer": {"type": "adamw", "learning_rate": 1e-3, "betas": [0.9, 0.95]},
        "scheduler": {"type": "huggingface", "name": "cosine", "warmup_ratio": 0.1},
        "checkpoint": [
            {"type": "deepspeed", "output_dir": str(tmp_path / "full"), "save_every_n_steps": 1},
            {"type": "head_08", "output_dir": str(tmp_path / "heads"), "save_every_n_steps": 2},
        ],
        "logger": {"level": "INFO"},
    }
    with Run(tmp_path, recipe) as run:
        assert run.end() == 0, run.stderr
        output, steps = run.stderr + (tmp_path / "stdout.txt").read_text(), [one["step"] for one in run.records()]
    for old, now in {
        "DSCheckpointEngine": "checkpoint.deepspeed.DeepSpeedCheckpointEngine",
        "register": "compatibility.names.register",
        "config.model.ModelConfig": "model.huggingface_config.HFModelConfig",
        "model.hf_factory.HFModelFactory": "model.huggingface_factory.HFModelFactory",
        "data.hf_source.HFDataSource": "data.sources.huggingface.HFDataSource",
        "trainer.sft_trainer.SFTTrainer": "objectives.sft.SFTTrainer",
    }.items():
        assert f"arctic_training.{old} is arctic_training.{now} here" in output, output
    assert "trainer.global_step will be removed; write trainer.progress.step" in output
    assert "data.use_data_cache is deprecated and changes nothing" in output
    assert steps[:2] == [1, 2]
    assert json.loads((tmp_path / "heard.json").read_text()) == [0, 1]
    assert read_manifest(tmp_path / "heads" / "step_2")["type"] == "head_08"
    assert (tmp_path / "heads" / "step_2" / "head.pt").stat().st_size > 0
    assert read_manifest(tmp_path / "full" / "step_2")["type"] == "deepspeed"
