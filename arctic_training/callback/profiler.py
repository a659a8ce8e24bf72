"""Records a few steps with torch's profiler: a trace and a table in the run folder."""

import torch
from pydantic import Field, NonNegativeInt

from arctic_training.callback.callback import Callback
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanInt
from arctic_training.distributed import process_group
from arctic_training.logging import logger


class ProfilerConfig(ComponentConfig):
    """Options of the callback `profiler`."""

    start: HumanInt = Field(default=10, ge=0)
    """Steps before those that are recorded: the first ones are slower than others."""
    steps: HumanInt = Field(default=3, ge=1)
    """Steps that are recorded, with the evaluations and saves between them."""
    ranks: list[NonNegativeInt] = Field(default=[0], min_length=1)
    """The ranks that record."""
    memory: bool = False
    """Record what allocates and frees memory."""
    shapes: bool = False
    """Record the shapes of the tensors of each operator."""
    stack: bool = False
    """Record the lines of Python that call each operator; slow."""
    rows: HumanInt = Field(default=40, ge=1)
    """Rows of the table: the operators that take longest, or with ``memory`` allocate most."""


class Profiler(Callback[ProfilerConfig]):
    """Records a few steps with torch's profiler.

    ``profile/step_<first>_rank_<rank>.json.gz`` in the run folder is a trace for Perfetto or Chrome's
    ``about:tracing``, ``.txt`` the table. Losses are the same; the steps that are recorded take longer.
    """

    name = "profiler"
    _profile: torch.profiler.profile | None = None
    _first = 0
    """The first step that is recorded, from 1."""

    def pre_train(self, trainer: TrainerView) -> None:
        """Begins to record when the first step is to be recorded."""
        step = trainer.progress.step
        if self._is_on and step > self.config.start:
            logger.warning(f"callbacks.profiler: the run resumes at step {step}, beyond start: {self.config.start}")
        self._begin(trainer)

    def post_after_update(self, trainer: TrainerView) -> None:
        """Begins or ends to record when it is due."""
        if self._profile is None:
            self._begin(trainer)
        elif trainer.progress.step >= self.config.start + self.config.steps:
            self._end(trainer)

    def post_train(self, trainer: TrainerView) -> None:
        """Ends to record in a run that has fewer steps."""
        if self._profile is not None:
            self._end(trainer)
        elif self._is_on and not self._first:
            logger.warning(f"callbacks.profiler: nothing was recorded: start is {self.config.start}")

    def pre_exception(self, trainer: TrainerView) -> None:
        """Ends to record in a run that ends by an error."""
        if self._profile is not None:
            self._end(trainer)

    @property
    def _is_on(self) -> bool:
        return process_group.rank() in self.config.ranks

    def _begin(self, trainer: TrainerView) -> None:
        config = self.config
        if not self._is_on or trainer.progress.step != config.start:
            return
        self._first = config.start + 1
        self._profile = torch.profiler.profile(
            record_shapes=config.shapes, profile_memory=config.memory, with_stack=config.stack
        )
        self._profile.start()

    def _end(self, trainer: TrainerView) -> None:
        profile, self._profile = self._profile, None
        assert profile is not None
        profile.stop()
        path = trainer.run_dir / "profile" / f"step_{self._first}_rank_{process_group.rank()}.json.gz"
        device = "cuda" if torch.cuda.is_available() else "cpu"
        order = f"self_{device}_memory_usage" if self.config.memory else f"self_{device}_time_total"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            profile.export_chrome_trace(str(path))
            averages = profile.key_averages(group_by_input_shape=self.config.shapes)
            table = averages.table(sort_by=order, row_limit=self.config.rows, max_name_column_width=80)
            path.with_name(path.name.replace(".json.gz", ".txt")).write_text(table, encoding="utf-8")
            logger.success(f"the profile of the steps {self._first} to {trainer.progress.step} is in {path}")
        except (OSError, RuntimeError) as error:
            logger.error(f"the profile {path} could not be written: {error}")
