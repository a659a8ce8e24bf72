"""The tokens that begin a text, end a completion or fill a batch, and the text of a completion without them."""

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.errors.types import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def get_pad_token_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Returns the tokenizer's pad token, or its end token when it has none; the first token when it has neither, as
    those of GGUF files may: what fills a batch is masked."""
    pad = tokenizer.pad_token_id
    return int((tokenizer.eos_token_id if pad is None else pad) or 0)


def special_token_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Returns the tokens that stand for no text, also those that have no attribute of their own; not that of unknown
    words."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (special | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def beginning_token_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Returns the tokens that a tokenizer puts before every text, such as ``[CLS]``; most put none."""
    text, framed = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (False, True))
    return framed[: next((n for n in range(len(framed)) if framed[n : n + len(text)] == text), 0)]


def find_eos_token_ids(
    tokenizer: "PreTrainedTokenizerBase", module: nn.Module, completions: Iterable[Sequence[int]] = ()
) -> list[int]:
    """Returns the tokens that end a completion, sorted: those of the tokenizer, of the model's generation config, and
    the special tokens at the end of ``completions``, since a chat template may end its turns with another one."""
    if is_lexer(tokenizer):
        return [int(tokenizer.eos_token_id)]
    special = special_token_ids(tokenizer)
    in_data = {last for completion in completions for last in completion[-2:] if last in special}
    declared = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    known = [*(declared if isinstance(declared, list) else [declared]), tokenizer.eos_token_id]
    return sorted(in_data | {int(token) for token in known if token is not None})


def find_stop_token_ids(tokenizer: "PreTrainedTokenizerBase", words: Sequence[str], where: str) -> list[int]:
    """Returns the ids of ``words``. Raises `InputError`, which begins with ``where``, for one that is not a token."""
    vocabulary = tokenizer.get_vocab() if words else {}
    if unknown := [word for word in words if word not in vocabulary]:
        raise InputError(f"{where}: {unknown[0]!r} is not a token of the vocabulary")
    return [int(vocabulary[word]) for word in words]


def decode_completion(
    tokenizer: "PreTrainedTokenizerBase", completion: Sequence[int], eos_token_ids: Collection[int]
) -> str:
    """Returns the text of a completion up to its end, without special tokens; a lexer's may be part of the text."""
    if not is_lexer(tokenizer):
        return str(tokenizer.decode(completion, skip_special_tokens=True))
    last = {*eos_token_ids, tokenizer.pad_token_id}
    end = next((n for n, token in enumerate(completion) if token in last), len(completion))
    return str(tokenizer.decode(completion[:end]))
