"""The `train.py` of a project of ArcticTraining 0.8, with its names, annotations and decorators."""
# mypy: ignore-errors

import json
from pathlib import Path

import torch
from datasets import load_dataset

from arctic_training import CheckpointEngine, DSCheckpointEngine, register
from arctic_training.config.model import ModelConfig
from arctic_training.data.hf_source import HFDataSource
from arctic_training.model.hf_factory import HFModelFactory
from arctic_training.trainer.sft_trainer import SFTTrainer


class ScaledConfig(ModelConfig):
    factor: float = 1.0


@register
class ScaledFactory(HFModelFactory):
    name = "scaled_08"
    config: ScaledConfig

    def post_create_model_callback(self, model):
        model.lm_head.weight.data *= self.config.factor
        return model


@register
class ChatSource(HFDataSource):
    name = "chats_08"

    def load(self, config, split):
        return load_dataset("json", data_files=str(config.name_or_path), split="train")


@register
class HeadEngine(CheckpointEngine):
    name = "head_08"

    def save(self, model):
        torch.save(model.module.lm_head.state_dict(), self.checkpoint_dir / "head.pt")

    def load(self, model):
        model.module.lm_head.load_state_dict(torch.load(self.checkpoint_dir / "head.pt"))


def remember(trainer):
    """Writes the steps that were taken before each beside the recipe."""
    path = Path("heard.json")
    heard = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*heard, trainer.global_step]))


@register
class ScaledTrainer(SFTTrainer):
    name = "scaled_08"
    model_factory: ScaledFactory
    checkpoint_engine: DSCheckpointEngine | HeadEngine
    callbacks = [("post-step", remember)]
