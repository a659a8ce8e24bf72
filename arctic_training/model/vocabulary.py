"""Fits the embedding of a model to its tokenizer."""

from typing import TYPE_CHECKING

from torch import nn

from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.errors.types import ModelError
from arctic_training.generation.prompts import is_encoder_decoder
from arctic_training.logging import logger
from arctic_training.model.causal_lm import embedding_rows

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def fit_vocabulary(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", *, resize: bool, exact: bool = False
) -> list[tuple[int, str]]:
    """Adds a row to the embedding for every token without one, and sets the pad token of the model's config.

    Without ``resize`` only a new pad token of this package gets a row. The number of rows is rounded up, unless
    ``exact``: PEFT adds exactly as many when it loads an adapter. Returns the tokens with new rows, with their ids.
    Raises `ModelError` when tokens would be left without a row: they would be looked up out of range.
    """
    count = embedding_rows(model)
    if tokenizer is None or count is None:
        return []
    if missing := tokens_without_row(count, tokenizer, resize=resize):
        size = missing[-1][0] + 1
        if not exact:
            size = -(-size // 64) * 64  # products of such a width are faster
        logger.info(f"the embedding grows from {count} to {size} rows, for {len(missing)} new tokens")
        model.resize_token_embeddings(size, mean_resizing=False)
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", lambda: None)()
    inner = None if text_config is config else text_config  # where classifiers look for the pad token
    holders = list(filter(None, (config, inner, getattr(model, "generation_config", None))))
    for holder in holders:
        if is_lexer(tokenizer):  # whose vocabulary the model does not know
            _rename_special_tokens(holder, tokenizer)
        if tokenizer.pad_token_id is not None:
            holder.pad_token_id = tokenizer.pad_token_id
    if is_encoder_decoder(model):
        starts = [start for one in holders if (start := getattr(one, "decoder_start_token_id", None)) is not None]
        model.config.decoder_start_token_id = [*starts, tokenizer.pad_token_id][0]  # T5 starts with padding
    return missing


def _rename_special_tokens(holder: "PreTrainedConfig | GenerationConfig", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Replaces the ids of special tokens in a config by those of ``tokenizer``, also where a decoder starts or ends."""
    kinds = ("pad_token_id", "bos_token_id", "eos_token_id")
    ids = [(getattr(holder, kind, None), getattr(tokenizer, kind)) for kind in kinds]
    for name in ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"):
        value = getattr(holder, name, None)
        if new := [new for old, new in ids if old is not None and old == value]:
            setattr(holder, name, new[0])
    holder.bos_token_id, holder.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id


def warn_about_untrained_rows(model: "PreTrainedModel", new_tokens: list[tuple[int, str]]) -> None:
    """Warns if the rows of ``new_tokens``, which are random, are not trained by the adapter of ``model``."""
    base = model.get_base_model()
    names = {id(module): name for name, module in base.named_modules()}
    tied = base.config.get_text_config().tie_word_embeddings
    ends = [base.get_input_embeddings()] if tied else [base.get_input_embeddings(), base.get_output_embeddings()]
    for part in ends:
        untrained = [token for number, token in new_tokens if part is not None and not _trains(part, number)]
        if untrained:
            name = names[id(part)].rpartition(".")[2]
            logger.warning(
                f"model.peft_config: {len(untrained)} new tokens, {untrained[0]!r} among them, have random rows in "
                f"{name}, which nothing trains; put {name} into modules_to_save or target_modules, or the tokens' "
                "numbers into trainable_token_indices"
            )


def _trains(part: nn.Module, row: int) -> bool:
    """Returns whether an adapter trains this row of an embedding or output layer."""
    if not any(parameter.requires_grad for parameter in part.parameters()):
        return False
    chosen = [one for module in part.modules() for one in (getattr(module, "token_indices", None) or {}).values()]
    return not chosen or any(row in rows for rows in chosen)


def tokens_without_row(count: int, tokenizer: "PreTrainedTokenizerBase", *, resize: bool) -> list[tuple[int, str]]:
    """Returns the tokens with an id of ``count`` or more. Raises `ModelError` as `fit_vocabulary` does."""
    missing = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= count)
    if missing and not resize and [token for _, token in missing] != [tokenizer.pad_token]:
        hint = "a model with more rows" if is_lexer(tokenizer) else "tokenizer.name_or_path of the model's own"
        raise ModelError(
            f"the tokenizer has {len(missing)} tokens, {missing[0][1]!r} among them, for which the model has no row "
            f"(it has {count}): they do not belong together; give {hint}, or model.resize_vocabulary: true for rows "
            "with random weights"
        )
    return missing
