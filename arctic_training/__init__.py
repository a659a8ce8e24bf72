"""Train models from a recipe. The public names, each imported when it is first used."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "AutoregressiveTrainer": "objectives.autoregressive",
    "Callback": "callback.callback",
    "CausalDataFactory": "data.factories.causal",
    "CausalTrainer": "objectives.causal",
    "CheckpointConfig": "config.sections.checkpoint",
    "CheckpointEngine": "checkpoint.checkpointer",
    "Checkpointer": "checkpoint.checkpointer",
    "Completions": "generation.completions",
    "ComponentConfig": "config.sections.base",
    "DPOTrainer": "objectives.dpo",
    "DataConfig": "config.sections.data",
    "DataFactory": "data.factories.base",
    "DataSource": "data.sources.base",
    "DataSourceConfig": "config.sections.data",
    "Evaluator": "evaluation.evaluator",
    "GRPOTrainer": "objectives.grpo",
    "GANTrainer": "objectives.gan",
    "HFDataSource": "data.sources.huggingface",
    "HFModelFactory": "model.huggingface_factory",
    "LigerModelFactory": "model.liger_factory",
    "ModelConfig": "config.sections.model",
    "ModelFactory": "model.factory",
    "ModelTransform": "model.transforms.base",
    "OptimizerConfig": "config.sections.optimizer",
    "OptimizerFactory": "optimizer.factory",
    "PolicyTrainer": "objectives.policy",
    "RESUME_SAFE": "config.sections.changes",
    "Reward": "reward.reward",
    "Role": "trainer.role",
    "SFTDataFactory": "data.factories.sft",
    "SFTTrainer": "objectives.sft",
    "SamplingParams": "generation.sampling",
    "SchedulerConfig": "config.sections.scheduler",
    "SchedulerFactory": "scheduler.factory",
    "Scorer": "evaluation.scorer",
    "SourcedDataConfig": "data.factories.config",
    "SourcedDataFactory": "data.factories.sourced",
    "TokenizerFactory": "tokenizer.factory",
    "Tracker": "tracker.tracker",
    "Trainer": "trainer.trainer",
    "TrainerConfig": "config.sections.trainer",
    "generate": "generation.generate",
    "get_config": "config.get_config",
    "hook": "callback.hooks",
    "logger": "logging",
    "target_losses": "model.target_losses",
    "target_predictions": "model.target_losses",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"arctic_training.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
