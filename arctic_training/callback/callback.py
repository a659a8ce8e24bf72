"""An object that listens to several events of one trainer, and may carry state of its own."""

from collections.abc import Mapping
from typing import Any, ClassVar

from arctic_training.callback.hooks import Hooked
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.registry import Registered


class RewindTraining(Exception):
    """Raised by a callback that has put the run at another position: the loop goes on from there."""


class Callback(Registered, kind="callback"):
    """Its methods ``pre_<event>(trainer, ...)`` and ``post_<event>(trainer, value)`` are what it listens to.

    It listens from before the first part of the run is made, so ``post_init`` is the first event it may hear.
    """

    config_type: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, config: ComponentConfig) -> None:
        self.config: Any = config

    def attach(self, host: Hooked) -> None:
        """Listen to ``host``. Raises ValueError when a method is named after an event that the host does not have."""
        for attribute in dir(type(self)):
            when, _, what = attribute.partition("_")
            if when in ("pre", "post"):
                host.listen(f"{when}-{what}", getattr(self, attribute))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        pass
