"""What a model is asked when it is to answer: prompts side by side, and the tokens that end an answer."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arctic_training.config.tokenizer import is_lexer
from arctic_training.errors import DataError, InputError

_IGNORED = -100


@dataclass(frozen=True)
class Question:
    """What comes before a sample's answer, and the answer: its ``answer_ids``, or its last run of targets."""

    prompt: list[int]
    target: list[int]

    @classmethod
    def of(cls, sample: Mapping[str, Any], where: str) -> "Question":
        """Raises `DataError` for a sample that has no answer, or no prompt before it."""
        if "input_ids" not in sample or not {"labels", "answer_ids"} & sample.keys():
            raise DataError(f"{where}: the evaluator 'generate' wants samples with input_ids and labels")
        ids = list(map(int, sample["input_ids"]))
        if "answer_ids" in sample:
            return cls(ids, list(map(int, sample["answer_ids"])))
        labels = list(map(int, sample["labels"]))
        end = next((n for n in range(len(labels), 0, -1) if labels[n - 1] != _IGNORED), 0)
        start = end
        while start and labels[start - 1] != _IGNORED:
            start -= 1
        if not 0 < start < end:
            raise DataError(f"{where}: there is no {'prompt before its answer' if end else 'answer in its labels'}")
        return cls(ids[:start], ids[start:end])


def generator(engine: Any, who: str) -> Any:
    """The model in ``engine``. Raises `InputError`, which begins with ``who``, when it cannot generate."""
    if not hasattr(engine.module, "generate"):
        raise InputError(f"{who} wants a model that generates; {type(engine.module).__name__} does not")
    return engine.module


def side_by_side(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Prompts padded on the left, so that all answers begin at one column, and their mask: int64 ``[prompts, T]``."""
    longest = max(map(len, prompts))
    rows = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    lengths = torch.tensor([[longest - len(prompt)] for prompt in prompts])
    return rows, (torch.arange(longest) >= lengths).long()


def pad_token(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def end_tokens(tokenizer: Any, module: Any, answers: Iterable[Sequence[int]]) -> list[int]:
    """The tokens that end an answer: a chat template may end its turns with another than the tokenizer's end token."""
    if is_lexer(tokenizer):
        return [int(tokenizer.eos_token_id)]
    # not only those that have a part of their own, as the end token has
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = (special | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
    ends = {last for answer in answers for last in answer[-2:] if last in special}
    declared = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    known = [*(declared if isinstance(declared, list) else [declared]), tokenizer.eos_token_id]
    return sorted(ends | {int(end) for end in known if end is not None})


def stop_tokens(tokenizer: Any, words: Sequence[str], where: str) -> list[int]:
    """The numbers of ``words``. Raises `InputError`, which begins with ``where``, for one that is no token."""
    known = tokenizer.get_vocab() if words else {}
    if unknown := [word for word in words if word not in known]:
        raise InputError(f"{where}: {unknown[0]!r} is no token of the vocabulary")
    return [int(known[word]) for word in words]


def said(tokenizer: Any, answer: Sequence[int], ends: Collection[int]) -> str:
    """The text of an answer, up to its end. To a lexer special tokens may be part of it; elsewhere they are none."""
    if not is_lexer(tokenizer):
        return str(tokenizer.decode(answer, skip_special_tokens=True))
    end = next((n for n, token in enumerate(answer) if token in ends or token == tokenizer.pad_token_id), len(answer))
    return str(tokenizer.decode(answer[:end]))


def partitioned(engine: Any) -> bool:
    """Under ZeRO-3 every rank must call the model as often as the one with the longest answer."""
    return bool(getattr(engine, "zero_optimization_partition_weights", bool)())
