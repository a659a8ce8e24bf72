"""Encodes prompts and their answers apart, for models that read them in different places."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.row_error import RowError
from arctic_training.data.preparation.row_encoder import Columns
from arctic_training.data.tokenization.encoder import SampleEncoder
from arctic_training.data.tokenization.tokenize import Tokens, end_token
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError
from arctic_training.loss.targets import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptEncoder(SampleEncoder):
    """Encodes the prompt and the last answer of each sample apart."""

    def encode_pairs(self, samples: Sequence[Sample], first: int) -> list[tuple[Tokens, Tokens]]:
        """Returns the token ids of each prompt, as they are when the model is used, and of its answer.

        Raises `RowError` for a sample that lacks one of them, or whose prompt the template refuses.
        """
        encoded = self(samples, first, last_turns=[1] * len(samples))
        chats = [n for n, sample in enumerate(samples) if any(turn["role"] == "assistant" for turn in sample.messages)]
        texts = [self._prompt_text(samples[n], first + n) for n in chats]
        prompts = dict(zip(chats, self._tokenize(texts, [[]] * len(texts)), strict=True))
        pairs = []
        for n, (sample, (ids, labels)) in enumerate(zip(samples, encoded, strict=True)):
            targets = np.flatnonzero(labels != IGNORE_INDEX)
            if sample == Sample():
                pairs.append((ids[:0], ids[:0]))  # counted, named and dropped
                continue
            if not len(targets):
                raise RowError(first + n, "there is no answer")
            if not sample.messages and not sample.prompt:
                raise RowError(first + n, "there is no prompt before the answer")
            if n not in prompts:
                pairs.append(self._encode_apart(sample))
                continue
            prompt, start = prompts[n][0], int(targets[0])
            if np.array_equal(ids[: len(prompt)], prompt):
                start = max(start, len(prompt))  # a template may enclose the header in what the assistant says
            pairs.append((prompt, ids[start : targets[-1] + 1]))
        return pairs

    def _prompt_text(self, sample: Sample, row: int) -> str:
        try:
            return self.prompt_text(sample)
        except DataError as error:
            raise RowError(row, str(error)) from error

    def _encode_apart(self, sample: Sample) -> tuple[Tokens, Tokens]:
        """Returns the token ids of a prompt and of its completion as plain text; no token holds parts of both."""
        end, text = end_token(self.tokenizer), sample.prompt + (" " if is_lexer(self.tokenizer) else "")
        ((prompt, _),) = self._tokenize([text], [[]], add_special_tokens=True)
        ((completion, _),) = self._tokenize([sample.completion], [[]])
        prompt = prompt[:-1] if len(prompt) and prompt[-1] == end else prompt
        return prompt, completion if end is None else np.append(completion, np.int32(end))


class SourceTargetEncoder(PromptEncoder):
    """Encodes sources and targets apart: as text, or by the chat template if the tokenizer has one.

    For an encoder-decoder, texts get the special tokens of the tokenizer, which it may have other ones of for targets.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, encoder_decoder: bool, **arguments: Any) -> None:
        """``arguments`` are those of `SampleEncoder`."""
        super().__init__(tokenizer, **arguments)
        self.encoder_decoder = encoder_decoder

    def encode_pairs(self, samples: Sequence[Sample], first: int) -> list[tuple[Tokens, Tokens]]:
        """Returns the token ids of each source and of its target, int32 ``[length]``; both are empty without a target.

        Raises `RowError`, counting from ``first``, for a sample without a source, a chat of several answers without a
        chat template, and a chat that the template refuses.
        """
        has_template = bool(getattr(self.tokenizer, "chat_template", None))
        texts: dict[int, tuple[str, str]] = {}
        chats = [Sample()] * len(samples)
        for n, sample in enumerate(samples):
            if sample.messages and not any(turn["role"] == "assistant" for turn in sample.messages):
                continue  # its answer is an empty cell
            if sample.messages and has_template:
                chats[n] = sample
            elif sample != Sample():
                texts[n] = _read_texts(sample, first + n)
        nothing = np.empty(0, np.int32)
        pairs = super().encode_pairs(chats, first) if any(chat.messages for chat in chats) else []
        pairs = pairs or [(nothing, nothing)] * len(samples)
        for n, pair in zip(texts, self._encode_texts(list(texts.values())), strict=True):
            pairs[n] = pair if texts[n][1].strip() else pairs[n]
        return pairs

    def _encode_texts(self, texts: list[tuple[str, str]]) -> list[tuple[Tokens, Tokens]]:
        if not self.encoder_decoder:
            return [self._encode_apart(Sample(prompt=source, completion=target)) for source, target in texts]
        if not texts:
            return []
        sources, targets, end = [one for one, _ in texts], [one for _, one in texts], end_token(self.tokenizer)
        if is_lexer(self.tokenizer):
            encoded = [ids for ids, _ in self._tokenize(targets, [[]] * len(targets), add_special_tokens=True)]
        else:
            arguments = {"return_attention_mask": False, **self._tokenize.arguments}
            encoded = [np.array(ids, np.int32) for ids in self.tokenizer(text_target=targets, **arguments)["input_ids"]]
        ended = [ids if end is None or end in ids else np.append(ids, np.int32(end)) for ids in encoded]
        tokens = self._tokenize(sources, [[]] * len(sources), add_special_tokens=True)
        return [(source, target) for (source, _), target in zip(tokens, ended, strict=True)]


def _read_texts(sample: Sample, row: int) -> tuple[str, str]:
    """Returns the texts of source and target. Raises `RowError` for a chat of more than a question and its answer."""
    source, target = sample.prompt, sample.completion
    if sample.messages:
        roles = [turn["role"] for turn in sample.messages]
        if roles != ["user", "assistant"] or sample.tools:
            why = "the tokenizer has no chat template, so that a row can be one source and its target only"
            raise RowError(row, f"{why}; it has {', '.join(roles)}{' and tools' if sample.tools else ''}")
        source, target = (turn["content"] for turn in sample.messages)
    if not (isinstance(source, str) and isinstance(target, str)):
        raise RowError(row, f"source and target are {short_repr(source)} and {short_repr(target)}; expected text")
    if not source.strip():
        raise RowError(row, "there is no source before the target")
    return source, target


def encode_prompts(encoder: PromptEncoder, samples: list[Sample], first: int) -> Columns:
    """Returns ``input_ids`` and ``completion_ids`` of samples. Raises `RowError`, counting from ``first``."""
    prompts, answers = zip(*encoder.encode_pairs(samples, first), strict=True)
    return {"input_ids": prompts, "completion_ids": answers}
