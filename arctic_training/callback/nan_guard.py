"""Stops, skips or rewinds when a loss or gradient is not finite; never saves weights that are not."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from arctic_training.callback.callback import Callback
from arctic_training.callback.rewind import first_row, rewind
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.distributed import collectives, process_group
from arctic_training.engine.internals.parameters import local_tensor
from arctic_training.errors.types import NonFiniteError
from arctic_training.logging import logger

_MOST = 32
"""The most samples of a rank that a message names."""


class NanGuardConfig(ComponentConfig):
    """Options of the guard, from the recipe keys ``nan_guard`` and ``nan_guard_limit``."""

    policy: Literal["stop", "skip", "back"] = "stop"
    """Action at a window that is not finite: end the run, skip the window, or rewind to the newest checkpoint."""
    limit: int = 10
    """Maximum consecutive skipped windows (``skip``) or total rewinds (``back``) before the run fails."""


class NanGuard(Callback[NanGuardConfig]):
    """Ends the run when a loss or gradient is not finite, skips the window or rewinds the run, by its policy.

    The engine keeps such a gradient from the weights on every rank. A loss that is not finite while its gradient is
    ends the run under every policy. The losses of a window stay on the device; whether they are finite is copied to
    the CPU during the backward pass and read after the step, for which the engine has waited already.
    """

    name = "nan_guard"

    def __init__(self, config: NanGuardConfig) -> None:
        super().__init__(config)
        self.skipped_windows: set[tuple[int, int]] = set()
        """Epoch and first row of windows that are no longer trained on."""
        self.total = 0
        """Windows skipped, or rewinds, over the whole run."""
        self._in_a_row = 0
        self._losses: list[Tensor] = []
        self._finite = torch.ones(0, dtype=torch.bool)
        self._copied: torch.cuda.Event | None = None
        self._trainer: TrainerView | None = None
        self._steps: dict[str, int] = {}
        self._unshared = ""
        """A loss that is not finite and of which the other ranks do not know."""

    def post_init(self, trainer: TrainerView) -> None:
        """Shares the skipped windows with the trainer."""
        trainer.skipped_windows = self.skipped_windows
        self._trainer = trainer
        self._steps = _skipped_steps(trainer)

    def post_loss(self, trainer: TrainerView, loss: Tensor) -> None:
        """Keeps the scalar ``loss`` of a micro-batch; copies to the CPU which ones of the window are finite."""
        if not torch.is_grad_enabled():  # of an evaluation
            return
        self._losses.append(loss.detach())
        if trainer.window.is_last_micro_batch:
            finite = torch.stack([one.reshape(()) for one in self._losses]).isfinite()
            if finite.is_cuda:
                self._finite = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True)
                self._finite.copy_(finite, non_blocking=True)
                self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._copied.record()
            else:
                self._finite = finite

    def pre_after_update(self, trainer: TrainerView) -> None:
        """Applies the policy to the window just trained on."""
        if self._copied is not None:
            self._copied.synchronize()
        # a trainer may go through its window several times
        bad = sorted({n % trainer.window.size for n, finite in enumerate(self._finite.tolist()) if not finite})
        self._losses.clear()
        self._finite, self._copied = self._finite[:0], None
        before, self._steps = self._steps, _skipped_steps(trainer)
        expected = {"model": trainer.window.skipped_steps}
        skipped = [role for role, count in self._steps.items() if count - before[role] > expected.get(role, 0)]
        fault = bool(skipped) and self._is_fault(trainer, bad, skipped)
        if bad and not skipped:
            self._unshared = f"rank {process_group.rank()}{_samples(trainer, bad)}"
            trainer.request_stop("a loss is not finite")
        if self.config.policy != "stop" or trainer.config.model.dtype == "fp16":
            trainer.record("skipped", float(bool(skipped)))
        if not fault:
            self._in_a_row = 0

    def _is_fault(self, trainer: TrainerView, bad: list[int], skipped: list[str]) -> bool:
        """Applies the policy to a window whose step was skipped; False while the loss scale is searched."""
        reports = collectives.all_gather_object((bool(bad), _samples(trainer, bad)))
        lost = [f"rank {rank}{samples}" for rank, (is_bad, samples) in enumerate(reports) if is_bad]
        if not lost and all(trainer.trainable_engines[role].is_searching_loss_scale for role in skipped):
            return False
        what = "the loss" if lost else "the gradient" if skipped == ["model"] else f"the gradient of {skipped[0]}"
        where = "; ".join(lost or [f"rank {rank}{samples}" for rank, (_, samples) in enumerate(reports)])
        text = f"step {trainer.progress.step}: {what} is not finite: {where}"
        self.total += 1
        self._in_a_row += 1
        policy, limit = self.config.policy, self.config.limit
        if policy == "stop":
            raise NonFiniteError(
                f"{text}. No such gradient has reached the weights; nan_guard: skip or back would go on"
            )
        if policy == "skip" and self._in_a_row > limit:
            raise NonFiniteError(f"{text}. That is {self._in_a_row} in a row, and nan_guard_limit is {limit}")
        if policy == "back":
            if self.total > limit:
                raise NonFiniteError(f"{text}. The run went back {limit} times, which is nan_guard_limit")
            rewind(trainer, text, "nan_guard: back", NonFiniteError)
        logger.warning(f"{text}; skipped, {self.total} in all")
        return True

    def post_after_update(self, trainer: TrainerView) -> None:
        """Checks that the losses of all ranks were finite before a stop."""
        if trainer.window.stop:
            self._require_finite(trainer)

    def pre_checkpoint(self, trainer: TrainerView) -> None:
        """Raises `NonFiniteError`, on every rank, rather than save weights that are not finite."""
        roles = [role for role, engine in trainer.trainable_engines.items() if not _is_finite(engine.module)]
        self._require_finite(trainer, f"weights of {roles[0]} are not finite" if roles else "")

    def post_train(self, trainer: TrainerView) -> None:
        """Checks that the losses of all ranks were finite at the end."""
        self._require_finite(trainer)

    def _require_finite(self, trainer: TrainerView, weights: str = "") -> None:
        loss = f"the loss is not finite: {self._unshared}" if self._unshared else ""
        fault = "; ".join(filter(None, [loss, weights]))
        if faults := list(filter(None, collectives.all_gather_object(fault))):
            raise NonFiniteError(f"step {trainer.progress.step} or the one before: {faults[0]}; nothing is saved")

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "left_out": [list(place) for place in sorted(self.skipped_windows)]}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Merges with the current state: a run that is rewound knows more windows than its checkpoint."""
        self.total = max(self.total, int(state["total"]))
        self.skipped_windows.update((int(epoch), int(row)) for epoch, row in state["left_out"])
        if self._trainer is not None:  # the engines have gone back too
            self._steps = _skipped_steps(self._trainer)
        self._losses.clear()


def _skipped_steps(trainer: TrainerView) -> dict[str, int]:
    return {role: engine.skipped_steps for role, engine in trainer.trainable_engines.items()}


def _samples(trainer: TrainerView, bad: list[int]) -> str:
    """Returns the samples of this rank's ``bad`` micro-batches, or of the window, if the loader knows them."""
    loader, window = trainer.train_loader, trainer.window
    if not hasattr(loader, "samples") or trainer.config.overfit_first_batch:
        return ""
    first, epoch = first_row(trainer), trainer.progress.epoch
    names = []
    for index in range(window.size):
        if not bad or index in bad:
            names += [str(sample) for sample in loader.samples(epoch, first + index * loader.stride)]
    more = ", ..." if len(names) > _MOST else ""
    return f", training samples {', '.join(names[:_MOST])}{more}"


def _is_finite(module: torch.nn.Module) -> bool:
    """Returns whether the weights that this rank holds are finite."""
    held = [local_tensor(one) for one in module.parameters()]
    largest = torch._foreach_norm([one for one in held if one.is_floating_point() and one.numel()], float("inf"))
    return not largest or bool(torch.stack([one.float() for one in largest]).isfinite().all())
