"""Estimates what a run will take: parameters, memory of each device, steps, tokens and operations."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.batching.loader import OrderedLoader
from arctic_training.errors.types import ArcticError
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.loss.tokens import TokenCounts
from arctic_training.model.flops import count_flops
from arctic_training.model.memory_alternatives import Alternative
from arctic_training.model.memory_estimate import (
    USABLE_SHARE,
    Batch,
    Estimate,
    Footprint,
    Layout,
)
from arctic_training.trainer.assembly import build_component, build_factory, used_roles
from arctic_training.trainer.memory import Model, alternatives, computed, count_model, needed, surely_needed
from arctic_training.trainer.role import Role, RoleView
from arctic_training.trainer.trainer import Trainer
from arctic_training.trainer.validation import unstarted

Offload = Literal["none", "optimizer", "optimizer and weights"]


@dataclass(frozen=True)
class Machine:
    """Machine that a run is planned for."""

    processes: int = 1
    """One for each device."""
    device: Literal["cpu", "gpu"] = "gpu"
    device_memory: int | None = None
    """Bytes of each device; None: not known."""
    host_memory: int | None = None
    """Bytes of main memory, of a machine with all processes; None: not known."""

    @property
    def usable(self) -> float | None:
        """Bytes of each device that an estimate may fill."""
        return None if self.device_memory is None else USABLE_SHARE * self.device_memory


def find_machine(
    processes: int | None = None, device_memory: int | None = None, host_memory: int | None = None
) -> Machine:
    """Returns a machine with the devices of this one, as far as it is not stated; sizes are in bytes."""
    here = torch.cuda.device_count()
    if device_memory is None and here:
        device_memory = torch.cuda.get_device_properties(0).total_memory
    device: Literal["cpu", "gpu"] = "cpu" if device_memory is None else "gpu"
    return Machine(processes or here or 1, device, device_memory, host_memory)


@dataclass(frozen=True)
class Placement:
    """A ZeRO stage, and what is offloaded to main memory."""

    stage: int
    offload: Offload
    estimate: Estimate
    """The bytes on each device."""
    recomputes: bool
    """Whether layers are computed again for the gradient."""
    main_memory: int
    """Bytes of offloaded state in the main memory of one machine that has all processes."""
    is_recipe: bool
    """Whether it is that of the recipe."""


@dataclass(frozen=True)
class Work:
    """Amount that a run computes; None: not known before the data are prepared."""

    steps: int | None = None
    tokens: int | None = None
    """Of the whole run, without padding, in prepared data; by the lengths of rows at most where ``at_most``."""
    at_most: bool = False
    flops: float | None = None
    """Operations of the whole run, without what is computed again for activation checkpointing."""


@dataclass(frozen=True)
class Plan:
    """Estimate of what a run will take on a machine."""

    machine: Machine
    models: list[Model]
    placements: list[Placement]
    work: Work
    alternatives: list[Alternative]
    """What would make it fit, from what costs least; empty where it fits, or where nothing does."""

    @property
    def placement(self) -> Placement:
        """The placement of the recipe."""
        return next(one for one in self.placements if one.is_recipe)

    @property
    def fits(self) -> bool | None:
        """Returns whether the recipe fits into the devices; None where their memory is not known."""
        usable = self.machine.usable
        return None if usable is None else self.placement.estimate.total <= usable

    @property
    def surely_needed(self) -> int:
        """Bytes of each device that a run surely takes."""
        return surely_needed(self.models)

    @property
    def is_refused(self) -> bool | None:
        """Returns whether a run is refused for its memory (see `check_memory`); None where that of the devices is not
        known. One that fits is not."""
        memory = self.machine.device_memory
        return None if memory is None else self.surely_needed > memory


def make_plan(config: TrainerConfig, machine: Machine) -> Plan:
    """Returns the plan of a run, by the configs of its models and the data that are prepared already.

    Nothing is written, and no device is used. Raises `ModelError` for a model whose config is not here.
    """
    config.mesh.check_processes(machine.processes, sequence_parallel_size=config.sequence_parallel_size)
    trainer = unstarted(config, processes=machine.processes)
    models = [_model(RoleView(trainer, role), role, machine) for role in used_roles(trainer)]
    placements = _placements(models, config, machine)
    plan = Plan(machine, models, placements, _work(trainer, models, machine), [])
    if plan.fits is not False or machine.usable is None:
        return plan
    changes = alternatives(models, machine.usable, config.micro_batch_size)
    first = next(one for one in models if not one.is_freed)
    if (host := machine.host_memory) is not None:
        changes = [one for one in changes if _main_memory(first.footprint, one.layout, one.batch) <= host]
    return replace(plan, alternatives=changes)


def _main_memory(size: Footprint, layout: Layout, batch: Batch) -> int:
    """Returns the bytes in the main memory of a machine that has all processes."""
    return layout.in_main_memory(size.parameters, size.trained) + layout.world * size.in_main_memory(batch)


def _model(view: RoleView, role: Role, machine: Machine) -> Model:
    """Returns the model of a role. Raises `ModelError`."""
    factory = build_factory(view, getattr(view.config, role.name), "model_factory_type")
    meta_model = factory.create_meta_model()
    model = count_model(view, role, factory, meta_model, processes=machine.processes, device=machine.device)
    return model if meta_model is None else replace(model, flops=count_flops(meta_model))


def _placed(model: Model, stage: int, offload: Offload) -> Layout:
    weights = offload == "optimizer and weights"
    return replace(model.layout, stage=stage, offloads=offload != "none", offloads_weights=weights)


def _placements(models: Sequence[Model], config: TrainerConfig, machine: Machine) -> list[Placement]:
    """Returns the placements at which the optimizer works, and that of the recipe."""
    own = models[0].layout
    offload: Offload = "optimizer and weights" if own.offloads_weights else "optimizer" if own.offloads else "none"
    recipe = (own.stage, offload)
    highest = config.optimizer.highest_stage(config.model.dtype)
    choices: list[tuple[int, Offload]] = [(stage, "none") for stage in (range(4) if own.model == 1 else (1, 2))]
    if own.model == 1:
        choices += [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "optimizer and weights")]
    placements = []
    for stage, offload in sorted({*choices, recipe}):
        is_recipe = (stage, offload) == recipe
        if stage > highest and not is_recipe:
            continue
        layouts = [one.layout if is_recipe else _placed(one, stage, offload) for one in models]
        batches = [computed(one, layout, machine.usable) for one, layout in zip(models, layouts, strict=True)]
        estimate, recomputes = needed(models, layouts, batches), any(one.recomputation.layers for one in batches)
        parts = zip(models, layouts, batches, strict=True)
        main_memory = sum(_main_memory(one.footprint, layout, batch) for one, layout, batch in parts)
        placements.append(Placement(stage, offload, estimate, recomputes, main_memory, is_recipe))
    return placements


def _work(trainer: Trainer, models: Sequence[Model], machine: Machine) -> Work:
    """Returns the work of the run, from prepared data where they are in the cache."""
    epoch: TokenCounts | None = None
    with suppress(ArcticError, OSError):  # data or tokenizer are not here, which the run will say
        epoch = _prepared_tokens(trainer)
    steps = trainer.training_horizon or None
    if epoch is not None and trainer.steps_per_epoch and steps:
        counts = TokenCounts(*(round(one * steps / trainer.steps_per_epoch) for one in epoch))
        return Work(steps, counts.tokens, flops=_flops(models, counts))
    at_once = models[0].batch.tokens if models else 0
    if not steps or not at_once:
        return Work(steps)
    readers = max(1, machine.processes // trainer.config.mesh.model)
    most = steps * trainer.config.gradient_accumulation_steps * readers * at_once
    row = at_once // trainer.config.micro_batch_size  # the longest document
    return Work(steps, most, at_most=True, flops=_flops(models, TokenCounts(most, most * row, most)))


def _flops(models: Sequence[Model], counts: TokenCounts) -> float | None:
    """Returns the operations of all models on tokens that each of them reads once; None where one is not known."""
    sums = [
        one.flops.inference(counts) if one.layout.frozen else one.flops.training(counts)
        for one in models
        if one.flops is not None
    ]
    return sum(sums) if len(sums) == len(models) else None


def _prepared_tokens(trainer: Trainer) -> TokenCounts | None:
    """Returns the tokens of an epoch of prepared data, whose loader the trainer gets; None for other data.

    Raises `ArcticError` where the cache does not hold them.
    """
    if not hasattr(trainer.config.data, "fail_on_missing_cache"):
        return None
    data = trainer.config.data.model_copy(update={"fail_on_missing_cache": True})
    trainer.config = trainer.config.model_copy(update={"data": data})
    trainer.tokenizer = build_component(trainer, "tokenizer")
    trainer.train_loader = build_component(trainer, "data").train
    loader = trainer.train_loader
    samples: object = getattr(loader, "dataset", None)
    if not isinstance(loader, OrderedLoader) or not hasattr(samples, "lengths"):
        return None
    lengths = samples.lengths().astype(np.int64)
    labels = int(lengths.sum())
    if hasattr(samples, "count_other_than"):
        with suppress(KeyError):  # without labels every token is one
            labels = int(samples.count_other_than(IGNORE_INDEX, "labels").sum())
    passes = loader.order.first_row(1) / loader.order.size
    return TokenCounts(*(round(passes * int(one)) for one in (lengths.sum(), (lengths**2).sum(), labels)))
