"""The names that users of other trainers know for the events of a run: ``on_train_start``, ``on_validation_end``."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Self

from arctic_training.callback.hooks import Hooked, Listener, count_arguments
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import RegistryError, ScoringError
from arctic_training.registry import did_you_mean

HOOK_NAMES: Mapping[str, str] = {
    "on_init_start": "pre-init",
    "on_init_end": "post-init",
    "on_load_start": "pre-load_checkpoint",
    "on_load_checkpoint": "post-load_checkpoint",
    "on_train_start": "pre-train",
    "on_train_end": "post-train",
    "on_train_epoch_start": "pre-epoch",
    "on_train_epoch_end": "post-epoch",
    "on_train_batch_start": "pre-step",
    "on_train_batch_end": "post-step",
    "on_loss_start": "pre-loss",
    "on_loss_end": "post-loss",
    "on_before_backward": "pre-backward",
    "on_after_backward": "post-backward",
    "on_optimizer_step_end": "pre-after_update",
    "on_step_end": "post-after_update",
    "on_log_start": "pre-log",
    "on_log": "post-log",
    "on_validation_start": "pre-evaluate",
    "on_val_metrics_start": "pre-val_metrics",
    "get_val_metrics": "post-val_metrics",
    "on_validation_end": "post-evaluate",
    "on_save_start": "pre-checkpoint",
    "on_save_checkpoint": "post-checkpoint",
    "on_exception": "pre-exception",
    "on_exception_end": "post-exception",
}
"""The moment of each method: before (``pre``) or after (``post``) an event of `Trainer`."""


OTHER_METHODS: Mapping[str, str] = {
    "training_step": "loss",
    "compute_loss": "loss",
    "validation_step": "loss, which an evaluation calls without gradients",
    "prediction_step": "loss, which an evaluation calls without gradients",
    "compute_metrics": "finalize_eval_metrics",
    "configure_optimizers": "the recipe's sections optimizer and scheduler",
    "create_optimizer_and_scheduler": "the recipe's sections optimizer and scheduler",
    "train_dataloader": "the recipe's section data",
    "val_dataloader": "the recipe's section data",
}
"""Methods of Lightning's and transformers' trainers, and what stands for them here."""
_LOOPS = {"loss", "step", "epoch", "train", "evaluate"}
"""Methods of a trainer that may call others of its own."""


class NamedHooks(Hooked):
    """Base of `Trainer`: its methods with names of `HOOK_NAMES` are listeners, after those of ``callbacks``.

    A method that overrides one of a base class takes its place, as methods do. Raises `RegistryError` for a class with
    a method that nothing calls: a slip in one of these names, or one of `OTHER_METHODS`.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if not _LOOPS & cls.__dict__.keys():
            for attribute in sorted(OTHER_METHODS.keys() & cls.__dict__.keys()):
                raise RegistryError(f"{cls.__name__}: nothing calls {attribute}; here it is {OTHER_METHODS[attribute]}")
        for attribute, method in cls.__dict__.items():
            # a trainer may have other methods on_...: those are refused that differ by a slip of the pen
            if inspect.isfunction(method) and difflib.get_close_matches(attribute, HOOK_NAMES, cutoff=0.85):
                check_hook_name(attribute, cls)

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        self = super().__new__(cls, *args, **kwargs)
        methods = {name: getattr(cls, name, None) for name in HOOK_NAMES}
        self.callbacks += [(HOOK_NAMES[name], listener(name, one)) for name, one in methods.items() if callable(one)]
        return self


def check_hook_name(attribute: str, cls: type) -> None:
    """Raises `RegistryError` for a method ``on_...`` of ``cls`` that no event calls."""
    if attribute.startswith("on_") and attribute not in HOOK_NAMES:
        raise RegistryError(
            f"{cls.__name__}: nothing calls {attribute}; {did_you_mean(attribute, HOOK_NAMES)} "
            f"there are: {', '.join(HOOK_NAMES)}"
        )


def listener(name: str, method: Callable[..., object]) -> Listener:
    """Returns the method as a listener: what `get_val_metrics` returns is added to the metrics.

    Raises `ScoringError`, when it is called, for a return value that is no mapping.
    """
    if name != "get_val_metrics":
        return method
    takes = count_arguments(method)

    def add(run: object, values: Mapping[str, object]) -> Mapping[str, object]:
        more = method(*(run, values)[:takes])
        if not isinstance(more, Mapping):
            raise ScoringError(f"get_val_metrics returned {short_repr(more)}; expected a mapping from names to numbers")
        return {**values, **more}

    return add
