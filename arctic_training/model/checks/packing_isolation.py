"""Whether the documents of a packed row see each other, found by asking the model."""

from typing import Any

import torch

from arctic_training.errors.types import ModelError
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.model.checks.dry_run import rows
from arctic_training.model.target_losses import causal_model, target_losses
from arctic_training.state import eval_mode

_LENGTH = 8


@torch.no_grad()
def check_packing_isolation(engine: Any, device: torch.device) -> None:
    """Raises `ModelError` when other tokens before a document change what the model makes of it; three small forwards.

    Most models of transformers find from the positions where documents end. The others say nothing. On several
    processes all of them must ask.
    """
    model = causal_model(engine)
    try:
        with eval_mode([engine.module]):
            told = (target_losses(engine, _packed(model, start, device))[1 - _LENGTH :] for start in (3, 3, 40))
            first, again, other = told
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(
            f"data.pack_samples: {type(model).__name__} cannot be given several samples in one row ({said}); give "
            "pack_samples: false, or let the data factory's `packs` say that its rows are no packed ones"
        ) from error
    # what is apart is equal to the bit, but where kernels are not, or experts are given more tokens or fewer
    near = 8 * float((first - again).abs().max())
    if any("expert" in key for key in model.config.get_text_config().to_dict()):
        near += 4 * torch.finfo(next(model.parameters()).dtype).eps * float(first.abs().max())
    if not float((first - other).abs().max()) <= near:
        raise ModelError(
            f"data.pack_samples: in {type(model).__name__} with attn_implementation "
            f"{model.config._attn_implementation} samples in one row would see each other; give pack_samples: false"
        )


def _packed(model: Any, start: int, device: torch.device) -> dict[str, Any]:
    """Two documents in a row, the first of which begins with the token ``start``."""
    count = rows(model) or _LENGTH
    ids = torch.cat([torch.arange(start, start + _LENGTH), torch.arange(_LENGTH)])[None] % count
    ends = torch.tensor([0, _LENGTH, 2 * _LENGTH], dtype=torch.int32)
    labels = ids.index_fill(1, ends[:-1].long(), IGNORE_INDEX)
    tensors = {
        "input_ids": ids,
        "labels": labels,
        "position_ids": torch.arange(_LENGTH).repeat(2)[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
    }
    told = {name: tensor.to(device) for name, tensor in tensors.items()}
    return {**told, "max_length_q": _LENGTH, "max_length_k": _LENGTH}
