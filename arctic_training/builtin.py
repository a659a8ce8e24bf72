"""Imports every built-in class that a recipe can name, so that its name is known."""

from importlib import import_module

_MODULES = (
    "callback.ema",
    "callback.kill_switch",
    "callback.nan_guard",
    "callback.time_limit",
    "checkpoint.deepspeed_engine",
    "checkpoint.huggingface_engine",
    "data.tensor_source",
    "evaluation.generate",
    "evaluation.scorer",
    "rollout.reward",
    "tracker.console",
    "tracker.jsonl",
    "tracker.wandb",
    "trainer.causal_trainer",
    "trainer.dpo_trainer",
    "trainer.gan_trainer",
    "trainer.grpo_trainer",
    "trainer.sft_trainer",
)

for _module in _MODULES:
    import_module(f"arctic_training.{_module}")
