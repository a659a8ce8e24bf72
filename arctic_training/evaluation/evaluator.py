"""Base class of what measures a model at every evaluation, in addition to the loss."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from arctic_training.component import TrainerView
from arctic_training.config.sections.base import C, ComponentConfig
from arctic_training.config.sections.component import Configured
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import ScoringError
from arctic_training.generation.scoring import raise_on_all_ranks


class Evaluator(Configured[C], ABC, kind="evaluator"):
    """Measures a model at every evaluation. A subclass with a ``name`` can be named in a recipe.

    It is called on every rank with all models in evaluation mode and without gradients, and leaves no trace in the run.
    """

    checks_without_data: ClassVar[bool] = False
    """True if `check` reads only the recipe, the tokenizer and the modules of engines: it is called before the data are
    prepared too, while the modules have no weights."""
    tensor_parallel: ClassVar[bool] = False
    """Whether it measures correctly where processes divide the weights of the model and have to compute the same."""

    folder = "generations"
    """Where it may write in the run folder; numbered when several evaluators of a run have the same one."""

    def check_recipe(self, trainer: TrainerView) -> None:
        """Called before anything is loaded, and by ``validate``, for any model, one of the hub too. Raises `InputError`
        for what the recipe alone shows."""

    def check(self, trainer: TrainerView) -> None:
        """Called when every part of the run is ready, and by ``validate``, where ``trainer.has_weights`` may be False.
        Raises `InputError` for what would fail at an evaluation."""

    def metrics(self, sets: Sequence[str]) -> list[str] | None:
        """Returns the names of all that it may measure on the evaluation ``sets``, before any is numbered: recipes that
        name another are refused before data are prepared. None: only an evaluation shows them."""
        return None

    @abstractmethod
    def __call__(self, trainer: TrainerView) -> dict[str, float]:
        """Returns the metrics over all ranks by name, the same ones on every rank.

        A name that exists already is numbered: ``exact_match/eval``, then ``exact_match#2/eval``.
        """


def evaluate_metrics(evaluator: Evaluator[ComponentConfig], trainer: TrainerView) -> dict[str, float]:
    """Returns the metrics of ``evaluator`` as floats; it may return tensors and other libraries' numbers too.

    Raises `ScoringError` on all ranks when on one of them it does not return a mapping from names to numbers.
    """
    values = evaluator(trainer)
    with raise_on_all_ranks():
        return as_floats(values, f"evaluators: {evaluator.name!r} returned")


def as_floats(values: object, prefix: str) -> dict[str, float]:
    """Raises `ScoringError`, which begins with ``prefix``, for anything but a mapping to numbers."""
    if not isinstance(values, Mapping):
        raise ScoringError(f"{prefix} {short_repr(values)}; expected a mapping from names to numbers")
    metrics: dict[str, float] = {}
    for name, value in values.items():
        try:
            if isinstance(value, str):
                raise TypeError
            metrics[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise ScoringError(f"{prefix} {short_repr(value)} under {name!r}; expected a number") from None
    return metrics
