"""Callbacks: objects that listen to events of a trainer and may have state in checkpoints."""

from collections.abc import Mapping
from typing import Any, ClassVar

from arctic_training.callback.hook_names import HOOK_NAMES, check_hook_name, listener
from arctic_training.callback.hooks import Hooked
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import C
from arctic_training.config.sections.component import Configured


class RewindTraining(Exception):
    """Raised by a callback that has loaded another position of the run: the loop continues from there."""


class Callback(Configured[C], kind="callback"):
    """Listens to events with its methods ``pre_<event>(trainer, ...)`` and ``post_<event>(trainer, value)``, or by the
    names of `hook_names.HOOK_NAMES`, such as ``on_train_start(trainer)``.

    It is attached before the components of the run are built, so ``post_init`` is its first event.
    """

    checks_without_data: ClassVar[bool] = False
    """True if `check` reads only the recipe, the tokenizer and the modules of engines: it is called before the data are
    prepared too, while the modules have no weights."""

    def __init__(self, config: C) -> None:
        super().__init__(config)
        self.label: str = getattr(self, "name", "")
        """Its name in this run, in checkpoints and for files: ``<name>#2`` is the second of its type."""

    def attach(self, host: Hooked) -> None:
        """Listens to ``host``. Raises `RegistryError` when a method names an event that the host does not have."""
        for attribute in dir(type(self)):
            when, _, what = attribute.partition("_")
            if when in ("pre", "post"):
                host.listen(f"{when}-{what}", getattr(self, attribute))
            elif attribute in HOOK_NAMES:
                host.listen(HOOK_NAMES[attribute], listener(attribute, getattr(self, attribute)))
            else:
                check_hook_name(attribute, type(self))

    def check_recipe(self, trainer: TrainerView) -> None:
        """Called before anything is loaded, and by ``validate``, for any model, one of the hub too. Raises `InputError`
        for what the recipe alone shows."""

    def check(self, trainer: TrainerView) -> None:
        """Called when every part of the run is built and nothing is written yet, and by ``validate``, where
        ``trainer.has_weights`` may be False. Raises `InputError` for what would fail later."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for checkpoints: tensors, numbers, strings, lists and mappings of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restores the state that `state_dict` returned."""
