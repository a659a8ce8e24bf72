"""The recipe as a whole: what every trainer's recipe may say."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, SerializeAsAny, ValidationInfo, field_validator, model_validator

from arctic_training.config.checks.changes import RESUME_SAFE, ResumeSafe
from arctic_training.config.checks.cross_field import CrossFieldValidation
from arctic_training.config.checks.deepspeed import TRAINED_KEYS
from arctic_training.config.checks.not_built import require_built
from arctic_training.config.checks.paths import unwritable
from arctic_training.config.checks.problems import Problem
from arctic_training.config.recipe.node import Node, redacted
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.config.sections.component import (
    AnyComponent,
    TrainerComponent,
    each,
    listed,
    parse_component,
    resolve_component,
)
from arctic_training.config.sections.data import DataConfig
from arctic_training.config.sections.duration import Duration
from arctic_training.config.sections.logger import LoggerConfig
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.numbers import HumanInt
from arctic_training.config.sections.optimizer import OptimizerConfig
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.config.sections.tokenizer import TokenizerConfig
from arctic_training.config.sections.wandb import WandbSection
from arctic_training.registry import lookup


def _empty() -> Any:
    """A section that is left out: the class that reads it fills it in."""
    return {}


class TrainerConfig(CrossFieldValidation):
    type: str
    """Name of the trainer."""
    code: Annotated[Path | None, RESUME_SAFE] = None
    """Python file, beside the recipe, with the user's own classes; ``train.py`` when there is one."""
    skip_validation: Annotated[bool, RESUME_SAFE] = False
    """Allow a component that the trainer does not list."""
    output_dir: Annotated[Path | None, RESUME_SAFE] = None
    """The run folder; ``runs/<name of the recipe>`` beside the recipe when left out."""

    model: Annotated[SerializeAsAny[ModelConfig], TrainerComponent("model_factory_type")] = Field(
        default_factory=_empty
    )
    """The model that is trained."""
    data: Annotated[SerializeAsAny[DataConfig], TrainerComponent("data_factory_type")] = Field(default_factory=_empty)
    """What it is trained on."""
    tokenizer: Annotated[SerializeAsAny[TokenizerConfig], TrainerComponent("tokenizer_factory_type")] = Field(
        default_factory=_empty
    )
    """What makes tokens of the data."""
    optimizer: Annotated[SerializeAsAny[OptimizerConfig], TrainerComponent("optimizer_factory_type")] = Field(
        default_factory=_empty
    )
    """What takes the steps."""
    scheduler: Annotated[SerializeAsAny[SchedulerConfig], TrainerComponent("scheduler_factory_type")] = Field(
        default_factory=_empty
    )
    """How the learning rate changes over the run."""
    checkpoint: Annotated[
        list[SerializeAsAny[CheckpointConfig]], TrainerComponent("checkpoint_engine_type"), RESUME_SAFE
    ] = []
    """One section or a list of them."""
    resume: Annotated[Path | None, RESUME_SAFE] = None
    """Go on from this checkpoint: a folder ``step_<N>``, or a folder of them, whose newest is taken. It is refused when
    it is not whole, or not of this run, and no other takes its place. With ``auto_resume`` the run's own checkpoints,
    when there are any, come first."""
    allow_changes: Annotated[list[str], RESUME_SAFE] = []
    """What may be other than when the checkpoint was saved: keys of the recipe, such as ``optimizer.lr``, or whole
    sections, such as ``data``; ``data.samples`` and ``data.rows`` are what the data were made into, ``tokenizer.files``
    the tokenizer itself, ``global_batch_size`` the samples of an update on all processes. A change that is not named is
    told, and refused. ``stop`` lets a run train on that a callback has stopped for good."""
    callbacks: Annotated[list[SerializeAsAny[ComponentConfig]], AnyComponent("callback")] = []
    """What is done at certain moments of the run: a list of names, or of sections."""
    evaluators: Annotated[list[SerializeAsAny[ComponentConfig]], AnyComponent("evaluator"), RESUME_SAFE] = []
    """What is measured at every evaluation beside the loss."""
    trackers: Annotated[list[SerializeAsAny[ComponentConfig]], AnyComponent("tracker"), RESUME_SAFE] = []
    """Where the numbers of the run go beside ``metrics.jsonl`` in the run folder."""
    logger: Annotated[LoggerConfig, RESUME_SAFE] = LoggerConfig()
    """The log: where it goes, and how much of it."""
    wandb: Annotated[WandbSection, RESUME_SAFE] = WandbSection()
    """The run on Weights & Biases."""

    train_iters: HumanInt = Field(default=0, ge=0)
    """If above 0, the number of optimizer updates, whatever ``epochs`` says."""
    evaluate_first: Annotated[bool, RESUME_SAFE] = False
    """Evaluate before the first update."""
    evaluate_last: Annotated[bool, RESUME_SAFE] = False
    """Evaluate after the last update; not when the run is asked to stop before it, by a signal or the time limit."""
    epochs: int = Field(default=1, ge=0)
    """How often the data are gone through; 0: only evaluate."""
    min_iterations: HumanInt = Field(default=0, ge=0)
    """Repeat the training data until that many updates are possible."""
    exit_iteration: Annotated[HumanInt, RESUME_SAFE] = Field(default=0, ge=0)
    """Stop after that update; 0: do not."""
    exit_iteration_this_run: Annotated[HumanInt, RESUME_SAFE] = Field(default=0, ge=0)
    """Stop after that many updates of this run, a resumed one counting from where it resumed, and save what a restart
    can go on from; 0: do not."""
    micro_batch_size: Annotated[int, RESUME_SAFE] = Field(default=1, ge=1)
    """Samples that a process computes at once; of several that share sequences, all of them together."""
    gradient_accumulation_steps: Annotated[int, RESUME_SAFE] = Field(default=1, ge=1)
    """Micro-batches of each process that make one optimizer update."""
    sequence_parallel_size: Annotated[int, RESUME_SAFE] = Field(default=1, ge=1)
    """Processes with consecutive ranks that share every sequence, for those that are too long for one: each has a part
    of its tokens, and for attention all tokens of some heads. The model's heads are a multiple of this number; losses
    are the same for any."""
    expert_parallel_size: int = Field(default=1, ge=1)
    """Processes that share the experts of a layer; above 1 not built yet."""
    activation_checkpoint_cpu_offload: bool = False
    """Keep the inputs of layers in the main memory; not built yet."""
    tiled_mlp_compute: bool = False
    """Compute MLPs a piece of the sequence at a time; not built yet."""
    arctic_moe: bool | Literal["auto"] = False
    """Layers of experts by grouped products; not built yet."""
    seed: int = Field(default=42, ge=0, lt=2**63)
    """Seed of weights and dropout; the order of the data has its own."""

    loss_log_interval: Annotated[HumanInt, RESUME_SAFE] = Field(default=1, ge=0)
    """Optimizer updates between prints of the loss; 0: never."""
    train_log_iter_interval: Annotated[HumanInt, RESUME_SAFE] = Field(default=1, ge=0)
    """Optimizer updates between records of the training metrics; 0: never."""
    train_log_metrics_path: Annotated[Path | None, RESUME_SAFE] = None
    """File of the recorded metrics; ``metrics.jsonl`` in the run folder when left out."""
    eval_interval: Annotated[HumanInt, RESUME_SAFE] = Field(default=0, ge=0)
    """Optimizer updates between evaluations; 0: none between."""
    eval_log_iter_interval: Annotated[HumanInt, RESUME_SAFE] = Field(default=1, ge=0)
    """Every how many of the evaluations of ``eval_interval`` are recorded, the first and the last of the run always;
    0: none at all."""
    overfit_first_batch: bool = False
    """Train on the first batch again and again."""
    mem_profiler: Annotated[Literal["step", "e2e"] | None, RESUME_SAFE] = None
    """Record the memory of each step, or of the whole run; not built yet."""
    mem_profiler_dir: Annotated[Path | None, RESUME_SAFE] = None
    """Where the records of the memory go; not built yet."""
    mem_profiler_max_entries: Annotated[HumanInt, RESUME_SAFE] = Field(default=100_000, ge=1)
    """Most records of the memory that are kept; not built yet."""
    kill_switch_path: Annotated[Path | None, RESUME_SAFE] = None
    """When this file appears, the run saves and stops; ``kill_switch`` in the run folder when left out."""
    nan_guard: Annotated[Literal["stop", "skip", "back"], RESUME_SAFE] = "stop"
    """What a loss or gradient that is not finite does: end the run with exit code 3, skip the update, or send the run
    back to its newest checkpoint and leave those data out. The weights never take it in."""
    nan_guard_limit: Annotated[int, RESUME_SAFE] = Field(default=10, ge=0)
    """With ``skip`` so many updates in a row, with ``back`` so many times in all, are borne; one more ends the run."""
    time_limit: Annotated[Duration, RESUME_SAFE] = Field(default=0.0, ge=0)
    """How long this start of the run may take (3h50m, or seconds): before that it saves, and ends with exit code 75.
    0: as long as SLURM gives it."""
    hang_timeout: Annotated[Duration, RESUME_SAFE] = Field(default=1800.0, ge=0)
    """A run of which a process has not come on for so long (seconds, or 45m) ends with exit code 70; 0: never. Code of
    one's own that takes longer between two batches calls ``arctic_training.distributed.heartbeat.record_heartbeat()``
    meanwhile."""
    # last, because what it says is held against what the keys above say
    deepspeed: Annotated[dict[str, Any], ResumeSafe(but=TRAINED_KEYS)] = {}
    """Passed to DeepSpeed; what is left out is filled in."""

    _recipe: Path | None = PrivateAttr(default=None)
    _tree: Node | None = PrivateAttr(default=None)
    _secrets: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def recipe_path(self) -> Path | None:
        """The recipe file, when there is one."""
        return self._recipe

    @property
    def recipe_dir(self) -> Path:
        """What ``extends``, ``code`` and template files are relative to."""
        return self._recipe.parent if self._recipe else Path.cwd()

    def dump(self) -> dict[str, Any]:
        """The whole recipe, defaults filled in, as plain values; what came from the environment as it was written."""
        dumped: dict[str, Any] = redacted(self.model_dump(mode="json"), self._tree, self._secrets)
        return dumped

    def missing_paths(self) -> list[Problem]:
        folder = self.output_dir or (self.recipe_dir / "runs" if self._recipe else None)
        problems = [Problem(("output_dir",), told)] if (told := unwritable(folder)) else []
        if self.resume is not None and not self.resume.expanduser().is_dir():
            problems.append(Problem(("resume",), f"{self.resume}: no such folder"))
        return problems

    @model_validator(mode="before")
    @classmethod
    def _named(cls, recipe: Any) -> Any:
        # the trainer's name decides which class reads each section, so it must be read before them
        if isinstance(recipe, dict) and "type" in recipe:
            first = {name: recipe[name] for name in ("type", "skip_validation") if name in recipe}
            return first | {name: value for name, value in recipe.items() if name not in first}
        return recipe

    @field_validator("*", mode="before")
    @classmethod
    def _read_section(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        slot = next((mark for mark in field.metadata if isinstance(mark, TrainerComponent)), None)
        shelf = next((mark for mark in field.metadata if isinstance(mark, AnyComponent)), None)
        if shelf is not None:
            kind = shelf.kind
            return each(value, lambda one: parse_component(kind, one))
        if slot is None or "type" not in info.data:
            return value
        allowed = listed(getattr(lookup("trainer", info.data["type"]), slot.types))
        skip = bool(info.data.get("skip_validation"))
        if getattr(field.annotation, "__origin__", None) is list:
            return each(value, lambda one: resolve_component(one, allowed, skip_validation=skip))
        return resolve_component(value, allowed, skip_validation=skip)

    _built = field_validator(
        "expert_parallel_size",
        "activation_checkpoint_cpu_offload",
        "tiled_mlp_compute",
        "arctic_moe",
        "mem_profiler",
        "mem_profiler_dir",
        "mem_profiler_max_entries",
    )(require_built)
