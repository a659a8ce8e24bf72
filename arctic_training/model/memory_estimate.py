"""Estimates how much memory training a model takes, before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from arctic_training.component import TrainerView
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.engine.dtypes import DTYPES
from arctic_training.engine.internals.parameters import full_shape
from arctic_training.engine.tensor_parallel import count_divisible
from arctic_training.loss.output_layer import rows_per_chunk
from arctic_training.model.kept_activations import Kept, Recomputation, count_kept
from arctic_training.registry import lookup

BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()}

USABLE_SHARE = 0.85
"""Share of a GPU's memory that an estimate may fill; the rest is for what no estimate knows."""

_BUCKET = 5 * 10**7
"""Elements of DeepSpeed's buffer for the gradients that it reduces at once, at most (see `engine.config`)."""
_REDUCED = 5 * 10**8
"""Elements of the gradients that it copies to reduce them below ZeRO stage 2, at most."""
_LIVE = 10**9
"""Elements of the weights that ZeRO stage 3 keeps gathered, at most: DeepSpeed's ``stage3_max_live_parameters``."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on each device, by what they hold."""

    weights: int
    """In the dtype of forward and backward; at ZeRO stage 3 also those that are gathered."""
    gradients: int
    """At the end of the backward pass, with the copies of the optimizer's step."""
    master: int
    """The optimizer's own fp32 weights."""
    optimizer: int
    """What the optimizer keeps for each weight."""
    activations: int
    """What the layers keep for the gradient of one micro-batch."""
    loss: int
    """The logits of a few rows at a time, the gradients of the output layer, and the buffer of reduced gradients."""
    early: int = 0
    """Those of the gradients that are in memory during the forward pass already."""

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer."""
        return self.weights + self.gradients + self.master + self.optimizer

    @property
    def kept(self) -> int:
        """Bytes that stay from step to step: weights and optimizer."""
        return self.weights + self.master + self.optimizer

    @property
    def total(self) -> int:
        """The most at once: gradients take the place of activations during the backward pass."""
        return self.kept + max(self.gradients, self.early + self.activations + self.loss)

    def __add__(self, other: "Estimate") -> "Estimate":
        """Returns the estimate of two models of one run, which are computed one after the other."""
        added = {name: getattr(self, name) + getattr(other, name) for name in vars(self)}
        largest = {name: max(getattr(self, name), getattr(other, name)) for name in ("activations", "loss")}
        return Estimate(**(added | largest))


@dataclass(frozen=True)
class Layout:
    """Layout in which a run holds a weight, its gradient and what the optimizer keeps for it."""

    dtype: str
    stage: int = 0
    world: int = 1
    """Processes over which ZeRO shards: those that read different rows or parts of them."""
    model: int = 1
    """Processes that divide the weights of a model."""
    moments: int = 2
    """Values that the optimizer keeps for each weight, of four bytes each."""
    offloads: bool = False
    """The optimizer's part is in main memory."""
    offloads_weights: bool = False
    frozen: bool = False
    """Nothing takes gradients; what an adapter adds is too little to count."""
    accumulates: bool = False
    """A step has several micro-batches."""

    def state(self, model: nn.Module) -> int:
        """Returns the bytes of ``model`` on each device: weights, gradients and optimizer."""
        return self.held(*count_parameters(model)).state

    def held(self, total: int, trained: int) -> Estimate:
        """Returns the bytes on each device of ``total`` weights, ``trained`` of which take gradients.

        The sums are those of DeepSpeed's optimizers: torch's own and `FP16_UnfusedOptimizer` at stage 0,
        `BF16_Optimizer` at 1 in bf16, else `DeepSpeedZeroOptimizer`, and at 3 `DeepSpeedZeroOptimizer_Stage3`.
        """
        trained, width, mixed = 0 if self.frozen else trained, BYTES[self.dtype], self.dtype != "fp32"
        world, stage = self.world, self.stage
        shard = world if stage else 1
        weights = 0 if self.offloads_weights else total * width // (world if stage == 3 else 1)
        if stage == 3 and (world > 1 or self.offloads_weights):
            weights += min(total, _LIVE) * width
        own = width * trained // (world if stage >= 2 else 1)
        if self.offloads:
            return Estimate(weights, own, 0, 0, 0, 0, own if self.accumulates else 0)
        reduced = min(trained, _REDUCED)
        if stage == 0:
            copies, early = max(width * reduced, 4 * trained * mixed), own * self.accumulates
        elif self.dtype == "bf16" and stage == 1:
            copies, early = 4 * trained + 6 * reduced, 4 * trained + own * self.accumulates
        elif stage == 3:
            copies, early = 4 * trained // world, 4 * trained // world
        else:
            copies, early = 4 * trained // world, own * self.accumulates
        own = own if stage < 2 else 0 if mixed and stage == 2 else 4 * trained // world
        master = 4 * trained // shard if mixed or stage else 0
        optimizer = 4 * self.moments * trained // shard
        return Estimate(weights, own + copies, master, optimizer, 0, 0, early)

    def in_main_memory(self, total: int, trained: int) -> int:
        """Returns the bytes that this layout holds in the main memory of a machine that has all processes."""
        optimizer = 4 * (2 + self.moments) * trained if self.offloads and not self.frozen else 0
        return optimizer + (total * BYTES[self.dtype] if self.offloads_weights else 0)


