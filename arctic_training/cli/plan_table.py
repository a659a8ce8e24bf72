"""A plan of a run as JSON, and as lines of text."""

from dataclasses import asdict

from arctic_training.display.format import table_lines
from arctic_training.trainer.memory import Model
from arctic_training.trainer.plan import Machine, Placement, Plan, Work

_PARTS = {
    "weights": "weights",
    "grads": "gradients",
    "master": "master",
    "optim.": "optimizer",
    "activ.": "activations",
    "loss": "loss",
}
"""The parts of an estimate, by their headings."""
_OFFLOADED = {"none": "", "optimizer": "optimizer", "optimizer and weights": "all"}


_UNITS = {"MiB": 2**20, "GiB": 2**30}
_NOTES = (
    "r  layers are computed again for the gradient (model.activation_checkpointing)",
    "total: the most at once; gradients take the place of activations",
    "host: what is offloaded, in main memory, of all processes",
)


def as_json(plan: Plan) -> dict[str, object]:
    """Returns ``plan`` as values of JSON; sizes are in bytes."""
    placements = [
        {"total": one.estimate.total, **asdict(one.estimate)}
        | {
            "stage": one.stage,
            "offload": one.offload,
            "recomputes": one.recomputes,
            "main_memory": one.main_memory,
            "is_recipe": one.is_recipe,
        }
        for one in plan.placements
    ]
    models = [
        {"role": one.role, "parameters": one.footprint.parameters, "trained": one.footprint.trained}
        | {"tokens_at_once": one.batch.tokens, "layout": asdict(one.layout)}
        for one in plan.models
    ]
    alternatives = [{"change": one.change, "cost": one.cost} for one in plan.alternatives]
    return {
        "machine": asdict(plan.machine),
        "models": models,
        "placements": placements,
        "work": asdict(plan.work),
        "fits": plan.fits,
        "refused": plan.is_refused,
        "alternatives": alternatives,
    }


def as_lines(recipe: str, plan: Plan) -> list[str]:
    """Returns the lines of ``plan``, that of the file ``recipe``."""
    machine = plan.machine
    memory = "" if machine.device_memory is None else f" of {_with_unit(machine.device_memory)}"
    unit = _unit(max(one.estimate.total for one in plan.placements))
    devices = "process" if machine.device == "cpu" else "GPU"
    plural = "" if machine.processes == 1 else "es" if devices == "process" else "s"
    shared = plan.models[0].layout.model
    mesh = f", {shared} to a model" if shared > 1 else ""
    lines = [f"{recipe}: {machine.processes} {devices}{plural}{memory}{mesh}", ""]
    models = [[one.role, f"{one.footprint.parameters:,}", f"{_trained(one):,}"] for one in plan.models]
    lines += table_lines([["model", "parameters", "trained"], *models], left=[0])
    tokens = max(one.batch.tokens for one in plan.models)
    lines += ["", f"memory of each in {unit}, with {tokens:,} tokens at once:"]
    placements = [_row(one, machine, unit) for one in plan.placements]
    lines += table_lines([["", "ZeRO", "offload", *_PARTS, "total", "host"], *placements], left=[0, 2])
    lines += ["> the recipe" + ("  * does not fit" if machine.usable is not None else ""), *_NOTES, ""]
    lines += _of_work(plan.work)
    if machine.usable is not None:
        lines += _of_fit(plan, machine.usable)
    return lines


def _trained(model: Model) -> int:
    return 0 if model.layout.frozen else int(model.footprint.trained)


def _row(placement: Placement, machine: Machine, unit: str) -> list[str]:
    estimate = placement.estimate
    parts = {part: _amount(getattr(estimate, part), unit) for part in _PARTS.values()}
    if placement.recomputes:
        parts["activations"] += "r"
    full = machine.usable is not None and estimate.total > machine.usable
    full = full or (machine.host_memory is not None and placement.main_memory > machine.host_memory)
    mark = (">" if placement.is_recipe else "") + ("*" if full else "")
    main_memory = _amount(placement.main_memory, unit) if placement.main_memory else ""
    row = [mark, str(placement.stage), _OFFLOADED[placement.offload], *parts.values()]
    return [*row, _amount(estimate.total, unit), main_memory]


def _of_work(work: Work) -> list[str]:
    most = "at most " if work.at_most else ""
    steps = "not known before the data are prepared" if work.steps is None else f"{work.steps:,}"
    lines = [f"steps   {steps}"]
    if work.tokens is not None:
        lines.append(f"tokens  {most}{work.tokens:,}")
    if work.flops is not None:
        lines.append(f"FLOPs   {most}{work.flops:.3g}")
    return lines


def _of_fit(plan: Plan, usable: float) -> list[str]:
    needed = f"{_with_unit(plan.placement.estimate.total)} of {_with_unit(usable)}, which are 85 % of the memory."
    if plan.fits:
        return ["", f"It fits: {needed}"]
    least = f"would surely take {_with_unit(plan.surely_needed)} of {_with_unit(plan.machine.device_memory or 0)}"
    run = f"A run is refused: it {least}." if plan.is_refused else f"A run starts all the same, and {least}."
    lines = ["", f"It does not fit: {needed}", run, "What would:"]
    return lines + ([f"  {one}" for one in plan.alternatives] or ["  nothing that is known here"])


def _unit(size: float) -> str:
    return "GiB" if size >= _UNITS["GiB"] else "MiB"


def _amount(size: float, unit: str) -> str:
    amount = size / _UNITS[unit]
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.1f}"


def _with_unit(size: float) -> str:
    return f"{_amount(size, _unit(size))} {_unit(size)}"
