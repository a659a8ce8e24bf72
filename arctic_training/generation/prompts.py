"""What a model is asked when it is to answer: prompts side by side, and the tokens that end an answer."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.errors.types import DataError, InputError
from arctic_training.loss.targets import IGNORE_INDEX


@dataclass(frozen=True)
class Prompt:
    """What a sample asks, and its answer: its ``answer_ids``, or its last run of targets.

    What it asks is its ``prompt_ids``, where it has some, else what comes before the answer.
    """

    prompt: list[int]
    target: list[int]

    @classmethod
    def of(cls, sample: Mapping[str, Any], where: str, *, encoded: bool = False) -> "Prompt":
        """Returns what ``sample`` asks. The labels of an ``encoded`` prompt are its answer, not a part of the same row.

        Raises `DataError` for a sample that has no answer, or no prompt before it.
        """
        if "input_ids" not in sample or not {"labels", "answer_ids"} & sample.keys():
            raise DataError(f"{where}: the evaluator 'generate' wants samples with input_ids and labels")
        ids = list(map(int, sample["input_ids"]))
        if "answer_ids" in sample:
            return cls(ids, list(map(int, sample["answer_ids"])))
        labels = list(map(int, sample["labels"]))
        if encoded:
            answer = [label for label in labels if label != IGNORE_INDEX]
            if not ids or not answer:
                raise DataError(f"{where}: there is no {'answer in its labels' if ids else 'prompt'}")
            return cls(ids, answer)
        end = next((n for n in range(len(labels), 0, -1) if labels[n - 1] != IGNORE_INDEX), 0)
        start = end
        while start and labels[start - 1] != IGNORE_INDEX:
            start -= 1
        if not 0 < start < end:
            raise DataError(f"{where}: there is no {'prompt before its answer' if end else 'answer in its labels'}")
        prompt = list(map(int, sample.get("prompt_ids", ()))) or ids[:start]
        if ids[: len(prompt)] == prompt:
            start = max(start, len(prompt))  # a template may enclose its header in what the assistant says
        return cls(prompt, ids[start:end])


def generator(engine: Any, who: str) -> Any:
    """The model in ``engine``. Raises `InputError`, which begins with ``who``, when it cannot generate."""
    if not hasattr(engine.module, "generate"):
        raise InputError(f"{who} wants a model that generates; {type(engine.module).__name__} does not")
    return engine.module


def is_encoder_decoder(module: Any) -> bool:
    """Checks whether the model reads a prompt in one part and writes its answer in another."""
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))


def left_pad(prompts: Sequence[Sequence[int]], pad: int, module: Any) -> tuple[Tensor, Tensor, int]:
    """Returns prompts for ``module.generate`` and their mask, ``[prompts, T]``, and the column where answers begin.

    A decoder goes on with its prompts, which are padded on the left. What an encoder reads is padded on the right, as
    in training; its decoder returns the answer alone, after the token that it starts with.
    """
    longest, encoded = max(map(len, prompts)), is_encoder_decoder(module)
    fill = [[pad] * (longest - len(prompt)) for prompt in prompts]
    sides = [
        (list(prompt), more) if encoded else (more, list(prompt)) for prompt, more in zip(prompts, fill, strict=True)
    ]
    rows = torch.tensor([first + second for first, second in sides])
    lengths, places = torch.tensor([[len(prompt)] for prompt in prompts]), torch.arange(longest)
    mask = places < lengths if encoded else places >= longest - lengths
    return rows, mask.long(), 1 if encoded else longest


def without_router_logits(module: Any) -> dict[str, bool]:
    """Returns the argument of `generate` by which a model that balances its experts in training does not while it
    generates: transformers would balance the tokens of one step by the mask of all, which is an error."""
    return {"output_router_logits": False} if getattr(module.config, "output_router_logits", False) else {}


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


def decode_completion(tokenizer: Any, answer: Sequence[int], ends: Collection[int]) -> str:
    """The text of an answer, up to its end. To a lexer special tokens may be part of it; elsewhere they are none."""
    if not is_lexer(tokenizer):
        return str(tokenizer.decode(answer, skip_special_tokens=True))
    end = next((n for n, token in enumerate(answer) if token in ends or token == tokenizer.pad_token_id), len(answer))
    return str(tokenizer.decode(answer[:end]))


def is_zero3(engine: Any) -> bool:
    """Under ZeRO-3 every rank must call the model as often as the one with the longest answer."""
    return bool(getattr(engine, "zero_optimization_partition_weights", bool)())
