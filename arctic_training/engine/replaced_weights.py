"""Other weights in place of a model's own inside a block, at any ZeRO stage."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from arctic_training.engine.deepspeed_internals import (
    copy_to_masters,
    gather_persistent_params,
    is_partitioned_param,
    local_tensor,
)
from arctic_training.engine.engine import TrainedEngine


@contextmanager
def replaced_weights(engine: TrainedEngine, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Runs the block with ``weights`` in place of the model's own, which are the same to the bit afterwards.

    ``weights`` are, by the names of all parameters and buffers, what this rank holds of each: the full tensor, or at
    stage 3 its shard, of any floating dtype. fp32 weights of the optimizer stay as they are, so no step may be taken in
    the block. ``engine`` is a `TrainedEngine`. All ranks enter and leave together.
    """
    module = engine.module
    held = {name: local_tensor(one) for name, one in (*module.named_parameters(), *module.named_buffers())}
    own = {name: tensor.clone() for name, tensor in held.items()}
    try:
        _write(engine, held, weights)
        yield
    finally:
        _write(engine, held, own)


def set_weights(engine: TrainedEngine, weights: Mapping[str, Tensor]) -> None:
    """Replaces parameters and buffers by ``weights``, which are as those of `replaced_weights`, of some names or all.

    fp32 copies of the optimizer get the same values, so that a step or a checkpoint goes on from them; its moments
    stay. All ranks call it together.
    """
    held = {
        name: local_tensor(one) for name, one in (*engine.module.named_parameters(), *engine.module.named_buffers())
    }
    _write(engine, {name: held[name] for name in weights}, weights)
    copy_to_masters(engine.deepspeed.optimizer)


def _write(engine: TrainedEngine, held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    is_sharded = any(is_partitioned_param(parameter) for parameter in engine.module.parameters())
    if is_sharded:
        engine.deepspeed.empty_partition_cache()  # parameters that are still gathered have the former values
    with torch.no_grad():
        torch._foreach_copy_(list(held.values()), [weights[name] for name in held])
    if is_sharded:
        gather_persistent_params(engine.deepspeed.optimizer)
