"""Train models from a recipe. The public names, each imported when it is first used."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "AdamWFactory": "optimizer.torch_factories",
    "AutoregressiveTrainer": "objectives.autoregressive",
    "Callback": "callback.callback",
    "CausalDataFactory": "data.factories.causal",
    "CausalTrainer": "objectives.causal",
    "CheckpointConfig": "config.sections.checkpoint",
    "CheckpointEngine": "checkpoint.checkpointer",
    "Checkpointer": "checkpoint.checkpointer",
    "Completions": "generation.completions",
    "ClassifierTrainer": "objectives.classifier",
    "ComponentConfig": "config.sections.base",
    "DPODataFactory": "data.factories.dpo",
    "DPOTrainer": "objectives.dpo",
    "DataConfig": "config.sections.data",
    "DataFactory": "data.factories.base",
    "DataSource": "data.sources.base",
    "DataSourceConfig": "config.sections.data",
    "DeepSpeedCheckpointEngine": "checkpoint.deepspeed",
    "EMA": "callback.ema",
    "Evaluator": "evaluation.evaluator",
    "GANTrainer": "objectives.gan",
    "GRPOTrainer": "objectives.grpo",
    "HFCheckpointEngine": "checkpoint.huggingface",
    "HFDataSource": "data.sources.huggingface",
    "HFModelFactory": "model.huggingface_factory",
    "HFSchedulerFactory": "scheduler.huggingface_factory",
    "HFTokenizerFactory": "tokenizer.huggingface_factory",
    "HumanFloat": "config.sections.types",
    "HumanInt": "config.sections.types",
    "InputError": "errors.types",
    "LanguageModelTrainer": "objectives.language_model",
    "LexerFactory": "tokenizer.lexer_factory",
    "LabeledTextDataFactory": "data.factories.labeled_text",
    "LigerModelFactory": "model.liger_factory",
    "MLPFactory": "model.mlp_factory",
    "ModelConfig": "config.sections.model",
    "ModelFactory": "model.factory",
    "ModelTransform": "model.transforms.base",
    "NoTokenizerFactory": "tokenizer.factory",
    "OptimizerConfig": "config.sections.optimizer",
    "OptimizerFactory": "optimizer.factory",
    "PolicyTrainer": "objectives.policy",
    "PromptDataFactory": "data.factories.prompt",
    "PreferenceDataFactory": "data.factories.preference",
    "RESUME_SAFE": "config.sections.changes",
    "Reward": "reward.reward",
    "RewardTrainer": "objectives.reward",
    "Role": "trainer.role",
    "SFTDataFactory": "data.factories.sft",
    "SFTTrainer": "objectives.sft",
    "SGDFactory": "optimizer.torch_factories",
    "SamplingParams": "generation.sampling",
    "SchedulerConfig": "config.sections.scheduler",
    "SchedulerFactory": "scheduler.factory",
    "Scorer": "evaluation.scorer",
    "SourcedDataConfig": "data.factories.config",
    "SourcedDataFactory": "data.factories.sourced",
    "TensorDataFactory": "data.factories.tensor",
    "TensorTrainer": "objectives.tensor",
    "TokenizerFactory": "tokenizer.factory",
    "Tracker": "tracker.tracker",
    "Trainer": "trainer.trainer",
    "TrainerConfig": "config.sections.trainer",
    "all_gather_object": "distributed.collectives",
    "all_gather_with_grad": "distributed.collectives",
    "all_reduce": "distributed.collectives",
    "frozen_parameters": "trainer.role",
    "generate": "generation.generate",
    "get_config": "config.get_config",
    "hook": "callback.hooks",
    "is_main": "distributed.process_group",
    "isolated_eval": "state",
    "logger": "logging",
    "normal": "data.batching.noise",
    "rank": "distributed.process_group",
    "target_losses": "model.target_losses",
    "target_predictions": "model.target_losses",
    "uniform": "data.batching.noise",
    "world_size": "distributed.process_group",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"arctic_training.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
