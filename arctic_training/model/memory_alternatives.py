"""Finds what makes a run fit into the memory of its devices, from what costs least to what costs most."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from arctic_training.model.memory_estimate import Batch, Estimate, Footprint, Layout

_MOST_PROCESSES = 1024

_TILE, _OFFLOAD = "tiled_mlp_compute: true", "activation_checkpoint_cpu_offload: true"
_SAVERS = (
    ({"tile": _TILE}, "more time", 2.5),
    ({"offloads": _OFFLOAD}, "more time, main memory", 3.2),
    ({"tile": _TILE, "offloads": _OFFLOAD}, "more time, main memory", 3.6),
)
"""Changes of the `Recomputation`, with their costs and ranks."""


@dataclass(frozen=True)
class Alternative:
    """A change of the recipe."""

    change: str
    """Keys and values."""
    cost: str
    """What it costs beside memory."""
    rank: float
    """How much that is, in comparison with others."""
    layout: Layout
    batch: Batch
    changes: frozenset[str]
    """What is changed, to compare with others."""

    def after(self, other: "Alternative") -> "Alternative":
        """Returns this change of the batch together with ``other``, a change of the layout."""
        layout = replace(other.layout, accumulates=self.layout.accumulates)
        change, cost = f"{other.change}, {self.change}", f"{other.cost}, {self.cost}"
        return Alternative(change, cost, self.rank + other.rank, layout, self.batch, self.changes | other.changes)

    def __str__(self) -> str:
        return f"{self.change} ({self.cost})"


def fitting(
    footprint: Footprint, memory: float, layout: Layout, batch: Batch, micro_batch_size: int = 1
) -> list[Alternative]:
    """Returns the changes with which a run of a model of ``footprint`` takes at most ``memory`` bytes on each device,
    from what costs least. What is changed in vain is left out."""
    of_batch = list(_of_batch(layout, batch, micro_batch_size)) if batch.tokens else []
    of_batch += _of_recomputation(layout, batch, footprint.head[0] or 4096) if batch.tokens else []
    combined = [*of_batch]
    for one in _of_layout(layout, batch):
        combined += [one, *(other.after(one) for other in of_batch)]
    usable: list[Alternative] = []
    for one in sorted(combined, key=lambda one: one.rank):
        in_vain = any(other.changes <= one.changes for other in usable)
        if not in_vain and footprint.estimate(one.layout, one.batch).total <= memory:
            usable.append(one)
    return usable


def total(estimates: list[Estimate]) -> Estimate:
    """Returns the estimate of the models of one run, which is not empty."""
    first, *others = estimates
    for one in others:
        first = first + one
    return first


def _of_batch(layout: Layout, batch: Batch, micro_batch_size: int) -> Iterator[Alternative]:
    """Yields changes of what is computed at once, none of which changes what is trained."""
    smaller, again = replace(batch, tokens=batch.tokens // micro_batch_size), batch.checkpointed()
    keeps = again != batch
    micro = f"micro_batch_size: 1 with {micro_batch_size} times the gradient_accumulation_steps"
    recompute, accumulated = "model.activation_checkpointing: true", replace(layout, accumulates=True)
    less, time = "less to compute at once", "a third more time"
    if micro_batch_size > 1:
        yield Alternative(micro, less, 1, accumulated, smaller, frozenset({"batch"}))
    if keeps:
        yield Alternative(recompute, time, 2, layout, again, frozenset({"again"}))
    if micro_batch_size > 1 and keeps:
        least, both = smaller.checkpointed(), frozenset({"batch", "again"})
        yield Alternative(f"{recompute}, {micro}", f"{time}, {less}", 3, accumulated, least, both)


def _of_recomputation(layout: Layout, batch: Batch, width: int) -> Iterator[Alternative]:
    """Yields changes of how layers are computed again, for a model of hidden states of ``width`` elements."""
    again = batch.checkpointed()
    now = again.recomputation
    free = {"tile": not now.tile, "offloads": not now.offloads and batch.device == "gpu"}
    for keys, cost, rank in _SAVERS:
        if not all(free[key] for key in keys):
            continue
        saved = replace(now, tile=width if "tile" in keys else now.tile, offloads="offloads" in keys or now.offloads)
        first = [] if again == batch else ["model.activation_checkpointing: true"]
        changes = frozenset({*keys, *(["again"] if first else [])})
        words = ", ".join([*first, *keys.values()])
        yield Alternative(words, cost, rank, layout, replace(again, recomputation=saved), changes)


def _of_layout(layout: Layout, batch: Batch) -> Iterator[Alternative]:
    """Yields changes of where weights, gradients and optimizer are, or of what is trained."""
    if layout.frozen:
        return

    def change(words: str, cost: str, rank: float, what: str, changed: Layout) -> Alternative:
        return Alternative(words, cost, rank, changed, batch, frozenset({what}))

    highest = 2 if layout.model > 1 else 3  # weights are sharded in one way
    for stage in range(max(layout.stage, 1) + 1, highest + 1) if layout.world > 1 else ():
        words = f"deepspeed.zero_optimization.stage: {stage}"
        yield change(words, "more traffic", stage / 2, "stage", replace(layout, stage=stage))
    if layout.model > 1:
        return
    world = 2 * layout.world
    while world <= _MOST_PROCESSES:
        words = f"{world} processes with deepspeed.zero_optimization.stage: 3"
        yield change(words, "more devices", 6 + world / 1e4, "devices", replace(layout, stage=3, world=world))
        world *= 2
    offload, device = "deepspeed.zero_optimization.offload_optimizer: {device: cpu}", "{device: cpu}"
    if not layout.offloads:
        held = replace(layout, offloads=True, stage=max(layout.stage, 2))
        words = f"{offload} with optimizer.type: cpu_adam"
        yield change(words, "slower steps, main memory", 4, "offload", held)
    if not layout.offloads_weights:
        held = replace(layout, offloads=True, offloads_weights=True, stage=3)
        words = f"deepspeed.zero_optimization: {{stage: 3, offload_optimizer: {device}, offload_param: {device}}}"
        words += " with optimizer.type: cpu_adam"
        yield change(words, "much slower, main memory", 8, "offload all", held)
    if layout.moments > 1 and not layout.offloads:
        yield change("optimizer.type: lion", "another optimizer", 5, "optimizer", replace(layout, moments=1))
    if layout.moments > 0 and not layout.offloads:
        held = replace(layout, moments=0, stage=0)
        yield change("optimizer.type: adafactor", "another optimizer", 5.5, "optimizer", held)
    held = replace(layout, frozen=True)
    yield change("model.peft_config for an adapter", "only the adapter is trained", 10, "adapter", held)
