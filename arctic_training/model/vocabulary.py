"""Brings the embedding of a model and its tokenizer together."""

from typing import Any

from torch import nn

from arctic_training.errors import ModelError
from arctic_training.logging import logger


def fit_vocabulary(model: Any, tokenizer: Any, *, resize: bool) -> None:
    """See that every token has a row of the embedding, and that the model's config names the tokenizer's pad token.

    Only a pad token that the tokenizer was given by this package gets a new row unasked; for any other, ``resize`` must
    be true. Raises `ModelError` when tokens are left without a row: they would be looked up out of range.
    """
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if tokenizer is None or not isinstance(embedding, nn.Embedding):
        return
    rows = int(getattr(embedding.weight, "ds_shape", embedding.weight.shape)[0])
    numbers = tokenizer.get_vocab()
    beyond = sorted((number, token) for token, number in numbers.items() if number >= rows)
    if beyond:
        if not resize and [token for _, token in beyond] != [tokenizer.pad_token]:
            raise ModelError(
                f"the tokenizer has {len(beyond)} tokens, {beyond[0][1]!r} among them, for which the model has no row "
                f"(it has {rows}): they do not belong together; give tokenizer.name_or_path of the model's own, or "
                "model.resize_vocabulary: true for rows with random weights"
            )
        size = -(-(beyond[-1][0] + 1) // 64) * 64  # products of such a width are faster
        logger.info(f"the embedding's {rows} rows become {size}, for {len(beyond)} tokens more")
        model.resize_token_embeddings(size, mean_resizing=False)
    for holder in (getattr(model, "config", None), getattr(model, "generation_config", None)):
        if holder is not None and tokenizer.pad_token_id is not None:
            holder.pad_token_id = tokenizer.pad_token_id
