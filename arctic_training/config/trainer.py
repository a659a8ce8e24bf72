"""The recipe as a whole: what every trainer's recipe may say."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, SerializeAsAny, ValidationInfo, field_validator, model_validator

from arctic_training.config.base import BaseConfig, ComponentConfig
from arctic_training.config.checkpoint import CheckpointConfig
from arctic_training.config.component import Shelf, Slot, choose, from_shelf, listed
from arctic_training.config.data import DataConfig
from arctic_training.config.logger import LoggerConfig
from arctic_training.config.model import ModelConfig
from arctic_training.config.numbers import HumanInt
from arctic_training.config.optimizer import OptimizerConfig
from arctic_training.config.scheduler import SchedulerConfig
from arctic_training.config.tokenizer import TokenizerConfig
from arctic_training.registry import lookup


class WandbConfig(BaseConfig):
    enable: bool = False
    entity: str | None = None
    project: str = "arctic-training"
    name: str | None = None


class TrainerConfig(BaseConfig):
    type: str
    """Name of the trainer."""
    code: Path | None = None
    """Python file, beside the recipe, with the user's own classes; ``train.py`` when there is one."""
    skip_validation: bool = False
    """Allow a component that the trainer does not list."""
    output_dir: Path | None = None
    """The run folder; ``runs/<name of the recipe>`` beside the recipe when left out."""

    model: Annotated[SerializeAsAny[ModelConfig], Slot("model_factory_type")] = Field(default_factory=dict)
    data: Annotated[SerializeAsAny[DataConfig], Slot("data_factory_type")] = Field(default_factory=dict)
    tokenizer: Annotated[SerializeAsAny[TokenizerConfig], Slot("tokenizer_factory_type")] = Field(default_factory=dict)
    optimizer: Annotated[SerializeAsAny[OptimizerConfig], Slot("optimizer_factory_type")] = Field(default_factory=dict)
    scheduler: Annotated[SerializeAsAny[SchedulerConfig], Slot("scheduler_factory_type")] = Field(default_factory=dict)
    checkpoint: Annotated[list[SerializeAsAny[CheckpointConfig]], Slot("checkpoint_engine_type")] = []
    """One section or a list of them."""
    callbacks: Annotated[list[SerializeAsAny[ComponentConfig]], Shelf("callback")] = []
    evaluators: Annotated[list[SerializeAsAny[ComponentConfig]], Shelf("evaluator")] = []
    """What is measured at every evaluation beside the loss."""
    trackers: Annotated[list[SerializeAsAny[ComponentConfig]], Shelf("tracker")] = []
    """Where the numbers of the run go beside ``metrics.jsonl`` in the run folder."""
    logger: LoggerConfig = LoggerConfig()
    wandb: WandbConfig = WandbConfig()
    deepspeed: dict[str, Any] = {}
    """Passed to DeepSpeed; what is left out is filled in."""

    epochs: int = Field(default=1, ge=0)
    train_iters: HumanInt = Field(default=0, ge=0)
    """If above 0, the number of optimizer updates, whatever ``epochs`` says."""
    min_iterations: HumanInt = Field(default=0, ge=0)
    """Repeat the training data until that many updates are possible."""
    exit_iteration: HumanInt = Field(default=0, ge=0)
    """Stop after that update; 0: do not."""
    exit_iteration_this_run: HumanInt = Field(default=0, ge=0)
    """Stop after that many updates of this run, a resumed one counting from where it resumed; 0: do not."""
    micro_batch_size: int = Field(default=1, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    sequence_parallel_size: int = Field(default=1, ge=1)
    expert_parallel_size: int = Field(default=1, ge=1)
    activation_checkpoint_cpu_offload: bool = False
    tiled_mlp_compute: bool = False
    arctic_moe: bool | Literal["auto"] = False
    seed: int = Field(default=42, ge=0)

    loss_log_interval: HumanInt = Field(default=1, ge=0)
    """Optimizer updates between prints of the loss; 0: never."""
    train_log_iter_interval: HumanInt = Field(default=1, ge=0)
    """Optimizer updates between records of the training metrics; 0: never."""
    train_log_metrics_path: Path | None = None
    """File of the recorded metrics; ``metrics.jsonl`` in the run folder when left out."""
    eval_interval: HumanInt = Field(default=0, ge=0)
    """Optimizer updates between evaluations; 0: none between."""
    eval_log_iter_interval: HumanInt = Field(default=1, ge=0)
    """Evaluations between records of their metrics; 0: never."""
    evaluate_first: bool = False
    """Evaluate before the first update."""
    evaluate_last: bool = False
    """Evaluate after the last update."""
    overfit_first_batch: bool = False
    """Train on the first batch again and again."""
    mem_profiler: Literal["step", "e2e"] | None = None
    mem_profiler_dir: Path | None = None
    mem_profiler_max_entries: HumanInt = Field(default=100_000, ge=1)
    kill_switch_path: Path | None = None
    """When this file appears, the run saves and stops; ``kill_switch`` in the run folder when left out."""

    _recipe: Path | None = PrivateAttr(default=None)
    """The recipe file, when there is one."""

    @property
    def recipe_dir(self) -> Path:
        """What ``extends``, ``code`` and template files are relative to."""
        return self._recipe.parent if self._recipe else Path.cwd()

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
        marks = field.metadata
        slot = next((mark for mark in marks if isinstance(mark, Slot)), None)
        shelf = next((mark for mark in marks if isinstance(mark, Shelf)), None)
        if shelf is not None:
            return [from_shelf(shelf.kind, one) for one in (value if isinstance(value, list) else [value])]
        if slot is None or "type" not in info.data:
            return value
        allowed = listed(getattr(lookup("trainer", info.data["type"]), slot.types))
        skip = bool(info.data.get("skip_validation"))
        if field.annotation is not None and getattr(field.annotation, "__origin__", None) is list:
            several = value if isinstance(value, list) else [value]
            return [choose(one, allowed, skip_validation=skip) for one in several]
        return choose(value, allowed, skip_validation=skip)
