"""The tokens with which a chat template ends an answer, which a trained model ends its answers with."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from arctic_training.data.formats.chat import Sample
from arctic_training.data.tokenization.encoder import SampleEncoder
from arctic_training.errors.types import DataError
from arctic_training.generation.special_tokens import find_eos_token_ids
from arctic_training.logging import logger
from arctic_training.loss.targets import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def closing_tokens(tokenizer: "PreTrainedTokenizerBase", template_arguments: Mapping[str, Any]) -> list[int]:
    """Returns the last two tokens of an answer by the chat template; none without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        ((ids, labels),) = SampleEncoder(tokenizer, template_arguments=template_arguments)([Sample(turns)])
    except DataError:  # it may refuse this chat
        return []
    answer: list[int] = ids[labels != IGNORE_INDEX].tolist()
    return answer[-2:]


def add_end_tokens(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase | None", template_arguments: Mapping[str, Any]
) -> None:
    """Adds the end token of a chat template to those of a model's generation config, with which it is saved.

    Whatever loads the model then stops where it has learned to, though the base model ends a text with another token.
    Without a chat template nothing is changed.
    """
    generation_config = getattr(model, "generation_config", None)
    if generation_config is None or tokenizer is None:
        return
    closing, declared = closing_tokens(tokenizer, template_arguments), generation_config.eos_token_id
    known = [one for one in (declared if isinstance(declared, list) else [declared]) if one is not None]
    added = [one for one in find_eos_token_ids(tokenizer, model, [closing]) if one in closing]
    if added and not {*added} & {*known}:
        generation_config.eos_token_id = [*known, *added]
        names = ", ".join(repr(tokenizer.convert_ids_to_tokens(one)) for one in added)
        logger.info(f"the chat template ends answers with {names}, which becomes an end token of the saved model")
