"""The base of factories of learning rate schedules."""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Self, TypeVar, cast

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from arctic_training.callback.hooks import hook
from arctic_training.component import Factory, TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.errors.types import RecipeError

C = TypeVar("C", bound=SchedulerConfig)


class SchedulerFactory(Factory[C, LRScheduler], kind="scheduler_factory"):
    """Makes a learning rate schedule. A subclass defines `create_scheduler`. Every length is in optimizer steps; with
    ``interval: epoch`` it makes a schedule of epochs, in which `self.trainer` has the lengths of the run in epochs."""

    config_type: ClassVar[type[ComponentConfig]] = SchedulerConfig

    def __call__(self, optimizer: Optimizer) -> LRScheduler:
        """Returns the schedule of an optimizer. Raises `RecipeError` where `check` does."""
        self.check()
        by_epoch = self.config.interval == "epoch"
        schedule = self._create_by_epoch(optimizer) if by_epoch else self.create_scheduler(optimizer)
        if self.config.min_lr:
            self._raise_end(schedule)
        return schedule

    def check(self) -> None:
        """Raises `RecipeError` when the warm-up is longer than the run, and for an optimizer that only warms up.

        Also called before data are prepared, when the length of the run is known where ``train_iters`` gives it, and
        else 0.
        """
        warmup, horizon = self.trainer.warmup_steps, self.trainer.training_horizon
        if 0 < horizon < warmup:  # a run of no steps, which only evaluates, may keep the schedule of one that trains
            raise RecipeError(f"scheduler: a warm-up of {warmup} steps is longer than the run, which has {horizon}")
        optimizer = getattr(self.trainer, "optimizer_section", None)
        if optimizer is not None and optimizer.is_schedule_free and not self.only_warms_up:
            raise RecipeError(
                f"scheduler: with optimizer.type {optimizer.type} the learning rate may only warm up; "
                "give scheduler: {type: constant}"
            )

    @property
    def only_warms_up(self) -> bool:
        """Returns whether the learning rate stays as it is after the warm-up."""
        return False

    def timed(self) -> Self:
        """Returns the factory whose `trainer` has lengths in the unit of ``interval``: of epochs those begun, and no
        warm-up, which is always by step."""
        trainer = self.trainer
        if self.config.interval == "step":
            return self
        epochs = -(-trainer.training_horizon // max(1, trainer.steps_per_epoch))
        return type(self)(cast(TrainerView, _InEpochs(trainer, epochs)), self.config)

    def _create_by_epoch(self, optimizer: Optimizer) -> LRScheduler:
        """Returns the schedule of the epochs, by step, times the share of the warm-up.

        Raises `RecipeError` for data without epochs, and for a schedule that is no function of the step.
        """
        per_epoch, warmup = self.trainer.steps_per_epoch, self.trainer.warmup_steps
        if per_epoch < 1:
            raise RecipeError("scheduler.interval: a stream has no epochs; give step, or epoch_length")
        schedule = self.timed().create_scheduler(optimizer)
        if not isinstance(schedule, LambdaLR):
            raise RecipeError(f"scheduler.interval: {type(schedule).__name__} goes by step; remove it")
        _replace_shares(schedule, [_by_epoch(share, per_epoch, warmup) for share in schedule.lr_lambdas])
        return schedule

    def _raise_end(self, schedule: LRScheduler) -> None:
        """Has what of ``schedule`` is above ``min_lr`` follow it from the end of the warm-up on.

        A share s of the peak p becomes the rate m + (p - m) s. Raises `RecipeError` for a peak below m, and for a
        schedule that is no share of a peak.
        """
        minimum, warmup, peaks = self.config.min_lr, self.trainer.warmup_steps, [*map(float, schedule.base_lrs)]
        if not isinstance(schedule, LambdaLR):
            raise RecipeError(f"scheduler.min_lr: {type(schedule).__name__} is no share of a peak; remove it")
        if minimum > (peak := min(peaks)):
            raise RecipeError(f"scheduler.min_lr: {minimum:g} is above a learning rate of the optimizer, {peak:g}")
        shares = zip(schedule.lr_lambdas, peaks, strict=True)
        _replace_shares(schedule, [_above(share, minimum / peak, warmup) for share, peak in shares])

    @hook("create_scheduler")
    @abstractmethod
    def create_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Returns a schedule with torch's interface, which the trainer advances after every step."""


def warmup_factor(step: int, warmup: int) -> float:
    """Returns the share of the peak during a linear warm-up: 0 at step 0, 1 from step ``warmup`` on."""
    return min(1.0, step / warmup) if warmup else 1.0


def _replace_shares(schedule: LambdaLR, shares: list[Callable[[int], float]]) -> None:
    """Has a schedule that has not begun follow ``shares`` of the peak, from its first step on."""
    schedule.lr_lambdas = shares
    schedule._last_lr = [float(peak) * share(0) for peak, share in zip(schedule.base_lrs, shares, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate


class _InEpochs:
    """The view of a run for a schedule of epochs, whose warm-up is added to it."""

    warmup_steps = 0

    def __init__(self, trainer: TrainerView, epochs: int) -> None:
        self._trainer, self.training_horizon = trainer, epochs

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["_trainer"], name)


def _by_epoch(share: Callable[[int], float], per_epoch: int, warmup: int) -> Callable[[int], float]:
    """Returns ``share``, of the peak by epoch, by step, times the `warmup_factor`."""
    return lambda step: float(share(step // per_epoch)) * warmup_factor(step, warmup)


def _above(share: Callable[[int], float], floor: float, warmup: int) -> Callable[[int], float]:
    """Returns ``share`` of the peak by step, from step ``warmup`` on with 0 moved to ``floor``."""

    def scaled(step: int) -> float:
        value = float(share(step))
        return value if step < warmup else floor + (1 - floor) * value

    return scaled
