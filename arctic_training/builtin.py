"""Registers every built-in class that a recipe can name, by importing its module."""

from importlib import import_module

_MODULES = (
    "callback.ema",
    "callback.kill_switch",
    "callback.nan_guard",
    "callback.sample_generation",
    "callback.sample_tensors",
    "callback.time_limit",
    "checkpoint.deepspeed",
    "checkpoint.huggingface",
    "data.sources.tensor",
    "data.sources.passed",
    "evaluation.generate",
    "evaluation.judge",
    "evaluation.lm_eval",
    "evaluation.math_scorer",
    "evaluation.scorer",
    "model.passed_factory",
    "objectives.autoregressive",
    "objectives.causal",
    "objectives.classifier",
    "objectives.distill",
    "objectives.dpo",
    "objectives.embedding",
    "objectives.gan",
    "objectives.grpo",
    "objectives.kto",
    "objectives.ppo",
    "objectives.reinforce",
    "objectives.reward",
    "objectives.sample_rollouts",
    "objectives.seq2seq",
    "objectives.sft",
    "reward.model",
    "reward.reward",
    "tokenizer.passed_factory",
    "tracker.console",
    "tracker.jsonl",
    "tracker.wandb",
)

for _module in _MODULES:
    import_module(f"arctic_training.{_module}")
