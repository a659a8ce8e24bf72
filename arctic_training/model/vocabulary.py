"""Brings the embedding of a model and its tokenizer together."""

from typing import Any

from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.errors.types import ModelError
from arctic_training.logging import logger
from arctic_training.model.checks.dry_run import rows


def fit_vocabulary(model: Any, tokenizer: Any, *, resize: bool, exact: bool = False) -> list[tuple[int, str]]:
    """See that every token has a row of the embedding, and that the model's config names the tokenizer's pad token.

    Only a pad token that the tokenizer was given by this package gets a new row unasked; for any other, ``resize`` must
    be true; their number is then rounded up, or, where PEFT is to make as many when it loads an adapter, ``exact``.
    Returns the tokens with new rows, by number. Raises `ModelError` when tokens are left without a row: they would be
    looked up out of range.
    """
    count = rows(model)
    if tokenizer is None or count is None:
        return []
    if beyond := require_rows(count, tokenizer, resize=resize):
        size = beyond[-1][0] + 1
        if not exact:
            size = -(-size // 64) * 64  # products of such a width are faster
        logger.info(f"the embedding's {count} rows become {size}, for {len(beyond)} tokens more")
        model.resize_token_embeddings(size, mean_resizing=False)
    for holder in (getattr(model, "config", None), getattr(model, "generation_config", None)):
        if holder is not None and tokenizer.pad_token_id is not None:
            holder.pad_token_id = tokenizer.pad_token_id
        if holder is not None and is_lexer(tokenizer):  # of whose vocabulary the model knows nothing
            holder.bos_token_id, holder.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    return beyond


def warn_of_untrained_rows(model: Any, new: list[tuple[int, str]]) -> None:
    """Say that rows of the ``new`` tokens are random and nothing trains them; ``model`` carries an adapter."""
    base = model.get_base_model()
    names = {id(module): name for name, module in base.named_modules()}
    tied = base.config.get_text_config().tie_word_embeddings
    for part in [base.get_input_embeddings()] + [base.get_output_embeddings()] * (not tied):
        left = [token for number, token in new if part is not None and not _trains(part, number)]
        if left:
            name = names[id(part)].rpartition(".")[2]
            logger.warning(
                f"model.peft_config: {len(left)} new tokens, {left[0]!r} among them, have random rows in {name}, which "
                f"nothing trains; put {name} into modules_to_save or target_modules, or the tokens' numbers into "
                "trainable_token_indices"
            )


def _trains(part: Any, row: int) -> bool:
    """Whether an adapter trains this row of an embedding or output layer."""
    if not any(parameter.requires_grad for parameter in part.parameters()):
        return False
    chosen = [one for module in part.modules() for one in (getattr(module, "token_indices", None) or {}).values()]
    return not chosen or any(row in rows for rows in chosen)


def require_rows(count: int, tokenizer: Any, *, resize: bool) -> list[tuple[int, str]]:
    """The tokens, by number, that have none of ``count`` rows. Raises `ModelError`; see `fit_vocabulary`."""
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= count)
    if beyond and not resize and [token for _, token in beyond] != [tokenizer.pad_token]:
        mend = "a model with more rows" if is_lexer(tokenizer) else "tokenizer.name_or_path of the model's own"
        raise ModelError(
            f"the tokenizer has {len(beyond)} tokens, {beyond[0][1]!r} among them, for which the model has no row "
            f"(it has {count}): they do not belong together; give {mend}, or model.resize_vocabulary: true for rows "
            "with random weights"
        )
    return beyond
