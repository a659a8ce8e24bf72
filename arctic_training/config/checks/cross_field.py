"""What the keys of a recipe must not contradict one another about."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationInfo, field_validator

from arctic_training.config.checks.deepspeed import BATCH_KEYS, PRECISION_KEYS, deepspeed_problems
from arctic_training.config.checks.problems import Problem, Problems, unknown
from arctic_training.config.sections.base import BaseConfig
from arctic_training.config.sections.checkpoint import CheckpointConfig, require_resumable, require_separate_folders
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.config.sections.wandb import WandbSection
from arctic_training.registry import lookup


class CrossFieldValidation(BaseConfig):
    """Of `TrainerConfig`, whose fields are named here: each is held against those above it."""

    @field_validator("sequence_parallel_size", check_fields=False)
    @classmethod
    def _has_what_to_share(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and "type" in info.data and not shares_sequences(trainer := lookup("trainer", info.data["type"])):
            told = f"{value}, and {trainer.__name__} does not say that its loss is right on a part of a sequence"
            raise ValueError(f"{told} (`shares_sequences = True`); leave it out")
        model = info.data.get("model")
        if value > 1 and model is not None and model.unshareable:
            raise ValueError(f"{value} {model.unshareable}")
        return value

    @field_validator("scheduler", check_fields=False)
    @classmethod
    def _one_learning_rate(cls, scheduler: SchedulerConfig, info: ValidationInfo) -> SchedulerConfig:
        rate, optimizer = scheduler.learning_rate, info.data.get("optimizer")
        if rate is not None and optimizer is not None:
            if "learning_rate" in optimizer.model_fields_set and optimizer.learning_rate != rate:
                told = f"{rate:g} contradicts the optimizer's {optimizer.learning_rate:g}; leave it out here"
                raise Problems([Problem(("learning_rate",), told)])
            optimizer.learning_rate = rate
        return scheduler

    @field_validator("checkpoint", check_fields=False)
    @classmethod
    def _side_by_side(cls, sections: list[CheckpointConfig]) -> list[CheckpointConfig]:
        enabled = [section for section in sections if section.enabled]
        require_separate_folders(enabled)
        require_resumable(enabled)
        return sections

    @field_validator("wandb", check_fields=False)
    @classmethod
    def _is_told_once(cls, value: WandbSection, info: ValidationInfo) -> WandbSection:
        if value.enable and any(section.type == value.type for section in info.data.get("trackers") or []):
            raise Problems(
                [Problem(("enable",), "true, and wandb is among the trackers too; leave one of the two out")]
            )
        return value

    @field_validator("train_log_metrics_path", check_fields=False)
    @classmethod
    def _has_a_file_of_its_own(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        written = [section.path for section in info.data.get("trackers") or [] if section.type == "jsonl"]
        files = [str(file.absolute()) if file else "metrics.jsonl" for file in (value, *written)]
        if twice := next((file for file in files if files.count(file) > 1), None):
            raise ValueError(f"{twice} is written by two trackers; leave one out, or give it another file")
        return value

    @field_validator("allow_changes", check_fields=False)
    @classmethod
    def _are_keys(cls, keys: list[str]) -> list[str]:
        for key in keys:
            if (first := key.split(".")[0]) not in {*cls.model_fields, "global_batch_size", "stop"}:
                raise ValueError(f"{key}: {unknown(first, cls.model_fields)}")
        return keys

    @field_validator("nan_guard", check_fields=False)
    @classmethod
    def _has_where_to_go(cls, value: str, info: ValidationInfo) -> str:
        sections = [section for section in info.data.get("checkpoint") or [] if section.enabled]
        saves = [section for section in sections if section.save_every_n_steps or section.save_every_n_epochs]
        if value == "back" and not any(lookup("checkpoint_engine", one.type).resumable for one in saves):  # type: ignore[attr-defined]
            told = "checkpoint: {type: deepspeed, save_every_n_steps: ...}"
            raise ValueError(f"back, and no checkpoint is saved during the run to go back to; give {told}")
        return value

    @field_validator("eval_interval", check_fields=False)
    @classmethod
    def _finds_the_best(cls, value: int, info: ValidationInfo) -> int:
        best = any(section.enabled and section.keep_best for section in info.data.get("checkpoint") or [])
        if best and not value and not info.data.get("evaluate_last"):
            raise ValueError("0, and the checkpoint section has keep_best: nothing would tell which is the best")
        return value

    @field_validator("evaluate_first", "evaluate_last", "eval_interval", check_fields=False)
    @classmethod
    def _has_what_to_evaluate(cls, value: Any, info: ValidationInfo) -> Any:
        data = info.data.get("data")
        if value and data is not None and not data.evaluates and not info.data.get("evaluators"):
            raise ValueError("there is nothing to evaluate on; give data.eval_sources, or data.train_eval_split")
        return value

    @field_validator("train_iters", check_fields=False)
    @classmethod
    def _ends(cls, value: int, info: ValidationInfo) -> int:
        data = info.data.get("data")
        if not value and data is not None and data.endless:
            raise ValueError("0, and a stream has no end; say how many updates to train")
        return value

    @field_validator("train_iters", check_fields=False)
    @classmethod
    def _outlasts_the_warmup(cls, value: int, info: ValidationInfo) -> int:
        scheduler = info.data.get("scheduler")
        trainer: Any = lookup("trainer", info.data["type"]) if "type" in info.data else None
        several = any(role.steps_per_update_key for role in getattr(trainer, "roles", ()) if role.name == "model")
        if value and not several and scheduler is not None and (scheduler.warmup_steps or 0) > value:
            told = f"{value} updates, and scheduler.warmup_steps is {scheduler.warmup_steps}"
            raise ValueError(f"{told}; raise it or lower that")
        return value

    @field_validator("epochs", check_fields=False)
    @classmethod
    def _is_something_to_do(cls, value: int, info: ValidationInfo) -> int:
        evaluates = info.data.get("evaluate_first") or info.data.get("evaluate_last")
        if not value and info.data.get("train_iters") == 0 and not evaluates:
            raise ValueError("0, and no train_iters: there is nothing to train; give one of them")
        return value

    @field_validator("deepspeed", check_fields=False)
    @classmethod
    def _agrees(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        micro, steps, model, optimizer = (
            info.data.get(key) for key in ("micro_batch_size", "gradient_accumulation_steps", "model", "optimizer")
        )
        # what is wrong with those is told already; against them nothing can be held
        held = [*([] if micro and steps else BATCH_KEYS), *([] if model else PRECISION_KEYS)]
        problems = deepspeed_problems(
            {key: one for key, one in value.items() if key not in held},
            micro_batch_size=micro or 1,
            gradient_accumulation_steps=steps or 1,
            sequence_parallel_size=info.data.get("sequence_parallel_size") or 1,
            dtype=model.dtype if model else "bf16",
            highest_stage=optimizer.highest_stage(model.dtype) if optimizer and model else 3,
        )
        if problems:
            raise Problems(Problem(path, text) for path, text in problems)
        return value


def shares_sequences(trainer: type) -> bool:
    """Whether a trainer says that the loss it has, be that inherited or its own, is right on a part of a sequence."""
    said = (vars(one) for one in trainer.__mro__ if {"loss", "shares_sequences"} & vars(one).keys())
    nearest: Mapping[str, Any] = next(said, {})
    return bool(nearest.get("shares_sequences", False))
