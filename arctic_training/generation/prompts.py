"""Prompts of samples, and how several of them are padded into one batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from arctic_training.errors.types import DataError, InputError
from arctic_training.loss.targets import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
"""A turn of a chat: its ``role`` and ``content``."""


@dataclass(frozen=True)
class Prompt:
    """The prompt of a sample, and the completion that it has in the data, as token ids."""

    prompt_ids: list[int]
    """The sample's ``prompt_ids`` if it has some, else the tokens before its reference."""
    reference_ids: list[int]
    """The sample's ``completion_ids`` if it has some, else its last run of labels."""

    @classmethod
    def from_sample(cls, sample: Mapping[str, Any], where: str, *, encoder_decoder: bool = False) -> "Prompt":
        """Returns the prompt of ``sample``. For an encoder-decoder model the labels are the reference, all of them, and
        ``input_ids`` the prompt.

        Raises `DataError`, which begins with ``where``, for a sample without a reference, or without a prompt.
        """
        if "input_ids" not in sample or not {"labels", "completion_ids"} & sample.keys():
            raise DataError(f"{where}: it has {', '.join(sample)}; a prompt and its answer need input_ids and labels")
        ids = list(map(int, sample["input_ids"]))
        if "completion_ids" in sample:
            return cls(ids, list(map(int, sample["completion_ids"])))
        labels = list(map(int, sample["labels"]))
        if encoder_decoder:
            reference = [label for label in labels if label != IGNORE_INDEX]
            if not ids or not reference:
                raise DataError(f"{where}: there is no {'answer in its labels' if ids else 'prompt'}")
            return cls(ids, reference)
        end = next((n for n in range(len(labels), 0, -1) if labels[n - 1] != IGNORE_INDEX), 0)
        start = end
        while start and labels[start - 1] != IGNORE_INDEX:
            start -= 1
        if not 0 < start < end:
            raise DataError(f"{where}: there is no {'prompt before its answer' if end else 'answer in its labels'}")
        prompt_ids = list(map(int, sample.get("prompt_ids", ()))) or ids[:start]
        if ids[: len(prompt_ids)] == prompt_ids:
            start = max(start, len(prompt_ids))  # the labels of a template may include the assistant's header
        return cls(prompt_ids, ids[start:end])


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str | list[Message],
    where: str,
    *,
    keeps_end: bool = False,
    answered: bool = False,
) -> list[int]:
    """Returns the token ids of a plain text, or of a chat, by the chat template, up to the assistant's next turn.

    The end token that a tokenizer puts behind a text is left out unless ``keeps_end``, for the encoder of a model. A
    chat that is ``answered`` ends with its last turn.
    Raises `InputError`, which begins with ``where``, for a chat that the template refuses.
    """
    if isinstance(prompt, str):
        ids = list(map(int, tokenizer(prompt)["input_ids"]))
        return ids if keeps_end or ids[-1:] != [tokenizer.eos_token_id] else ids[:-1]
    try:
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=not answered)
    except Exception as error:  # templates refuse chats in their own way
        raise InputError(f"{where}: the chat template refuses a prompt: {error}") from error
    return list(map(int, tokenizer(text, add_special_tokens=False)["input_ids"]))


def is_encoder_decoder(module: nn.Module) -> bool:
    """Checks whether the model reads the prompt with an encoder, and generates with a decoder."""
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))


def has_virtual_tokens(module: nn.Module) -> bool:
    """Checks whether PEFT puts virtual tokens before a prompt. Padding would stand between them and the prompt, which
    it moves, since PEFT ignores positions then."""
    return bool(getattr(getattr(module, "active_peft_config", None), "is_prompt_learning", False))


def pad_prompts(prompts: Sequence[Sequence[int]], pad_token_id: int, module: nn.Module) -> tuple[Tensor, Tensor, int]:
    """Returns ``input_ids`` and ``attention_mask`` for ``module.generate``, int64 ``[prompts, length]`` both, and the
    column of its result where completions begin.

    A decoder continues its prompts, so they are padded on the left. An encoder's are padded on the right, as in
    training; the result has the completion only, after the decoder's start token.
    """
    longest, encoder_decoder = max(map(len, prompts)), is_encoder_decoder(module)
    rows = []
    for prompt in prompts:
        padding = [pad_token_id] * (longest - len(prompt))
        rows.append([*prompt, *padding] if encoder_decoder else [*padding, *prompt])
    lengths, columns = torch.tensor([[len(prompt)] for prompt in prompts]), torch.arange(longest)
    mask = columns < lengths if encoder_decoder else columns >= longest - lengths
    return torch.tensor(rows), mask.long(), 1 if encoder_decoder else longest
