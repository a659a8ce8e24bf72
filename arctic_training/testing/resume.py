"""The check that a run which is interrupted and resumed equals one that is not, to the bit."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from arctic_training.distributed import process_group
from arctic_training.testing.runs import Metrics, Recipe, build, final_state, first_difference, temporary_folder
from arctic_training.trainer.trainer import Trainer

_MEND = (
    "what differs decides what is trained and is in no checkpoint: keep it with extra_state_dict (a callback: "
    "state_dict), and make random numbers from the row's own number (batch['draw']) instead of a generator's state"
)


class _Interruption(Exception):
    """Ends a run in the middle of a step."""


def check_resume(
    recipe: Recipe, overrides: Sequence[str] = (), *, steps: int | None = 4, thorough: bool = False
) -> int:
    """Checks that a run which is interrupted and resumed is one that is not: weights, metrics and state, to the bit.

    ``recipe`` is a path or a mapping, with ``overrides`` as on the command line. It is trained twice in a temporary
    folder, for ``steps`` optimizer steps (None: as the recipe says): once without a break, and once with errors, after
    each of which it resumes from the checkpoint before it. They come in the last micro-batch of a step, when gradients
    are incomplete and generators have moved on: of the second step, of the one after the middle and, if ``thorough``,
    of the last. Every step is saved by a checkpoint section of type ``deepspeed``. In a process group all ranks call
    it.

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
        breaks = sorted({1, last // 2, last - 1} if thorough else {1, last // 2})
        resumed = Metrics()
        for step in [*breaks, last]:
            settings |= _checkpoints(folder / "resumed", resume=True)
            trainer = build(recipe, overrides, settings)
            try:
                resumed.listen(trainer)
                if step < last:
                    _train_until(trainer, step)
                else:
                    trainer.train()
                    actual = final_state(trainer)
            finally:
                trainer.close(failed=step < last)
        when = f"after interruptions in steps {[step + 1 for step in breaks]}"
        _require_equal(unbroken, resumed, expected, actual, when)
        return len(breaks)


def _checkpoints(folder: Path, *, resume: bool) -> dict[str, object]:
    section = {"type": "deepspeed", "save_every_n_steps": 1, "keep_last": 2, "auto_resume": resume}
    return {"output_dir": str(folder), "checkpoint": [section | {"output_dir": str(folder / "checkpoints")}]}


def _train_until(trainer: Trainer, step: int) -> None:
    """Trains, and ends the run in the last micro-batch of the step after ``step``."""

    def interrupt(of: Trainer) -> None:
        if of.progress.step == step and of.window.is_last_micro_batch and of.model.module.training:
            raise _Interruption(f"in step {step + 1}")

    trainer.listen("post-loss", interrupt)
    try:
        trainer.train()
    except _Interruption:
        process_group.barrier()
        return
    raise AssertionError(f"step {step + 1} has no event loss: the trainer's step does not call self.loss")


def _require_equal(
    unbroken: Metrics, resumed: Metrics, expected: Mapping[str, object], actual: Mapping[str, object], when: str
) -> None:
    for (event, step), values in sorted(unbroken.items(), key=lambda item: item[0][1]):
        if difference := first_difference(values, resumed.get((event, step), {})):
            raise AssertionError(f"{when}, the run differs in what step {step} {event}s: {difference}; {_MEND}")
    if difference := first_difference(expected, actual):
        raise AssertionError(f"{when}, the run ends differently: {difference}; {_MEND}")
