"""Every schedule is its closed form, update by update, and goes on where it was."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from arctic_training.engine.snapshot import require_plain
from arctic_training.errors.types import RecipeError
from arctic_training.scheduler.huggingface_factory import HFSchedulerFactory
from arctic_training.scheduler.piecewise_factories import CyclicFactory, MultiStepFactory, StepFactory
from arctic_training.scheduler.torch_factories import ConstantFactory, ExponentialFactory, OneCycleFactory, WSDFactory

WARMUP, HORIZON, PEAK, PER_EPOCH = 4, 20, 0.5, 5
KWARGS = "scheduler_specific_kwargs"


def make(factory: Any, warmup: int = WARMUP, horizon: int = HORIZON, **section: Any) -> Any:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight]}, {"params": [torch.nn.Parameter(torch.zeros(1))]}], lr=PEAK)
    view: Any = SimpleNamespace(warmup_steps=warmup, training_horizon=horizon, steps_per_epoch=PER_EPOCH)
    return factory(view, factory.config_type(type=factory.name, **section))(optimizer)


def step(schedule: Any) -> None:
    schedule.optimizer.step()
    schedule.step()


def shares(schedule: Any, updates: int = HORIZON + 1) -> list[float]:
    """The learning rate of each update as a share of the peak; all groups have the same."""
    actual = []
    for _ in range(updates):
        (rate,) = {group["lr"] for group in schedule.optimizer.param_groups}
        actual.append(rate / PEAK)
        step(schedule)
    return actual


def rise(update: int) -> float:
    return min(1.0, update / WARMUP)


def way(update: int) -> float:
    """How much of the run after warm-up is over."""
    return min(1.0, max(0, update - WARMUP) / (HORIZON - WARMUP))


def wsd(update: int, decay: int = 5, least: float = 0.1) -> float:
    return rise(update) if update < WARMUP else least + (1 - least) * min(1.0, max(0, HORIZON - update) / decay)


def one_cycle(update: int) -> float:
    if update < WARMUP:
        return 1 + (1 / 25 - 1) * (1 + math.cos(math.pi * update / WARMUP)) / 2
    return 1 / 25e4 + (1 - 1 / 25e4) * (1 + math.cos(math.pi * way(update))) / 2


def cosine(update: int, cycles: float = 0.5) -> float:
    return max(0.0, (1 + math.cos(2 * math.pi * cycles * way(update))) / 2)


def restarts(update: int, cycles: int = 2) -> float:
    return 0.0 if way(update) >= 1 else (1 + math.cos(math.pi * (cycles * way(update) % 1))) / 2


def inverse_sqrt(update: int) -> float:
    return 1 / math.sqrt((update - WARMUP + WARMUP) / WARMUP)


def theirs_wsd(update: int) -> float:
    stable = HORIZON - WARMUP - 5
    if update < WARMUP + stable:
        return 1.0
    over = min(1.0, (update - WARMUP - stable) / 5)
    return max(0.0, (1 + math.cos(math.pi * over)) / 2)


def after(shape: Callable[[int], float]) -> Callable[[int], float]:
    return lambda update: rise(update) if update < WARMUP else shape(update)


FORMS: dict[str, tuple[Any, dict[str, Any], Callable[[int], float]]] = {
    "constant": (ConstantFactory, {}, rise),
    "exponential": (ExponentialFactory, {"gamma": 0.9}, lambda u: rise(u) * 0.9 ** max(0, u - WARMUP)),
    "wsd": (WSDFactory, {"num_decay_steps": 5, "min_lr_ratio": 0.1}, wsd),
    "one_cycle": (OneCycleFactory, {}, one_cycle),
    "step": (StepFactory, {"step_size": 6, "gamma": 0.5}, lambda u: rise(u) * 0.5 ** (u // 6)),
    "multistep": (
        MultiStepFactory,
        {"milestones": [12, 7], "gamma": 0.5},
        lambda u: rise(u) / (1, 2, 4)[(u >= 7) + (u >= 12)],
    ),
}
THEIRS: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "linear": ({}, after(lambda u: 1 - way(u))),
    "cosine": ({}, after(cosine)),
    "cosine_with_restarts": ({"num_cycles": 2}, after(restarts)),
    "polynomial": ({"power": 2.0, "lr_end": 0.05}, after(lambda u: 0.1 + 0.9 * (1 - way(u)) ** 2)),
    "constant": ({}, lambda u: 1.0),
    "constant_with_warmup": ({}, rise),
    "inverse_sqrt": ({}, after(inverse_sqrt)),
    "cosine_with_min_lr": ({"min_lr_rate": 0.2}, after(lambda u: 0.2 + 0.8 * cosine(u))),
    "warmup_stable_decay": ({"num_decay_steps": 5}, after(theirs_wsd)),
}
FORMS |= {f"huggingface {name}": (HFSchedulerFactory, {"name": name, "scheduler_specific_kwargs": kwargs}, form)
          for name, (kwargs, form) in THEIRS.items()}  # fmt: skip


@pytest.mark.fault(31)
@pytest.mark.parametrize("which", FORMS)
def test_a_schedule_is_its_closed_form(which: str) -> None:
    factory, section, form = FORMS[which]
    assert shares(make(factory, **section)) == pytest.approx([form(n) for n in range(HORIZON + 1)], abs=1e-9)


LR = torch.optim.lr_scheduler
CYCLE = {"step_size_up": 3, "step_size_down": 5}
BOUNDS = {"base_lr": 0.1, "max_lr": PEAK, "cycle_momentum": False, **CYCLE}
TORCH: dict[str, tuple[Any, dict[str, Any], Callable[[Any], Any]]] = {
    "exponential": (ExponentialFactory, {"gamma": 0.9}, lambda o: LR.ExponentialLR(o, 0.9)),
    "step": (StepFactory, {"step_size": 6}, lambda o: LR.StepLR(o, 6)),
    "multistep": (MultiStepFactory, {"milestones": [12, 7, 7]}, lambda o: LR.MultiStepLR(o, [7, 7, 12])),
    "triangular": (CyclicFactory, {"min_lr": 0.1, **CYCLE}, lambda o: LR.CyclicLR(o, **BOUNDS)),
    "triangular2": (
        CyclicFactory,
        {"min_lr": 0.1, "mode": "triangular2", **CYCLE},
        lambda o: LR.CyclicLR(o, mode="triangular2", **BOUNDS),
    ),
    "exp_range": (
        CyclicFactory,
        {"min_lr": 0.1, "mode": "exp_range", "gamma": 0.9, **CYCLE},
        lambda o: LR.CyclicLR(o, mode="exp_range", gamma=0.9, **BOUNDS),
    ),
    "cyclic, as long up as down": (
        CyclicFactory,
        {"min_lr": 0.1, "step_size_up": 3},
        lambda o: LR.CyclicLR(o, base_lr=0.1, max_lr=PEAK, step_size_up=3, cycle_momentum=False),
    ),
    "polynomial": (
        HFSchedulerFactory,
        {"name": "polynomial", KWARGS: {"power": 2, "lr_end": 0}},
        lambda o: LR.PolynomialLR(o, HORIZON, power=2),
    ),
}


def theirs(build: Callable[[Any], Any], updates: int = HORIZON + 1) -> list[float]:
    """The learning rate of each update by a schedule of torch, as a share of the peak."""
    return shares(build(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)), updates)


@pytest.mark.parametrize("which", TORCH)
def test_a_schedule_is_that_of_torch(which: str) -> None:
    factory, section, build = TORCH[which]
    assert shares(make(factory, warmup=0, **section)) == pytest.approx(theirs(build), abs=1e-9)


def test_one_cycle_is_that_of_torch() -> None:
    # torch ends its cycle, and its rise, one step earlier than the run
    expected = theirs(lambda o: LR.OneCycleLR(o, PEAK, total_steps=HORIZON + 1, pct_start=(WARMUP + 1) / (HORIZON + 1)))
    assert shares(make(OneCycleFactory)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("which", [name for name in TORCH if name != "polynomial"])
def test_a_schedule_by_epoch_is_that_of_torch_stepped_every_epoch(which: str) -> None:
    factory, section, build = TORCH[which]
    expected = [rate for rate in theirs(build, HORIZON // PER_EPOCH) for _ in range(PER_EPOCH)]
    assert shares(make(factory, warmup=0, interval="epoch", **section), HORIZON) == pytest.approx(expected, abs=1e-9)


def test_the_lengths_of_a_schedule_by_epoch_are_in_epochs_and_its_warmup_is_by_step() -> None:
    epochs = [1.0, 0.75, 0.5, 0.25]
    expected = [rise(n) * epochs[n // PER_EPOCH] for n in range(HORIZON)]
    linear = make(HFSchedulerFactory, name="linear", interval="epoch")
    assert shares(linear, HORIZON) == pytest.approx(expected, abs=1e-9)
    wsd = make(WSDFactory, interval="epoch", num_decay_steps=2)
    assert shares(wsd, HORIZON)[5::5] == pytest.approx([1.0, 1.0, 0.5])
    least = make(HFSchedulerFactory, warmup=0, name="linear", interval="epoch", min_lr=0.1 * PEAK)
    assert shares(least, HORIZON)[::5] == pytest.approx([0.1 + 0.9 * share for share in epochs])
    with pytest.raises(RecipeError, match="0 epochs of warm-up and 5 of decay are more than the run's 4"):
        make(WSDFactory, interval="epoch", num_decay_steps=5)


def test_a_schedule_by_epoch_is_refused_where_there_are_none() -> None:
    view: Any = SimpleNamespace(warmup_steps=0, training_horizon=HORIZON, steps_per_epoch=0)
    factory = StepFactory(view, StepFactory.config_type(type="step", step_size=1, interval="epoch"))
    with pytest.raises(RecipeError, match=r"scheduler\.interval: a stream has no epochs"):
        factory(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK))
    for kind, section, message in (
        (OneCycleFactory, {"interval": "epoch"}, "the cycle goes by step"),
        (CyclicFactory, {"warmup_steps": 3}, "warmup_steps: a cycle begins at min_lr"),
        (CyclicFactory, {"gamma": 0.9}, "gamma: is for mode: exp_range; remove it"),
        (MultiStepFactory, {"milestones": []}, "milestones"),
        (StepFactory, {}, "step_size"),
    ):
        with pytest.raises(ValidationError, match=message):
            kind.config_type(type=kind.name, **section)  # type: ignore[attr-defined]


def test_every_schedule_of_transformers_is_tried_or_refused() -> None:
    from transformers import SchedulerType

    known = {kind.value for kind in SchedulerType}
    makeable = {**THEIRS, "cosine_warmup_with_min_lr": ({"min_lr_rate": 0.1}, cosine)}
    for name in known & makeable.keys():
        rates = shares(make(HFSchedulerFactory, name=name, scheduler_specific_kwargs=makeable[name][0]))
        assert all(0 <= rate <= 1 + 1e-9 for rate in rates), name
    for name in known - makeable.keys():
        with pytest.raises(ValidationError, match="follows a metric"):
            make(HFSchedulerFactory, name=name)


@pytest.mark.fault(31)
@pytest.mark.parametrize("which", FORMS)
def test_a_schedule_goes_on_where_it_was_after_a_resume(which: str) -> None:
    factory, section, form = FORMS[which]
    first = make(factory, **section)
    for _ in range(7):
        step(first)
    state = first.state_dict()
    require_plain(state, "schedule")
    second = make(factory, **section)
    second.load_state_dict(state)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert shares(second, 10) == shares(first, 10) == pytest.approx([form(n) for n in range(7, 17)], abs=1e-9)


@pytest.mark.parametrize("which", FORMS)
def test_a_run_without_warmup_begins_at_its_peak(which: str) -> None:
    factory, section, _ = FORMS[which]
    if which == "huggingface inverse_sqrt":
        section = {**section, "scheduler_specific_kwargs": {"timescale": 3}}
    assert shares(make(factory, warmup=0, **section), 1) == [pytest.approx(1.0)]


@pytest.mark.parametrize("warmup", [0, WARMUP])
@pytest.mark.parametrize("which", FORMS)
def test_a_run_that_only_evaluates_keeps_the_schedule_of_one_that_trains(which: str, warmup: int) -> None:
    factory, section, _ = FORMS[which]
    assert 0 <= shares(make(factory, warmup=warmup, horizon=0, **section), 1)[0] <= 1


FALLING = [
    one
    for one, (_, section, _) in FORMS.items()
    if "constant" not in one and not {"min_lr_ratio", "min_lr_rate", "lr_end"} & {*section, *section.get(KWARGS, ())}
]


@pytest.mark.parametrize("which", FALLING)
def test_what_is_above_the_least_rate_follows_the_schedule(which: str) -> None:
    factory, section, form = FORMS[which]
    expected = [form(n) if n < WARMUP else 0.1 + 0.9 * form(n) for n in range(HORIZON + 1)]
    assert shares(make(factory, min_lr=0.1 * PEAK, **section)) == pytest.approx(expected, abs=1e-9)


def test_every_group_of_weights_ends_at_the_least_rate() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (PEAK, PEAK / 5)]
    view: Any = SimpleNamespace(warmup_steps=WARMUP, training_horizon=HORIZON)
    for name in ("cosine", "cosine_with_min_lr"):
        config = HFSchedulerFactory.config_type(type="huggingface", name=name, min_lr=0.05)
        schedule = HFSchedulerFactory(view, config)(torch.optim.SGD(groups))
        for _ in range(HORIZON):
            step(schedule)
        assert schedule.get_last_lr() == pytest.approx([0.05, 0.05])
    config.min_lr = 0.2
    with pytest.raises(RecipeError, match=r"scheduler\.min_lr: 0.2 is above a learning rate of the optimizer, 0.1"):
        HFSchedulerFactory(view, config)(torch.optim.SGD(groups))


def test_what_cannot_be_is_refused_in_a_sentence() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"name": "cosine", "scheduler_specific_kwargs": {"cycles": 2}}, "'cosine' cannot be made: .*cycles"),
        ({"name": "cosine_with_min_lr"}, "cannot be made: One of min_lr or min_lr_rate"),
        ({"name": "polynomial", "scheduler_specific_kwargs": {"lr_end": -1}}, "its learning rate becomes negative"),
        ({"name": "inverse_sqrt", "scheduler_specific_kwargs": {"timescale": 0}}, "cannot be made: division by zero"),
    ]
    for section, message in cases:
        with pytest.raises(RecipeError, match=message):
            make(HFSchedulerFactory, **section)
    ignored: list[tuple[dict[str, Any], str]] = [
        ({"scheduler_specific_kwargs": {"power": 2}}, "constant takes none, and has power"),
        ({"warmup_steps": 3}, "constant_with_warmup has"),
    ]
    for section, message in ignored:  # the section alone says it
        with pytest.raises(ValidationError, match=message):
            HFSchedulerFactory.config_type(name="constant", **section)
    with pytest.raises(ValidationError, match="no schedule is named 'linaer'; did you mean 'linear'"):
        make(HFSchedulerFactory, name="linaer")
    with pytest.raises(RecipeError, match="a warm-up of 30 steps is longer than the run, which has 20"):
        make(ConstantFactory, warmup=30)
    with pytest.raises(RecipeError, match="4 steps of warm-up and 18 of decay are more than the run's 20"):
        make(WSDFactory, num_decay_steps=18)


def test_two_ways_of_saying_the_same_warmup_are_refused() -> None:
    for section in ({"warmup_steps": 3, "warmup_ratio": 0.1}, {"warmup_epochs": 1, "warmup_steps": 2}):
        with pytest.raises(ValidationError, match="both set the warm-up"):
            ConstantFactory.config_type(type="constant", **section)
    with pytest.raises(ValidationError):
        WSDFactory.config_type(type="wsd", num_warmup_steps=3, warmup_steps=4)


def test_what_a_schedule_wants_may_be_written_as_people_write_numbers() -> None:
    def rates(rate: Any) -> list[float]:
        return shares(
            make(HFSchedulerFactory, name="cosine_with_min_lr", scheduler_specific_kwargs={"min_lr_rate": rate})
        )

    assert rates("10%") == rates(0.1)
