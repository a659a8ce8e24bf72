"""Counts what the models of a run take of a device: for its plan, and to refuse a run that cannot fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from arctic_training.component import TrainerView
from arctic_training.distributed import process_group
from arctic_training.engine.config import deepspeed_config
from arctic_training.errors.types import ModelError
from arctic_training.model.causal_lm import max_positions
from arctic_training.model.factory import ModelFactory
from arctic_training.model.flops import ModelFlops
from arctic_training.model.memory_alternatives import Alternative, fitting, total
from arctic_training.model.memory_estimate import (
    USABLE_SHARE,
    Batch,
    Estimate,
    Footprint,
    Layout,
    footprint,
    layout_of,
    tokens_at_once,
)
from arctic_training.trainer.role import Role, RoleView


@dataclass(frozen=True)
class Model:
    """A model of the run."""

    role: str
    footprint: Footprint
    layout: Layout
    """By the recipe."""
    batch: Batch
    """The micro-batch that it computes at once, with a gradient unless it is frozen."""
    is_auto: bool = False
    """Its layers are computed again for the gradient where they would not fit."""
    is_freed: bool = False
    """It is used before training only, when no other model is on the device."""
    least: tuple[Layout, Batch] | None = None
    """The layout and batch that it surely has; None where none is sure."""
    flops: ModelFlops | None = None
    """None where its operations are not known."""


def count_model(
    view: RoleView,
    role: Role,
    factory: ModelFactory[Any],
    meta_model: nn.Module | None,
    *,
    processes: int,
    device: Literal["cpu", "gpu"] = "gpu",
) -> Model:
    """Returns the model of ``role`` by ``meta_model``, the model on the meta device; without one it counts nothing.

    An optimizer whose state is unknown counts as Adam, and surely has none. Batches are surely full where the data
    section fills them, and surely empty elsewhere. Of quantized weights nothing is sure, nor where a ``bf16`` block
    keeps less in fp32.
    """
    config, section = view.config, factory.config
    if meta_model is None:
        return Model(role.name, Footprint(0, 0, None), Layout(section.dtype), Batch(0))
    deepspeed = deepspeed_config(config, world=processes, dtype=section.dtype, block=view.deepspeed_block)
    layout = replace(layout_of(view, section, deepspeed, processes), frozen=role.frozen)
    stated = getattr(config.data, "max_length", None)
    max_length = stated or max_positions(meta_model)
    tokens = 0 if role.frozen or max_length is None else tokens_at_once(config, max_length)
    again = factory.recomputation
    batch = Batch(tokens, replace(again, offloads=again.offloads and device == "gpu"), device)
    size, is_auto = footprint(meta_model), factory.checkpoints_activations is None
    least = None
    if len(deepspeed.get("bf16", {})) <= 1 and not hasattr(getattr(meta_model, "config", None), "quantization_config"):
        unknown = getattr(view.optimizer_section, "moments", None) is None
        held = replace(layout, moments=0) if unknown else layout
        full = batch if stated and getattr(config.data, "fills_rows", False) else replace(batch, tokens=0)
        ways = [full, full.checkpointed()] if is_auto else [full]
        least = held, min(ways, key=lambda way: size.estimate(held, way).total)
    is_freed = bool(role.precompute_key and getattr(config, role.precompute_key))
    return Model(role.name, size, layout, batch, is_auto, is_freed, least)


def computed(model: Model, layout: Layout, usable: float | None) -> Batch:
    """Returns what a model computes at once: with its layers again for the gradient where a run would decide so."""
    if not model.is_auto or usable is None or model.footprint.estimate(layout, model.batch).total <= usable:
        return model.batch
    return model.batch.checkpointed()


def needed(models: Sequence[Model], layouts: Sequence[Layout], batches: Sequence[Batch]) -> Estimate:
    """Returns the most that ``models``, which are not empty, take of a device at once, in these layouts."""
    parts = zip(models, layouts, batches, strict=True)
    estimates = [(one.is_freed, one.footprint.estimate(layout, batch)) for one, layout, batch in parts]
    together = [estimate for is_freed, estimate in estimates if not is_freed]
    alone = [estimate for is_freed, estimate in estimates if is_freed]
    return max([*([total(together)] if together else []), *alone], key=lambda one: one.total)


def surely_needed(models: Sequence[Model]) -> int:
    """Returns the bytes that ``models`` surely take of a device at once: at most those of `needed`, by the recipe.

    Gradients and activations of one of them count, as if those of the others were freed before.
    """
    estimates = [(one.is_freed, one.footprint.estimate(*one.least)) for one in models if one.least is not None]
    together = [estimate for is_freed, estimate in estimates if not is_freed]
    most = sum(one.kept for one in together) + max((one.total - one.kept for one in together), default=0)
    return max([most, *(estimate.total for is_freed, estimate in estimates if is_freed)])


def alternatives(models: Sequence[Model], usable: float, micro_batch_size: int) -> list[Alternative]:
    """Returns changes of the first of ``models`` by which all take at most ``usable`` bytes, from what costs least."""
    first, *others = (one for one in models if not one.is_freed)
    rest = total([one.footprint.estimate(one.layout, one.batch) for one in others]).total if others else 0
    batch = computed(first, first.layout, usable)
    return fitting(first.footprint, usable - rest, first.layout, batch, micro_batch_size)


def check_memory(trainer: TrainerView, roles: Sequence[Role], factories: Mapping[str, ModelFactory[Any]]) -> None:
    """Compares what the models surely take with the whole memory of the GPU, where there is one.

    An estimate may fill `USABLE_SHARE` of it only to be called fitting; a run is refused where even all of it is too
    little. Called when the factories have checked their models. Raises `ModelError`.
    """
    if trainer.device.type != "cuda":
        return
    memory, processes = torch.cuda.mem_get_info(trainer.device)[1], process_group.world_size()
    models = []
    for role in roles:
        view, factory = RoleView(trainer, role), factories[role.name]
        models.append(count_model(view, role, factory, factory.meta_model, processes=processes))
    if (least := surely_needed(models)) <= memory:
        return
    known = [one for one in models if one.least is not None]
    changes = [one.change for one in alternatives(models, USABLE_SHARE * memory, trainer.config.micro_batch_size)]
    hint = f"what would fit: {'; '.join(changes)}" if changes else "nothing that is known here would fit"
    of = "" if len(known) == 1 else f" of {' and '.join(one.role for one in known)}"
    has_batch = any(one.least[1].tokens for one in known if one.least is not None)
    what = "weights, gradients, optimizer and a micro-batch" if has_batch else "weights, gradients and optimizer"
    raise ModelError(
        f"{known[0].role}: {what}{of} take {least / 2**30:.1f} GiB by an estimate, and the GPU has "
        f"{memory / 2**30:.1f}; {hint}"
    )
