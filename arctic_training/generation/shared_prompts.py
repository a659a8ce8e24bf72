"""The part of a key-value cache that equal prompts of a batch share."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arctic_training.generation.prompts import has_virtual_tokens, is_encoder_decoder

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


def prefill_shared_prompts(
    module: "PreTrainedModel", input_ids: Tensor, attention_mask: Tensor, **arguments: bool
) -> "Cache | None":
    """Returns the cache of all columns but the last, for which the model reads each prompt once however often it is
    repeated, as those of a group of completions are.

    ``input_ids`` and ``attention_mask``, int64 ``[prompts, length]``, are padded on the left; ``arguments`` are further
    ones of ``module.generate``. Returns None where nothing is repeated, where a prompt has a single token, and for a
    model whose cache cannot be copied from row to row: an encoder-decoder, one with layers that keep a state in place
    of keys and values, and one before whose prompts PEFT puts virtual tokens.
    """
    from transformers import DynamicCache

    unique, copies = torch.unique(torch.stack([input_ids, attention_mask]), dim=1, return_inverse=True)
    rows, mask = unique
    if len(rows) == len(input_ids) or is_encoder_decoder(module) or int(mask.sum(1).min()) < 2:
        return None
    layers = DynamicCache(config=module.config).layers
    if has_virtual_tokens(module) or not all(hasattr(layer, "batch_select_indices") for layer in layers):
        return None
    out = module.generate(
        input_ids=rows[:, :-1],
        attention_mask=mask[:, :-1],
        max_new_tokens=1,
        do_sample=False,
        return_dict_in_generate=True,
        **arguments,
    )
    if not isinstance(out.past_key_values, DynamicCache):
        return None
    out.past_key_values.batch_select_indices(copies)
    return out.past_key_values
