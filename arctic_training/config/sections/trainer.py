"""The top level of a recipe: the keys of every trainer."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, SerializeAsAny, ValidationInfo, field_validator, model_validator

from arctic_training.config.checks.files import invalid_path, unappendable, unwritable
from arctic_training.config.checks.not_built import TRAINER
from arctic_training.config.checks.problems import Problem, problems_of_keys
from arctic_training.config.recipe.node import Node, redacted_mapping
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.changes import RESUME_SAFE, ResumeSafe
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.config.sections.component import (
    AnyComponent,
    TrainerComponent,
    each,
    listed,
    marks,
    parse_component,
    resolve_component,
)
from arctic_training.config.sections.cross_field import CrossFieldValidation
from arctic_training.config.sections.data import DataConfig
from arctic_training.config.sections.deepspeed import TRAINED_KEYS
from arctic_training.config.sections.logger import LoggerConfig
from arctic_training.config.sections.mesh import MeshConfig
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.optimizer import OptimizerConfig
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.config.sections.tokenizer import TokenizerConfig
from arctic_training.config.sections.types import Duration, HumanFloat, HumanInt
from arctic_training.config.sections.wandb import WandbSection
from arctic_training.registry import lookup


def _empty() -> Any:
    """Returns the default of a section: an empty one, which the class that reads it fills with its defaults."""
    return Field(default_factory=dict)


class TrainerConfig(CrossFieldValidation):
    """The top level of a recipe: the keys of every trainer.

    The order of the fields matters: a validator of `CrossFieldValidation` sees the fields above its own.
    """

    not_built = TRAINER

    type: str
    """Name of the trainer."""
    code: Annotated[Path | None, RESUME_SAFE] = None
    """Python file with the user's own classes, relative to the recipe (default: ``train.py``, where it exists)."""
    skip_validation: Annotated[bool, RESUME_SAFE] = False
    """Allow a component that the trainer does not list."""
    output_dir: Annotated[Path | None, RESUME_SAFE] = None
    """The run folder (default: ``runs/<name of the recipe>`` beside the recipe)."""

    model: Annotated[SerializeAsAny[ModelConfig], TrainerComponent("model_factory_type")] = _empty()
    """The model to train."""
    data: Annotated[SerializeAsAny[DataConfig], TrainerComponent("data_factory_type")] = _empty()
    """The data to train on."""
    tokenizer: Annotated[SerializeAsAny[TokenizerConfig], TrainerComponent("tokenizer_factory_type")] = _empty()
    """The tokenizer of the data."""
    optimizer: Annotated[SerializeAsAny[OptimizerConfig], TrainerComponent("optimizer_factory_type")] = _empty()
    """The optimizer."""
    scheduler: Annotated[SerializeAsAny[SchedulerConfig], TrainerComponent("scheduler_factory_type")] = _empty()
    """The schedule of the learning rate."""
    checkpoint: Annotated[
        list[SerializeAsAny[CheckpointConfig]], TrainerComponent("checkpoint_engine_type"), RESUME_SAFE
    ] = []
    """The checkpoints to save: one section or a list of them."""
    resume: Annotated[Path | None, RESUME_SAFE] = None
    """Resume from this checkpoint: a folder ``step_<N>``, or a folder of them, whose newest is taken. It is refused
    when it is incomplete or of another run, and no other takes its place. With ``auto_resume`` the run's own
    checkpoints, when there are any, come first."""
    allow_changes: Annotated[list[str], RESUME_SAFE] = []
    """What may differ from the checkpoint: keys of the recipe, such as ``optimizer.lr``, or sections, such as ``data``;
    ``data.samples`` and ``data.rows`` are the prepared data, ``tokenizer.files`` the tokenizer itself,
    ``global_batch_size`` the samples of a step on all ranks. Any other change is reported and refused. ``stop``
    continues a run that a callback has stopped for good."""
    callbacks: Annotated[list[SerializeAsAny[ComponentConfig]], AnyComponent("callback")] = []
    """Callbacks: a list of names or of sections."""
    evaluators: Annotated[list[SerializeAsAny[ComponentConfig]], AnyComponent("evaluator"), RESUME_SAFE] = []
    """What every evaluation measures beside the loss."""
    trackers: Annotated[list[SerializeAsAny[ComponentConfig]], AnyComponent("tracker"), RESUME_SAFE] = []
    """Where the metrics go beside ``metrics.jsonl`` in the run folder."""
    logger: Annotated[LoggerConfig, RESUME_SAFE] = LoggerConfig()
    """The log: files and levels."""
    wandb: Annotated[WandbSection, RESUME_SAFE] = WandbSection()
    """The run on Weights & Biases."""

    epoch_length: HumanInt = Field(default=0, ge=0)
    """Optimizer steps of an epoch, of a stream too; 0: an epoch is a pass over the data. The data go on from one epoch
    to the next, in another order after each pass, and every step is full."""
    train_iters: HumanInt = Field(default=0, ge=0)
    """If above 0, the number of optimizer steps, instead of ``epochs``."""
    evaluate_first: Annotated[bool, RESUME_SAFE] = False
    """Evaluate before the first step."""
    evaluate_last: Annotated[bool, RESUME_SAFE] = False
    """Evaluate after the last step; not when a signal or the time limit stops the run before it."""
    epochs: int = Field(default=1, ge=0)
    """Passes over the data, or epochs of ``epoch_length`` steps; 0: evaluate only."""
    min_iterations: HumanInt = Field(default=0, ge=0)
    """Repeat the training data until they give this many steps."""
    exit_iteration: Annotated[HumanInt, RESUME_SAFE] = Field(default=0, ge=0)
    """Stop after this step; 0: do not."""
    exit_iteration_this_run: Annotated[HumanInt, RESUME_SAFE] = Field(default=0, ge=0)
    """Stop after this many steps since the start or resume of the run, and save what a restart can resume from; 0: do
    not."""
    micro_batch_size: Annotated[int, RESUME_SAFE] = Field(default=1, ge=1)
    """Samples of a micro-batch: what a rank computes at once, or the ranks that share sequences together."""
    gradient_accumulation_steps: Annotated[int, RESUME_SAFE] = Field(default=1, ge=1)
    """Micro-batches of each rank for one optimizer step."""
    max_grad_norm: HumanFloat | None = Field(default=None, ge=0)
    """Largest norm of the gradient of a step, over all weights; a larger one is scaled down to it. 0: none is. By
    default 1, or ``deepspeed.gradient_clipping``, or 0 with ``gradient_clip_value``."""
    gradient_clip_value: HumanFloat | None = Field(default=None, gt=0)
    """Largest absolute value of an element of the gradient of a step; a larger one becomes it. In place of
    ``max_grad_norm``."""
    sequence_parallel_size: Annotated[int, RESUME_SAFE] = Field(default=1, ge=1)
    """Consecutive ranks that share every sequence, for sequences that are too long for one: each has a part of the
    tokens, and for attention all tokens of some heads. The number of the model's heads must be a multiple of it; losses
    do not depend on it."""
    mesh: Annotated[MeshConfig, RESUME_SAFE] = MeshConfig()
    """How the processes divide rows and the weights of the model: ``{data: 2, model: 2}``."""
    activation_checkpoint_cpu_offload: Annotated[bool, RESUME_SAFE] = False
    """Compute the layers again for the gradient, and keep their inputs until then in main memory: pinned, and copied
    while the GPU computes. Without a GPU they are there anyway."""
    tiled_mlp_compute: Annotated[bool, RESUME_SAFE] = False
    """Compute the MLP of each layer for some tokens at a time, as many as a hidden state has elements, and again for
    the gradient: what it keeps inside does not grow with the length of the sequence. Losses and gradients stay the same
    but for rounding."""
    seed: int = Field(default=42, ge=0, lt=2**63)
    """Seed of weights and dropout; the order of the data has its own (``data.seed``)."""

    loss_log_interval: Annotated[HumanInt, RESUME_SAFE] = Field(default=1, ge=0)
    """Steps between prints of the loss; 0: never."""
    train_log_iter_interval: Annotated[HumanInt, RESUME_SAFE] = Field(default=1, ge=0)
    """Steps between records of the training metrics; 0: never."""
    peak_tflops: Annotated[HumanFloat, RESUME_SAFE] = Field(default=0.0, ge=0)
    """What one device computes at most in ``model.dtype``, in TFLOP/s without sparsity, for the metric ``mfu``; 0: by a
    table of GPUs."""
    train_log_metrics_path: Annotated[Path | None, RESUME_SAFE] = None
    """File of the recorded metrics (default: ``metrics.jsonl`` in the run folder)."""
    eval_interval: Annotated[HumanInt, RESUME_SAFE] = Field(default=0, ge=0)
    """Steps between evaluations; 0: none during training."""
    eval_log_iter_interval: Annotated[HumanInt, RESUME_SAFE] = Field(default=1, ge=0)
    """Record every n-th evaluation of ``eval_interval``, and always the first and the last of the run; 0: none."""
    overfit_first_batch: bool = False
    """Train on the first batch again and again."""
    kill_switch_path: Annotated[Path | None, RESUME_SAFE] = None
    """When this file appears, the run saves and stops (default: ``kill_switch`` in the run folder)."""
    mem_profiler: Annotated[Literal["step", "e2e"] | None, RESUME_SAFE] = None
    """Record the memory of the GPU, by the callback ``memory_profiler``: of single steps or of the whole run."""
    mem_profiler_dir: Annotated[Path | None, RESUME_SAFE] = None
    """Where its snapshots are written (default: ``memory`` in the run folder)."""
    mem_profiler_max_entries: Annotated[HumanInt, RESUME_SAFE] = Field(default=100_000, ge=1)
    """Allocations that it keeps."""
    nan_guard: Annotated[Literal["stop", "skip", "back"], RESUME_SAFE] = "stop"
    """What happens at a loss or gradient that is not finite: ``stop`` ends the run with exit code 3, ``skip`` skips the
    step, ``back`` returns to the newest checkpoint and skips those data. The weights never take it in."""
    nan_guard_limit: Annotated[int, RESUME_SAFE] = Field(default=10, ge=0)
    """Maximum consecutive skipped steps (``skip``) or total rollbacks (``back``) before the run fails."""
    time_limit: Annotated[Duration, RESUME_SAFE] = Field(default=0.0, ge=0)
    """Time that this start of the run may take (``3h50m``, or seconds): before it is over, the run saves and exits with
    code 75. 0: the time that SLURM gives it."""
    hang_timeout: Annotated[Duration, RESUME_SAFE] = Field(default=1800.0, ge=0)
    """Abort with exit code 70 when a rank makes no progress for this long (``1800``, ``45m``); 0 disables it. User code
    that takes longer between two batches calls ``arctic_training.distributed.heartbeat.record_heartbeat()``
    meanwhile."""
    # last, since it must not contradict the keys above
    deepspeed: Annotated[dict[str, Any], ResumeSafe(but=TRAINED_KEYS)] = {}
    """DeepSpeed's own config; missing keys are filled in."""

    _recipe: Path | None = PrivateAttr(default=None)
    _tree: Node | None = PrivateAttr(default=None)
    _missing_objects: list[str] = PrivateAttr(default_factory=list)

    @property
    def recipe_path(self) -> Path | None:
        """The recipe file, when there is one."""
        return self._recipe

    @property
    def ranks_per_row(self) -> int:
        """The number of consecutive ranks that read the same rows: they share sequences, or divide a model."""
        return self.sequence_parallel_size * self.mesh.model

    @property
    def missing_objects(self) -> list[str]:
        """Messages for models and rows that the recipe lacks, if none are passed to the trainer."""
        return self._missing_objects

    @property
    def recipe_dir(self) -> Path:
        """The folder that ``code`` and template files are relative to."""
        return self._recipe.parent if self._recipe else Path.cwd()

    def dump(self) -> dict[str, object]:
        """Returns the recipe with all defaults as plain values; values from the environment as their references."""
        return redacted_mapping(self.model_dump(mode="json"), self._tree)

    def missing_paths(self) -> list[Problem]:
        folder = self.output_dir or (self.recipe_dir / "runs" if self._recipe else None)
        texts = {
            "output_dir": unwritable(folder),
            "train_log_metrics_path": unappendable(self.train_log_metrics_path),
            "resume": f"{self.resume}: no such folder" if self.resume and not self.resume.expanduser().is_dir() else "",
            "kill_switch_path": self._existing_kill_switch(),
        }
        problems = problems_of_keys(texts)
        checkpoints = [(("checkpoint", str(n), "output_dir"), one.output_dir) for n, one in enumerate(self.checkpoint)]
        for path, one in [(("output_dir",), self.output_dir), *checkpoints]:
            if one is not None and self._is_in_model(one):
                problems.append(Problem(path, f"{one} lies in the folder of the model; choose another"))
        return problems

    def _is_in_model(self, folder: Path) -> bool:
        """Returns whether a folder to write to lies in that of the model, whose part its files would be."""
        name = str(getattr(self.model, "name_or_path", ""))
        if not name or invalid_path(name) or invalid_path(str(folder)):
            return False
        model = os.path.realpath(os.path.expanduser(name))
        return os.path.isdir(model) and Path(os.path.realpath(folder)).is_relative_to(model)

    def _existing_kill_switch(self) -> str:
        run_dir = self.output_dir or (self.recipe_dir / "runs" / self._recipe.stem if self._recipe else None)
        path = self.kill_switch_path or (run_dir / "kill_switch" if run_dir else None)
        exists = path is not None and not invalid_path(str(path)) and path.exists()
        return f"{path} exists already and would stop the run; remove it" if exists else ""

    @model_validator(mode="before")
    @classmethod
    def _type_first(cls, recipe: object) -> object:
        # the trainer decides which class reads each section, so its name must be read before them
        if isinstance(recipe, dict) and "type" in recipe:
            first = {name: recipe[name] for name in ("type", "skip_validation") if name in recipe}
            return first | {name: value for name, value in recipe.items() if name not in first}
        return recipe

    @field_validator("*", mode="before")
    @classmethod
    def _read_section(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[info.field_name or ""]
        one_of = marks(field, TrainerComponent)
        for mark in marks(field, AnyComponent):
            return each(value, partial(parse_component, mark.kind))
        if not one_of or "type" not in info.data:
            return value
        trainer = lookup("trainer", info.data["type"])
        allowed = listed(getattr(trainer, one_of[0].types))
        skip = bool(info.data.get("skip_validation"))
        if getattr(field.annotation, "__origin__", None) is list:
            return each(value, lambda one: resolve_component(one, allowed, skip_validation=skip))
        section = resolve_component(value, allowed, skip_validation=skip)
        roles = getattr(trainer, "roles", ())
        role = next((role for role in roles if role.name == info.field_name), None)
        if role is not None and isinstance(section, ModelConfig):
            section.fit_role(role.tasks_beside(roles, info.data), role.num_labels)
        return section
