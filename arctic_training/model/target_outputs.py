"""The forward of a language model, with something else than logits computed at the positions of its targets."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from arctic_training.distributed.sequence_parallel import KEY
from arctic_training.engine.engine import Engine
from arctic_training.engine.zero import gathered
from arctic_training.errors.types import ModelError
from arctic_training.generation.prompts import is_encoder_decoder
from arctic_training.loss.layer_losses import RowLosses, sum_layer_losses
from arctic_training.loss.output_layer import PLAIN, LogitMap
from arctic_training.loss.targets import IGNORE_INDEX, count_targets
from arctic_training.model import attention, auxiliary_losses
from arctic_training.model.causal_lm import causal_model, decoder_inputs, model_inputs
from arctic_training.model.output_head import OutputHead, attribute_replaced, output_head, without_cross_entropy
from arctic_training.model.transformers_internals import accepts

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

T = TypeVar("T")


@dataclass(frozen=True)
class TargetOutputs:
    """Outputs of a model at the targets of a batch, row by row: hidden states and the layer that makes logits of them,
    or the logits of a model whose logits are not made by one linear layer."""

    ids: Tensor
    """The target tokens: ``[targets]``, int64."""
    hidden: Tensor | None = None
    """What the output layer receives: ``[targets, width]``, in the dtype of its weight."""
    layer: nn.Linear | None = None
    """The output layer."""
    bias: Tensor | None = None
    """What is added to the products with its weight, its own bias or a buffer of the model: ``[vocabulary]``."""
    logit_map: LogitMap = PLAIN
    """Logits are ``logit_map(hidden @ layer.weight.T + bias)``."""
    full_logits: Tensor | None = None
    """The logits, ``[targets, vocabulary]``, where there is no ``layer``."""

    def logits(self, rows: slice) -> Tensor:
        """Returns the logits of the targets that ``rows`` selects, fp32 ``[rows, vocabulary]``.

        Outside the forward of the model the weights of the layer must be in memory: see `weights_in_memory`.
        """
        if self.layer is None or self.hidden is None:
            assert self.full_logits is not None
            return self.full_logits[rows].float()
        outputs = nn.functional.linear(self.hidden[rows], self.layer.weight, self.bias)
        return self.logit_map(outputs.float())

    @contextmanager
    def weights_in_memory(self) -> Iterator[None]:
        """Gathers the weights of the layer inside the block, at ZeRO stage 3. All ranks enter it together."""
        with gathered([] if self.layer is None else self.layer.parameters(recurse=False)):
            yield

    def sum_losses(self, function: RowLosses) -> Tensor:
        """Returns the sum of ``function(logits, rows)`` over the targets, fp32 ``[]``, with gradients.

        ``function`` receives the logits of a few targets at a time, fp32 ``[n, vocabulary]``, and the slice of them,
        and returns their losses ``[n]``. Logits are not kept for the backward pass. Called in the forward of the model.
        """
        if self.layer is None or self.hidden is None:
            every = slice(0, len(self.ids))
            return function(self.logits(every), every).float().sum()
        return sum_layer_losses(self.hidden, self.layer.weight, self.bias, function, logit_map=self.logit_map)


Compute = Callable[[TargetOutputs], Tensor]


def at_targets(
    engine: Engine | nn.Module, batch: Mapping[str, Any], compute: Compute, *, terms: list[Tensor] | None = None
) -> Tensor:
    """Returns ``compute(outputs)``, of any shape, where ``outputs`` are the `TargetOutputs` of ``batch``.

    It is called in the forward of the model, so that weights that are sharded over the ranks are in memory. ``engine``
    and ``batch`` are those of `token_losses`, as are ``terms``, to which a loss that the model itself adds is
    appended: a scalar, to be added to a loss that is a mean. Raises `ModelError` where it would be lost.
    """
    values, added = compute_at_targets(engine, batch, compute)
    if added is not None:
        keep_added_loss(engine, added, terms, "at_targets")
    return values


def keep_added_loss(engine: Engine | nn.Module, added: Tensor, terms: list[Tensor] | None, caller: str) -> None:
    """Appends to ``terms`` the scalar that a model adds to its loss. Raises `ModelError` where it would be lost."""
    if terms is not None:
        terms.append(added)
    elif torch.is_grad_enabled() and added.requires_grad:
        raise ModelError(auxiliary_losses.dropped_loss_message(causal_model(engine), caller))


def compute_at_targets(
    engine: Engine | nn.Module, batch: Mapping[str, Any], compute: Compute
) -> tuple[Tensor, Tensor | None]:
    """Returns ``compute(outputs)``, and the scalar ``[]`` that the model adds to the mean of its loss, or None."""
    model = causal_model(engine)
    if is_encoder_decoder(model):
        batch = {"shift_labels": batch["labels"], "decoder_input_ids": decoder_inputs(model, batch["labels"]), **batch}
    inputs = model_inputs(model, batch)
    rows: AbstractContextManager[None] = nullcontext()
    mask: Tensor | None = None
    if batch.get("cu_seq_lens_q") is not None and batch.get("attention_mask") is None:
        mask = None if KEY in batch else _mask_of_packed_row(batch)
    elif model.config._attn_implementation == attention.NAME:
        # rows are padded on the right, where a causal model does not look
        mask = inputs.pop("attention_mask", None)
        rows = nullcontext() if mask is None else attention.one_document_per_row()
    with rows, attribute_replaced(model, "forward", lambda **kwargs: _forward(model, kwargs, batch, mask, compute)):
        values, added = engine(**inputs, labels=batch["labels"], use_cache=False)
    return values, added


def _mask_of_packed_row(batch: Mapping[str, Any]) -> Tensor:
    """Returns the attention mask ``[1, T]`` of a packed row, whose padding is a last document without targets."""
    start, positions = batch["cu_seq_lens_q"][-2], torch.arange(batch["labels"].shape[1], device=batch["labels"].device)
    last_has_targets = ((batch["labels"][0] != IGNORE_INDEX) & (positions > start)).any()
    mask: Tensor = (positions < start) | last_has_targets
    return mask.long()[None]


@dataclass(frozen=True)
class _Targets:
    """The targets of rows ``[rows, T]``, flattened row by row."""

    is_target: Tensor
    """Whether each position predicts a target: ``[rows * T]``, bool."""
    positions: Tensor
    """The positions that do: ``[targets]``, int64."""
    ids: Tensor
    """The target tokens: ``[targets]``, int64."""
    width: int
    """T."""


def _forward(
    model: "PreTrainedModel", kwargs: dict[str, Any], batch: Mapping[str, Any], mask: Tensor | None, compute: Compute
) -> tuple[Tensor, Tensor | None]:
    """Stands in for the model's forward, with the same but for head and cross-entropy.

    ``mask`` are the tokens ``[rows, T]`` that count in the loss that the model adds; attention does not need it.
    """
    labels: Tensor = kwargs.pop("labels", batch["labels"])  # an adapter of virtual tokens has made them longer
    shifted: Tensor | None = batch.get("shift_labels")
    num_targets = count_targets(labels, shifted=False) if shifted is None else count_targets(shifted, shifted=True)
    num_targets = batch.get("num_targets") if num_targets is None else num_targets
    shifted = (nn.functional.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:] if shifted is None else shifted).flatten()
    is_target = shifted != IGNORE_INDEX
    nonzero = is_target.nonzero() if num_targets is None else torch.nonzero_static(is_target, size=num_targets)
    positions = nonzero[:, 0]
    targets, head = _Targets(is_target, positions, shifted[positions], labels.shape[1]), output_head(model)
    with ExitStack() as stack:
        added_loss = stack.enter_context(without_cross_entropy(model, labels.device))
        if head.calls_loss:
            kwargs = {**kwargs, "labels": labels}
        if mask is not None and head.backbone is not None:
            mask = nn.functional.pad(mask, (labels.shape[1] - mask.shape[1], 0), value=1)
            kwargs = {**kwargs, "attention_mask": mask}
            stack.callback(head.backbone.register_forward_pre_hook(_remove_mask, with_kwargs=True, prepend=True).remove)
        # a head that is more than its weight (an adapter, a quantised layer) must be called as it is
        is_linear = head.map is not None and type(head.head) is nn.Linear and not head.adds_loss_of_logits
        run = _run_to_hidden if is_linear else _run_to_logits
        output, values = run(model, head, kwargs, targets, compute)
        term = added_loss(output) if len(positions) else None
    if term is not None:
        auxiliary_losses.count_kept(model)
    return values, term


def _remove_mask(module: nn.Module, args: T, kwargs: dict[str, Any]) -> tuple[T, dict[str, Any]]:
    return args, {**kwargs, "attention_mask": None}


def _run_to_hidden(
    model: "PreTrainedModel", head: OutputHead, kwargs: dict[str, Any], targets: _Targets, compute: Compute
) -> tuple["ModelOutput", Tensor]:
    """Computes of the hidden states of the targets only, for models whose head is a linear layer."""
    linear = head.head
    assert isinstance(linear, nn.Linear)
    added_bias = None if head.bias is None else getattr(model, head.bias)[0].to(linear.weight.dtype)
    results: list[Tensor] = []

    def values_of(hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        at_positions = hidden.flatten(0, 1).index_select(0, targets.positions).to(linear.weight.dtype)
        bias = linear.bias if added_bias is None else added_bias
        return compute(TargetOutputs(targets.ids, at_positions, linear, bias, head.map or PLAIN))

    def take(module: nn.Module, args: object, values: Tensor) -> Tensor:
        results.append(values)
        return torch.zeros(1, 1, 1, device=values.device)  # logits that nobody reads

    # called as a module, and taken behind its hooks: its weight may have to come from other ranks, backward too
    with linear.register_forward_hook(take), attribute_replaced(linear, "forward", values_of):
        output = type(model).forward(model, **kwargs)
    return output, results[0]


def _run_to_logits(
    model: "PreTrainedModel", head: OutputHead, kwargs: dict[str, Any], targets: _Targets, compute: Compute
) -> tuple["ModelOutput", Tensor]:
    """Computes of the logits of other models: of the columns that have a target, or of all tokens but padding where the
    model adds a loss that depends on them."""
    positions, width = targets.positions, targets.width
    if head.adds_loss_of_logits and head.head is not None:
        mask = kwargs.get("attention_mask")
        real = torch.ones_like(targets.is_target) if mask is None else mask.flatten() != 0
        forward = head.head.forward
        with attribute_replaced(
            head.head, "forward", lambda hidden, *args: forward(hidden.flatten(0, 1)[real][None], *args)
        ):
            output = type(model).forward(model, **kwargs)
        logits = output.logits[0, (real.cumsum(0) - 1)[positions]]
    else:
        rows, columns = positions // width, positions % width
        if accepts(model, "logits_to_keep"):
            some = columns if len(positions) else columns.new_zeros(1)
            kept, columns = torch.unique(some, return_inverse=True)
            kwargs, columns = {**kwargs, "logits_to_keep": kept}, columns[: len(positions)]
        output = type(model).forward(model, **kwargs)
        logits = output.logits[rows, columns]
    return output, compute(TargetOutputs(targets.ids, full_logits=logits))
