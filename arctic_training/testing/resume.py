"""The check that a run which is interrupted and resumed equals one that is not, to the bit."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

from arctic_training.distributed import process_group
from arctic_training.engine.engine import TrainedEngine
from arctic_training.testing.runs import (
    Metrics,
    Recipe,
    build,
    final_state,
    first_difference,
    temporary_folder,
    trained,
)
from arctic_training.trainer.trainer import Trainer

_MEND = (
    "what differs decides what is trained and is in no checkpoint: keep it with extra_state_dict (a callback: "
    "state_dict), and make random numbers from the row's own number (batch['draw']) instead of a generator's state"
)


_Interrupt = Callable[[Trainer, Callable[[], bool]], None]
"""Prepares a trainer for its interruption in the step in which the function returns true."""


class _Interruption(Exception):
    """Ends a run in the middle of a step."""


def check_resume(
    recipe: Recipe, overrides: Sequence[str] = (), *, steps: int | None = 4, thorough: bool = False
) -> int:
    """Checks that a run which is interrupted and resumed is one that is not: weights, metrics and state, to the bit.

    ``recipe`` is a path or a mapping, with ``overrides`` as on the command line. It is trained twice in a temporary
    folder, for ``steps`` optimizer steps (None: as the recipe says): once without a break, and once with errors, after
    each of which it resumes from the checkpoint before it. They come

    - in the second step, while a trainer that samples completions does so,
    - in the second step, and if ``thorough`` in the last, after the loss of the last micro-batch, when gradients are
      incomplete and generators have moved on,
    - in the step after the middle, as soon as an optimizer has stepped, when one role is ahead of the others.

    Every step is saved by a checkpoint section of type ``deepspeed``. In a process group all ranks call it.

    Returns the number of interruptions. Raises AssertionError with the first difference, ValueError for a run that has
    too few steps to be interrupted, and `InputError` for a recipe that cannot be run.
    """
    with temporary_folder() as folder:
        settings: dict[str, object] = {} if steps is None else {"train_iters": steps}
        unbroken = Metrics()
        trainer = build(recipe, overrides, settings | _checkpoints(folder / "unbroken", resume=False))
        try:
            unbroken.listen(trainer)
            trainer.train()
            expected = final_state(trainer)
        finally:
            trainer.close()
        last = trainer.progress.step
        if last < 2:
            raise ValueError(f"a run of {last} steps cannot be interrupted between two: give it at least 2")
        breaks: list[tuple[int, _Interrupt | None]] = []
        if "generate_rollouts" in trainer.events():
            breaks.append((1, _in_answer))
        breaks += zip((1, last // 2, *([last - 1] if thorough else [])), cycle((_in_loss, _in_update)), strict=False)
        resumed = Metrics()
        for step, interrupt in [*breaks, (last, None)]:
            settings |= _checkpoints(folder / "resumed", resume=True)
            trainer = build(recipe, overrides, settings)
            try:
                resumed.listen(trainer)
                if interrupt is not None:
                    _train_until(trainer, step, interrupt)
                else:
                    trainer.train()
                    actual = final_state(trainer)
            finally:
                trainer.close(failed=interrupt is not None)
        when = f"after interruptions in steps {sorted({step + 1 for step, _ in breaks})}"
        _require_equal(unbroken, resumed, expected, actual, when)
        return len(breaks)


def _checkpoints(folder: Path, *, resume: bool) -> dict[str, object]:
    section = {"type": "deepspeed", "save_every_n_steps": 1, "keep_last": 2, "auto_resume": resume}
    return {"output_dir": str(folder), "checkpoint": [section | {"output_dir": str(folder / "checkpoints")}]}


def _train_until(trainer: Trainer, step: int, interrupt: _Interrupt) -> None:
    """Trains, and ends the run in the step after ``step``, as ``interrupt`` says."""
    interrupt(trainer, lambda: not trainer.is_between_steps and trainer.progress.step == step)
    try:
        trainer.train()
    except _Interruption:
        process_group.barrier()
        return
    raise AssertionError(f"step {step + 1} has no event loss: the trainer's step does not call self.loss")


def _in_answer(trainer: Trainer, is_due: Callable[[], bool]) -> None:
    """Interrupts the run when its model has read the first prompts, or another one has completed them all."""

    def interrupt(*_: object) -> None:
        if is_due():
            raise _Interruption

    trainer.model.module.register_forward_hook(interrupt)
    trainer.listen("post-generate_rollouts", lambda: interrupt())


def _in_loss(trainer: Trainer, is_due: Callable[[], bool]) -> None:
    """Interrupts the run after the loss of a step's last micro-batch."""

    def interrupt() -> None:
        if is_due() and trainer.window.is_last_micro_batch and trainer.model.module.training:
            raise _Interruption

    trainer.listen("post-loss", interrupt)


def _in_update(trainer: Trainer, is_due: Callable[[], bool]) -> None:
    """Interrupts the run when the first of its optimizers has stepped."""

    def interrupting(engine: TrainedEngine) -> Callable[[], None]:
        step = engine.step

        def interrupt() -> None:
            step()
            if is_due() and engine.is_gradient_accumulation_boundary():
                raise _Interruption

        return interrupt

    for engine in map(trained, trainer.trainable_engines.values()):
        engine.step = interrupting(engine)  # type: ignore[method-assign]


def _require_equal(
    unbroken: Metrics, resumed: Metrics, expected: Mapping[str, object], actual: Mapping[str, object], when: str
) -> None:
    for (event, step), values in sorted(unbroken.items(), key=lambda item: item[0][1]):
        if difference := first_difference(values, resumed.get((event, step), {})):
            raise AssertionError(f"{when}, the run differs in what step {step} {event}s: {difference}; {_MEND}")
    if difference := first_difference(expected, actual):
        raise AssertionError(f"{when}, the run ends differently: {difference}; {_MEND}")
