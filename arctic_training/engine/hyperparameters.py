"""What the recipe says of an engine's optimizer and schedule, for when it is to hold in place of what was saved."""

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from arctic_training.engine.engine import TrainedEngine
from arctic_training.errors.types import ResumeError


def current_hyperparameters(engine: Any) -> dict[str, Any]:
    """Learning rates, decay and the like of an engine as it was made."""
    if not isinstance(engine, TrainedEngine):
        return {}
    optimizer = engine.deepspeed.optimizer
    names = getattr(getattr(optimizer, "optimizer", optimizer), "defaults", {}).keys() | {"initial_lr"}
    groups = [{key: group[key] for key in names & group.keys()} for group in optimizer.param_groups]
    return {"groups": groups, "base_lrs": list(getattr(engine.deepspeed.lr_scheduler, "base_lrs", []))}


def override_hyperparameters(engine: Any, told: dict[str, Any]) -> None:
    """Let `current_hyperparameters` hold for an engine that was loaded, the schedule being where it was saved.

    Raises `ResumeError` when the schedule is not a function of the update, so that it cannot be entered elsewhere.
    """
    if not told:
        return
    for group, said in zip(engine.deepspeed.optimizer.param_groups, told["groups"], strict=True):
        group.update(said)
    schedule = engine.deepspeed.lr_scheduler
    if schedule is None:
        return
    if not isinstance(schedule, LambdaLR):
        raise ResumeError(f"a {type(schedule).__name__} goes on as it was saved, and under no other settings")
    schedule.base_lrs = told["base_lrs"]
    rates = [
        base * share(schedule.last_epoch) for base, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(engine.deepspeed.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
