"""Something that is measured at every evaluation beside the loss."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from arctic_training.config.base import ComponentConfig
from arctic_training.factory import TrainerView
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
