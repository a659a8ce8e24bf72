"""Other weights in place of a model's own inside a block, at any ZeRO stage."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from arctic_training.engine.averaging import restart_average
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.internals.optimizer import copy_to_masters, gather_persistent_params
from arctic_training.engine.internals.parameters import is_partitioned_param, local_tensor


@contextmanager
def replaced_weights(engine: TrainedEngine, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Runs the block with ``weights`` in place of the model's own, which are the same to the bit afterwards.

    ``weights`` are, by the names of some or all parameters and buffers, what this rank holds of each: the full tensor,
    or at stage 3 its shard, of any floating dtype. fp32 weights of the optimizer stay as they are, so no step may be
    taken in the block. ``engine`` is a `TrainedEngine`. All ranks enter and leave together.
    """
    held, before = _held(engine, weights), engine.holds_trained_weights
    own = {name: tensor.clone() for name, tensor in held.items()}
    try:
        engine.holds_trained_weights = False
        _write(engine, held, weights)
        yield
    finally:
        _write(engine, held, own)
        engine.holds_trained_weights = before


def set_weights(engine: TrainedEngine, weights: Mapping[str, Tensor]) -> None:
    """Replaces parameters and buffers by ``weights``, which are as those of `replaced_weights`.

    fp32 copies of the optimizer get the same values, so that a step or a checkpoint goes on from them; its moments
    stay, and an average that it keeps begins anew. All ranks call it together.
    """
    _write(engine, _held(engine, weights), weights)
    copy_to_masters(engine.deepspeed.optimizer)
    restart_average(engine)


def _held(engine: TrainedEngine, names: Iterable[str]) -> dict[str, Tensor]:
    held = dict((*engine.module.named_parameters(), *engine.module.named_buffers()))
    return {name: local_tensor(held[name]) for name in names}


def _write(engine: TrainedEngine, held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    is_sharded = any(is_partitioned_param(parameter) for parameter in engine.module.parameters())
    if is_sharded:
        engine.deepspeed.empty_partition_cache()  # parameters that are still gathered have the former values
    with torch.no_grad():
        torch._foreach_copy_(list(held.values()), [weights[name] for name in held])
    if is_sharded:
        gather_persistent_params(engine.deepspeed.optimizer)