@dataclass(frozen=True)
class Batch:
    """Batch that a device computes at once."""

    tokens: int
    """Tokens of a micro-batch, at most."""
    recomputation: Recomputation = field(default_factory=Recomputation)
    device: Literal["cpu", "gpu"] = "gpu"
    """The kind of device, on which the rows of logits that are computed at once depend."""

    def checkpointed(self) -> "Batch":
        """Returns the same with layers of which all is computed again for the gradient."""
        return replace(self, recomputation=replace(self.recomputation, layers=True, selective=False))


def layout_of(trainer: TrainerView, section: ModelConfig, deepspeed: Mapping[str, Any], processes: int) -> Layout:
    """Returns how a run of so many ``processes`` holds the model of ``section``, by the config that ``deepspeed`` gets.

    An optimizer whose state is unknown counts as Adam.
    """
    zero = deepspeed["zero_optimization"]
    devices = [zero.get(f"offload_{part}", {}).get("device", "none") for part in ("optimizer", "param")]
    moments = getattr(getattr(trainer, "optimizer_section", None), "moments", None)
    return Layout(
        section.dtype,
        int(zero["stage"]),
        max(1, processes // trainer.config.mesh.model),
        trainer.config.mesh.model,
        2 if moments is None else moments,
        offloads=devices[0] != "none",
        offloads_weights=devices[1] != "none",
        frozen=getattr(section, "peft_config", None) is not None or getattr(trainer, "frozen", False),
        accumulates=trainer.config.gradient_accumulation_steps > 1,
    )


def tokens_at_once(recipe: TrainerConfig, max_length: int) -> int:
    """Returns the tokens of a micro-batch of rows of ``max_length`` on one process, at most."""
    per_row = getattr(lookup("data_factory", recipe.data.type), "sequences_per_row", 1)
    sequences = recipe.micro_batch_size * getattr(recipe, "num_generations", 1) * per_row
    return int(sequences * max_length // recipe.sequence_parallel_size)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Returns the number of weights of ``model``, and of those that are trained."""
    sizes = [(full_shape(one).numel(), one.requires_grad) for one in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)


@dataclass(frozen=True)
class Footprint:
    """Sizes of a model that its memory in training depends on, beside its layout and its batches."""

    parameters: int
    trained: int
    """Of the parameters, those that take gradients."""
    kept: Kept | None
    """None where it is not known, and only the state is estimated."""
    head: tuple[int, int] = (0, 0)
    """Width and labels of the linear layer that makes the logits; 0 without one."""
    trains_head: bool = False
    divisible: tuple[int, int] = (0, 0)
    """Of parameters and trained ones, those that the processes of `Layout.model` divide."""

    def estimate(self, layout: Layout, batch: Batch) -> Estimate:
        """Returns the bytes on each device; activations and loss are those of a model that is whole."""
        elsewhere, trained_elsewhere = (size - size // layout.model for size in self.divisible)
        held = layout.held(self.parameters - elsewhere, self.trained - trained_elsewhere)
        if self.kept is None or not batch.tokens:
            return held
        again, loss = batch.recomputation, self._of_loss(layout, batch)
        activations = again.kept(self.kept, batch.tokens)
        if again.layers:  # when a layer is computed again, the logits are gone
            loss = max(0, loss - int(again.computed_again(self.kept, batch.tokens)))
        return replace(held, activations=activations, loss=loss)

    def in_main_memory(self, batch: Batch) -> int:
        """Returns the bytes of a micro-batch that a process keeps in main memory until the backward pass."""
        return 0 if self.kept is None else batch.recomputation.in_main_memory(self.kept, batch.tokens)

    def _of_loss(self, layout: Layout, batch: Batch) -> int:
        """Returns the bytes of `loss.cross_entropy` and of the buffer in which gradients are reduced."""
        width, mixed = BYTES[layout.dtype], layout.dtype != "fp32"
        reduces = layout.stage > 1 or (layout.stage == 1 and layout.dtype != "bf16")
        bucket = min(self.trained, _BUCKET) * width if reduces and not layout.frozen else 0
        inner, labels = self.head
        if not labels:
            return bucket
        logits = min(batch.tokens, rows_per_chunk(batch.device, labels)) * labels * (6 if mixed else 4)
        of_head = 4 * inner * labels if self.trains_head and not layout.frozen else 0
        return max(bucket, logits + of_head + batch.tokens * inner * width)


def footprint(model: nn.Module) -> Footprint:
    """Returns the footprint of ``model``, whose parameters may be on any device, such as meta."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    shape = (head.in_features, head.out_features) if isinstance(head, nn.Linear) else (0, 0)
    trains_head = isinstance(head, nn.Linear) and head.weight.requires_grad
    kept = count_kept(model) or _kept_by_config(model)
    return Footprint(*count_parameters(model), kept, shape, trains_head, count_divisible(model))


def _kept_by_config(model: nn.Module) -> Kept | None:
    """Returns what layers keep by the widths in the config of a model; None for a config without them.

    A layer with attention that keeps no scores and a gated MLP keeps, for every token, about twelve vectors of the
    model's width and five of the MLP's. After Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, whose count
    of 34 bytes is for an MLP of four times the width, 16 bits and dropout.
    """
    config: object = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    width, layers = getattr(text, "hidden_size", None), getattr(text, "num_hidden_layers", None)
    if not width or not layers:
        return None
    inner = getattr(text, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * width
    size = next((one.element_size() for one in model.parameters()), 4)
    # of these, linear layers and attention return six and two, one and two of them in the MLP
    products, of_mlp = size * (6 * width + 2 * inner), size * (width + 2 * inner)
    return Kept(0, size * (12 * width + 5 * inner), size * width, layers, 5 * size * inner, products, of_mlp)
