"""Train models from a recipe. The public names, each imported when it is first used."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Callback": "callback.callback",
    "CausalDataFactory": "data.causal_factory",
    "CausalTrainer": "trainer.causal_trainer",
    "CheckpointConfig": "config.checkpoint",
    "CheckpointEngine": "checkpoint.engine",
    "ComponentConfig": "config.base",
    "DPOTrainer": "trainer.dpo_trainer",
    "DataConfig": "config.data",
    "DataFactory": "data.factory",
    "DataSource": "data.source",
    "DataSourceConfig": "config.data",
    "Evaluator": "evaluation.evaluator",
    "GRPOTrainer": "trainer.grpo_trainer",
    "GANTrainer": "trainer.gan_trainer",
    "HFDataSource": "data.huggingface_source",
    "HFModelFactory": "model.huggingface_factory",
    "LigerModelFactory": "model.liger_factory",
    "ModelConfig": "config.model",
    "ModelFactory": "model.factory",
    "ModelTransform": "model.transform",
    "OptimizerConfig": "config.optimizer",
    "OptimizerFactory": "optimizer.factory",
    "Reward": "rollout.reward",
    "Role": "trainer.role",
    "SFTDataFactory": "data.sft_factory",
    "SFTTrainer": "trainer.sft_trainer",
    "SchedulerConfig": "config.scheduler",
    "SchedulerFactory": "scheduler.factory",
    "Scorer": "evaluation.scorer",
    "SourcedDataConfig": "data.config",
    "SourcedDataFactory": "data.sourced_factory",
    "TokenizerFactory": "tokenizer.factory",
    "Tracker": "tracker.tracker",
    "Trainer": "trainer.trainer",
    "TrainerConfig": "config.trainer",
    "get_config": "config.recipe",
    "hook": "callback.hooks",
    "logger": "logging",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"arctic_training.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
