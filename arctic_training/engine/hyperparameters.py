"""Re-applies the recipe's hyperparameters after a checkpoint was loaded."""

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from arctic_training.engine.engine import Engine, TrainedEngine
from arctic_training.errors.types import ResumeError


def current_hyperparameters(engine: Engine) -> dict[str, Any]:
    """Returns the engine's hyperparameters before a checkpoint is loaded; empty for a frozen engine.

    ``groups`` are the options of each parameter group, such as ``lr``, ``betas`` and ``weight_decay``; ``base_lrs`` the
    base learning rates of the scheduler.
    """
    if not isinstance(engine, TrainedEngine):
        return {}
    optimizer = engine.deepspeed.optimizer
    names = getattr(getattr(optimizer, "optimizer", optimizer), "defaults", {}).keys() | {"initial_lr"}
    groups = [{key: group[key] for key in names & group.keys()} for group in optimizer.param_groups]
    return {"groups": groups, "base_lrs": list(getattr(engine.deepspeed.lr_scheduler, "base_lrs", []))}


def override_hyperparameters(engine: Engine, hyperparameters: dict[str, Any]) -> None:
    """Sets what `current_hyperparameters` returned on an engine that was loaded; the schedule keeps its position.

    Raises `ResumeError` when the schedule is not a function of the step, so that it cannot be recomputed.
    """
    if not isinstance(engine, TrainedEngine):
        return
    groups = engine.deepspeed.optimizer.param_groups
    for group, options in zip(groups, hyperparameters["groups"], strict=True):
        group.update(options)
    schedule = engine.deepspeed.lr_scheduler
    if schedule is None:
        return
    if not isinstance(schedule, LambdaLR):
        raise ResumeError(f"a {type(schedule).__name__} can only continue with the settings it was saved with")
    schedule.base_lrs = hyperparameters["base_lrs"]
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    lrs = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
    for group, lr in zip(groups, lrs, strict=True):
        group["lr"] = lr
    schedule._last_lr = lrs
