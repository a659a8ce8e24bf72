"""Runs a model on packed rows, to see that a document does not depend on the one before it."""

from typing import TYPE_CHECKING, Any

import torch

from arctic_training.engine.engine import Engine
from arctic_training.errors.types import ModelError
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.model.causal_lm import causal_model, embedding_rows, has_experts, model_inputs
from arctic_training.model.tasks import TASKS, Task
from arctic_training.model.token_losses import token_losses
from arctic_training.state import eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LENGTH = 8
_ROUNDING = {torch.float32: 1e-3}
"""How far outputs of the same tokens in another row may differ, as a share of the largest; in 16 bits 5e-2."""


@torch.no_grad()
def check_packing_isolation(engine: Engine, device: torch.device, *, task: Task | None = None) -> None:
    """Compares a document's losses after one document with those after another, in three small forward passes of rows
    that end with padding, as rows of data do.

    Most models of transformers find the documents by their positions; the others say nothing. Of a token classifier,
    ``task``, the outputs are compared, also with those of the document alone: attention that goes both ways would be
    another one in a packed row. All ranks must call it. Raises `ModelError` where they differ, or the model cannot be
    given a packed row.
    """
    model = causal_model(engine)
    is_classifier = task is TASKS["token_classification"]

    def values(row: dict[str, Any]) -> torch.Tensor:
        if not is_classifier:
            return token_losses(engine, row)[1 - _LENGTH :]
        documents: torch.Tensor = engine(**model_inputs(engine, row)).logits[0, : 2 * _LENGTH]
        return documents[-_LENGTH:].float()

    try:
        with eval_mode([engine.module]):
            first, repeated, other = (values(_packed_row(model, start, device)) for start in (3, 3, 40))
            alone = values(_second_document(_packed_row(model, 3, device))) if is_classifier else first
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(
            f"data.pack_samples: {type(model).__name__} cannot be given several samples in one row ({text}); give "
            "pack_samples: false, or let the data factory's `packs` say that its rows are no packed ones"
        ) from error
    # isolated losses are equal to the bit, but where kernels are not, or experts get more tokens or fewer
    tolerance = 8 * float((first - repeated).abs().max())
    if has_experts(model):
        tolerance += 4 * torch.finfo(next(model.parameters()).dtype).eps * float(first.abs().max())
    rounding = _ROUNDING.get(next(model.parameters()).dtype, 5e-2) * float(alone.abs().max())
    # outputs that are not finite depend on nothing
    if float((first - other).abs().max()) > tolerance or float((first - alone).abs().max()) > rounding:
        raise ModelError(
            f"data.pack_samples: in {type(model).__name__} with attn_implementation "
            f"{model.config._attn_implementation} samples in one row would see each other; give pack_samples: false"
        )


def _second_document(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the second document of a packed row as a row of its own."""
    ids = row["input_ids"][:, _LENGTH : 2 * _LENGTH]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _packed_row(model: "PreTrainedModel", start: int, device: torch.device) -> dict[str, Any]:
    """Returns a batch of two documents in a row, the first of which begins with the token ``start``, and padding."""
    vocabulary = embedding_rows(model) or _LENGTH
    padding = torch.zeros(_LENGTH, dtype=torch.long)
    ids = torch.cat([torch.arange(start, start + _LENGTH), torch.arange(_LENGTH), padding])[None] % vocabulary
    cu_seq_lens = torch.tensor([0, _LENGTH, 2 * _LENGTH, 3 * _LENGTH], dtype=torch.int32)
    labels = ids.index_fill(1, cu_seq_lens[:-1].long(), IGNORE_INDEX)
    labels[:, 2 * _LENGTH :] = IGNORE_INDEX
    tensors = {
        "input_ids": ids,
        "labels": labels,
        "position_ids": torch.arange(_LENGTH).repeat(3)[None],
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
    }
    on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
    return {**on_device, "max_length_q": _LENGTH, "max_length_k": _LENGTH}
