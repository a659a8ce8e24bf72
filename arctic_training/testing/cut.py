"""The check that the gradient of a step does not depend on how its global batch is cut into micro-batches."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.zero import full_gradient
from arctic_training.model.dropout import disable_dropout
from arctic_training.testing.runs import Metrics, Recipe, build, temporary_folder, trained
from arctic_training.trainer.trainer import Trainer

_MEND = (
    "divide a sum over labels by batch['num_items_in_batch'] instead of taking a mean of the micro-batch, and let no "
    "row's loss depend on the other rows beside it"
)


class _Step(NamedTuple):
    rows: int
    """Rows of the order that the step read."""
    loss: float
    gradients: list[tuple[str, dict[str, torch.Tensor]]]
    """The full gradients (fp32) of each engine's steps, by parameter, before clipping."""


def check_cut(
    recipe: Recipe,
    overrides: Sequence[str] = (),
    *,
    cuts: Sequence[tuple[int, int]] = (),
    tolerance: float = 1e-6,
) -> int:
    """Checks that the first step's loss and gradient do not depend on micro_batch_size x gradient_accumulation_steps.

    ``recipe`` is a path or a mapping, with ``overrides`` as on the command line; its model is used without dropout,
    which is drawn batch by batch. Its step is compared with that of each of the ``cuts`` of the same global batch
    (default: one micro-batch of all rows, micro-batches of one row, and of two): the norm of the difference of every
    parameter's gradient is at most ``tolerance`` times the largest norm of one, and the loss differs by 10 x
    ``tolerance`` at most. In a process group all ranks call it.

    Returns the number of cuts that were compared. Raises AssertionError for a difference, ValueError for cuts of
    another global batch, and `InputError` for a recipe that cannot be run.
    """
    with temporary_folder() as folder:
        trainer = _build(recipe, overrides, {"output_dir": str(folder / "own")})
        own = (trainer.config.micro_batch_size, trainer.config.gradient_accumulation_steps)
        expected = _first_step(trainer)
        size = own[0] * own[1]
        cuts = cuts or [(micro, size // micro) for micro in (size, 1, 2) if size % micro == 0]
        others = [cut for cut in dict.fromkeys(cuts) if cut != own]
        if size == 1 or any(micro * accumulation != size for micro, accumulation in others):
            raise ValueError(
                f"a global batch of {size} rows on each rank has no such cuts: {others or 'set a larger one'}"
            )
        for micro, accumulation in others:
            cut = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation}
            actual = _first_step(_build(recipe, overrides, {"output_dir": str(folder / f"{micro}"), **cut}))
            _require_same(
                expected, actual, f"micro_batch_size {micro} x {accumulation} instead of {own[0]} x {own[1]}", tolerance
            )
        return len(others)


def _build(recipe: Recipe, overrides: Sequence[str], settings: Mapping[str, object]) -> Trainer:
    trainer = build(recipe, overrides, {"train_iters": 1, "checkpoint": [], **settings})
    for engine in trainer.engines.values():
        if hasattr(engine.module, "config"):
            disable_dropout(engine.module)
        for part in engine.module.modules():
            if isinstance(part, nn.modules.dropout._DropoutNd):
                part.p = 0.0
    return trainer


def _first_step(trainer: Trainer) -> _Step:
    metrics, gradients = Metrics(), list[tuple[str, dict[str, torch.Tensor]]]()
    try:
        metrics.listen(trainer)
        for role, engine in trainer.trainable_engines.items():
            _record_gradients(role, trained(engine), gradients)
        trainer.train()
        assert trainer.train_loader is not None
        rows = trainer.train_loader.stride * trainer.config.gradient_accumulation_steps
        return _Step(rows, metrics["log", 1]["loss"], gradients)
    finally:
        trainer.close()


def _record_gradients(role: str, engine: TrainedEngine, gradients: list[tuple[str, dict[str, torch.Tensor]]]) -> None:
    """Adds the gradient of each step of ``engine`` to ``gradients``, before the step."""
    step = engine.step

    def recorded() -> None:
        if engine.is_gradient_accumulation_boundary():
            named = {name: full_gradient(one) for name, one in engine.module.named_parameters() if one.requires_grad}
            gradients.append((role, {name: one.clone() for name, one in named.items() if one is not None}))
        step()

    engine.step = recorded  # type: ignore[method-assign]


def _require_same(expected: _Step, actual: _Step, cut: str, tolerance: float) -> None:
    if expected.rows != actual.rows:
        raise ValueError(
            f"{cut}: a step reads {actual.rows} rows instead of {expected.rows}; packed rows depend on "
            "micro_batch_size: set data.pack_samples=false"
        )
    if not abs(actual.loss - expected.loss) <= 10 * tolerance * max(abs(expected.loss), 1e-3):
        raise AssertionError(f"{cut}: the loss is {actual.loss:.7g} instead of {expected.loss:.7g}; {_MEND}")
    if [role for role, _ in expected.gradients] != [role for role, _ in actual.gradients] or not expected.gradients:
        raise AssertionError(f"{cut}: the engines take other steps")
    for (role, one), (_, other) in zip(expected.gradients, actual.gradients, strict=True):
        scale = max((float(gradient.norm()) for gradient in one.values()), default=0.0)
        if not scale > 0:
            raise AssertionError(f"{role} has no gradient: nothing of it can be compared")
        for name, gradient in one.items():
            error = float((other[name].reshape(gradient.shape) - gradient).norm()) / scale
            if not error <= tolerance:
                raise AssertionError(f"{cut}: the gradient of {role}.{name} differs by {error:.2g}; {_MEND}")
