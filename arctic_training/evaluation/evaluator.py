"""Something that is measured at every evaluation beside the loss."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.distributed import collectives
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import ScoringError
from arctic_training.registry import Registered


class Evaluator(Registered, ABC, kind="evaluator"):
    """Called on every rank with all networks in evaluation mode and no gradients; leaves no trace in the run."""

    config_type: ClassVar[type[ComponentConfig]] = ComponentConfig

    folder = "generations"
    """Where it may write in the run folder; numbered where several evaluators of a run have the same."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config: Any = config

    def check(self, trainer: TrainerView) -> None:
        """Called when every part of the run is made; raises `InputError` for what would end it at an evaluation."""

    @abstractmethod
    def __call__(self, trainer: TrainerView) -> dict[str, float]:
        """What was measured, by name, over all ranks: every rank returns the same.

        A name that was measured before it is numbered: ``exact_match/eval``, then ``exact_match#2/eval``.
        """


def measured(evaluator: Evaluator, trainer: TrainerView) -> dict[str, float]:
    """Returns what ``evaluator`` measures, as plain numbers: it may give tensors and other libraries' numbers too.

    Raises `ScoringError`, on every rank alike, when on one of them it gives no mapping from names to numbers.
    """
    found, numbers, failure = evaluator(trainer), dict[str, float](), ""
    try:
        numbers = _numbers(found)
    except ScoringError as error:
        failure = f"evaluators: {evaluator.name!r} gave {error}"
    if failures := list(filter(None, collectives.all_gather_object(failure))):
        raise ScoringError(failures[0])
    return numbers


def _numbers(found: Any) -> dict[str, float]:
    """Raises `ScoringError`, which says what else it is."""
    if not isinstance(found, Mapping):
        raise ScoringError(f"{short_repr(found)}; a mapping from names to numbers is wanted")
    numbers: dict[str, float] = {}
    for name, value in found.items():
        try:
            if isinstance(value, str):
                raise TypeError
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise ScoringError(f"{short_repr(value)} under {name!r}; a number is wanted") from None
    return numbers
