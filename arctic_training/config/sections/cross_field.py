"""Checks that the keys of a recipe do not contradict one another."""

from pathlib import Path

from pydantic import ValidationInfo, field_validator

from arctic_training.config.checks.problems import Problem, Problems, unknown
from arctic_training.config.sections.base import BaseConfig, ComponentConfig
from arctic_training.config.sections.checkpoint import CheckpointConfig, require_consistent
from arctic_training.config.sections.deepspeed import BATCH_KEYS, PRECISION_KEYS, deepspeed_problems
from arctic_training.config.sections.mesh import MeshConfig
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.config.sections.wandb import WandbSection
from arctic_training.registry import lookup, stated


class CrossFieldValidation(BaseConfig):
    """Base of `TrainerConfig`, whose fields are named here: each is compared with the fields above it, which are valid.

    Field validators, unlike one validator of the model, report their problems together with those of other fields.
    """

    @field_validator("sequence_parallel_size", check_fields=False)
    @classmethod
    def _check_sequence_parallel(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and "type" in info.data and not shares_sequences(trainer := lookup("trainer", info.data["type"])):
            text = f"{value}, and {trainer.__name__} does not state that its loss is right on a part of a sequence"
            raise ValueError(f"{text} (`shares_sequences = True`); remove it")
        model = info.data.get("model")
        if value > 1 and model is not None and model.unshareable:
            raise ValueError(f"{value} {model.unshareable}")
        return value

    @field_validator("mesh", check_fields=False)
    @classmethod
    def _check_mesh(cls, value: MeshConfig, info: ValidationInfo) -> MeshConfig:
        if value.model == 1:
            return value
        trainer = lookup("trainer", info.data["type"]) if "type" in info.data else None
        model, optimizer = info.data.get("model"), info.data.get("optimizer")
        evaluators = [one.type for one in info.data.get("evaluators") or []]
        problem = ""
        if trainer is not None and not stated(trainer, "tensor_parallel", "loss"):
            problem = f"{trainer.__name__} does not state that its loss is right where processes divide a model "
            problem += "(`tensor_parallel = True`); remove it, or shard the weights by ZeRO stage 3"
        elif (info.data.get("sequence_parallel_size") or 1) > 1:
            problem = (
                "sequence_parallel_size is above 1: processes divide the model or the sequences; remove one of them"
            )
        elif model is not None and model.indivisible:
            problem = model.indivisible
        elif model is not None and optimizer is not None and optimizer.highest_stage(model.dtype) < 2:
            problem = f"the optimizer {optimizer.type} computes with whole matrices; use another, such as adamw"
        elif names := [one for one in evaluators if not getattr(lookup("evaluator", one), "tensor_parallel", False)]:
            problem = f"the evaluator {names[0]} is for whole models; remove it, or run `arctic_training evaluate`"
        if problem:
            raise Problems([Problem(("model",), f"{value.model}, and {problem}")])
        return value

    @field_validator("activation_checkpoint_cpu_offload", "tiled_mlp_compute", check_fields=False)
    @classmethod
    def _check_layers(cls, value: bool, info: ValidationInfo) -> bool:
        model = info.data.get("model")
        if value and model is not None and not model.has_layers:
            raise ValueError("true, and the model is not one of transformers, with layers that are known; remove it")
        offloads = value and info.field_name == "activation_checkpoint_cpu_offload"
        if offloads and model is not None and model.keeps_activations:
            raise ValueError("true, and model.activation_checkpointing is off; remove one of them")
        mesh = info.data.get("mesh")
        if value and not offloads and mesh is not None and mesh.model > 1:
            raise ValueError("true, and mesh.model divides the MLPs; remove one of them")
        return value

    @field_validator("scheduler", check_fields=False)
    @classmethod
    def _check_learning_rates(cls, scheduler: SchedulerConfig, info: ValidationInfo) -> SchedulerConfig:
        rate, optimizer = scheduler.learning_rate, info.data.get("optimizer")
        if rate is not None and optimizer is not None:
            if "learning_rate" in optimizer.model_fields_set and optimizer.learning_rate != rate:
                text = f"{rate:g} contradicts the optimizer's {optimizer.learning_rate:g}; remove it here"
                raise Problems([Problem(("learning_rate",), text)])
            optimizer.learning_rate = rate
        if optimizer is not None and scheduler.min_lr > optimizer.learning_rate:
            text = f"{scheduler.min_lr:g} is above the optimizer's learning rate, {optimizer.learning_rate:g}; lower it"
            raise Problems([Problem(("min_lr",), text)])
        return scheduler

    @field_validator("checkpoint", check_fields=False)
    @classmethod
    def _check_checkpoints(cls, sections: list[CheckpointConfig]) -> list[CheckpointConfig]:
        require_consistent([section for section in sections if section.enabled])
        return sections

    @field_validator("wandb", check_fields=False)
    @classmethod
    def _check_wandb(cls, value: WandbSection, info: ValidationInfo) -> WandbSection:
        if value.enable and any(section.type == value.type for section in info.data.get("trackers") or []):
            raise Problems([Problem(("enable",), "true, and wandb is among the trackers too; remove one of them")])
        return value

    @field_validator("train_log_metrics_path", check_fields=False)
    @classmethod
    def _check_metrics_path(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        others = [section.path for section in info.data.get("trackers") or [] if section.type == "jsonl"]
        files = [str(file.absolute()) if file else "metrics.jsonl" for file in (value, *others)]
        if twice := next((file for file in files if files.count(file) > 1), None):
            raise ValueError(f"{twice} is written by two trackers; remove one, or give it another file")
        return value

    @field_validator("allow_changes", check_fields=False)
    @classmethod
    def _check_allow_changes(cls, keys: list[str]) -> list[str]:
        for key in keys:
            if (first := key.split(".")[0]) not in {*cls.model_fields, "global_batch_size", "stop"}:
                raise ValueError(f"{key}: {unknown(first, cls.model_fields)}")
        return keys

    @field_validator("nan_guard", check_fields=False)
    @classmethod
    def _check_nan_guard(cls, value: str, info: ValidationInfo) -> str:
        if value == "back":
            _require_saves_to_go_back_to(info, "back")
        return value

    @field_validator("callbacks", check_fields=False)
    @classmethod
    def _check_callbacks(cls, value: list[ComponentConfig], info: ValidationInfo) -> list[ComponentConfig]:
        for one in value:
            if getattr(one, "goes_back", False):
                _require_saves_to_go_back_to(info, f"{one.type} goes back")
        return value

    @field_validator("eval_interval", check_fields=False)
    @classmethod
    def _check_keep_best(cls, value: int, info: ValidationInfo) -> int:
        best = any(section.enabled and section.keep_best for section in info.data.get("checkpoint") or [])
        if best and not value and not info.data.get("evaluate_last"):
            raise ValueError("0, and the checkpoint section has keep_best, which needs evaluations")
        followers = [one.type for one in info.data.get("callbacks") or [] if getattr(one, "follows_evaluations", False)]
        if followers and not value:
            raise ValueError(f"0, and the callback {followers[0]} follows the evaluations; give the steps between them")
        return value

    @field_validator("evaluate_first", "evaluate_last", "eval_interval", check_fields=False)
    @classmethod
    def _check_evaluation(cls, value: bool | int, info: ValidationInfo) -> bool | int:
        data = info.data.get("data")
        if value and data is not None and not data.evaluates and not info.data.get("evaluators"):
            raise ValueError("there is nothing to evaluate on; give data.eval_sources or data.train_eval_split")
        return value

    @field_validator("epoch_length", check_fields=False)
    @classmethod
    def _check_epoch_length(cls, value: int, info: ValidationInfo) -> int:
        if value and "global_batch_size" in (info.data.get("allow_changes") or []):
            raise ValueError(
                f"{value} steps, whose rows follow from the global batch size; remove that from allow_changes"
            )
        return value

    @field_validator("train_iters", check_fields=False)
    @classmethod
    def _check_train_iters(cls, value: int, info: ValidationInfo) -> int:
        data, scheduler = info.data.get("data"), info.data.get("scheduler")
        if not value and data is not None and data.endless and not info.data.get("epoch_length"):
            raise ValueError("0, and a stream has no end; give the number of steps, or epoch_length")
        trainer = lookup("trainer", info.data["type"]) if "type" in info.data else None
        several = any(role.steps_per_update_key for role in getattr(trainer, "roles", ()) if role.name == "model")
        if value and not several and scheduler is not None and (scheduler.warmup_steps or 0) > value:
            text = f"{value} steps, and scheduler.warmup_steps is {scheduler.warmup_steps}"
            raise ValueError(f"{text}; raise it or lower that")
        return value

    @field_validator("gradient_clip_value", check_fields=False)
    @classmethod
    def _check_clip_value(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and (norm := info.data.get("max_grad_norm")):
            raise ValueError(f"{value:g} clips by value, and max_grad_norm: {norm:g} by the norm; give one of them")
        return value

    @field_validator("epochs", check_fields=False)
    @classmethod
    def _check_epochs(cls, value: int, info: ValidationInfo) -> int:
        evaluates = info.data.get("evaluate_first") or info.data.get("evaluate_last")
        if not value and info.data.get("train_iters") == 0 and not evaluates:
            raise ValueError("0, and no train_iters: there is nothing to train; give one of them")
        return value

    @field_validator("deepspeed", check_fields=False)
    @classmethod
    def _check_deepspeed(cls, value: dict[str, object], info: ValidationInfo) -> dict[str, object]:
        micro, steps, model, optimizer = (
            info.data.get(key) for key in ("micro_batch_size", "gradient_accumulation_steps", "model", "optimizer")
        )
        # those that are wrong themselves are reported already, and cannot be compared with
        skipped = [*([] if micro and steps else BATCH_KEYS), *([] if model else PRECISION_KEYS)]
        problems = deepspeed_problems(
            {key: one for key, one in value.items() if key not in skipped},
            micro_batch_size=micro or 1,
            gradient_accumulation_steps=steps or 1,
            sequence_parallel_size=info.data.get("sequence_parallel_size") or 1,
            model_parallel_size=mesh.model if (mesh := info.data.get("mesh")) else 1,
            dtype=model.dtype if model else "bf16",
            highest_stage=optimizer.highest_stage(model.dtype) if optimizer and model else 3,
            max_grad_norm=info.data.get("max_grad_norm"),
            gradient_clip_value=info.data.get("gradient_clip_value"),
        )
        if problems:
            raise Problems(problems)
        return value


def _require_saves_to_go_back_to(info: ValidationInfo, what: str) -> None:
    """Raises ValueError for a recipe that saves nothing during the run from which it could resume."""
    sections = [section for section in info.data.get("checkpoint") or [] if section.enabled]
    saves = [section for section in sections if section.save_every_n_steps or section.save_every_n_epochs]
    if not any(lookup("checkpoint_engine", one.type).resumable for one in saves):  # type: ignore[attr-defined]
        section = "checkpoint: {type: deepspeed, save_every_n_steps: ...}"
        raise ValueError(f"{what}, and no checkpoint is saved during the run to return to; give {section}")


def shares_sequences(trainer: type) -> bool:
    """Returns whether a trainer states that its loss, inherited or its own, is right on a part of a sequence."""
    return bool(stated(trainer, "shares_sequences", "loss"))
