"""Encodes chats, and pairs of prompt and completion, into token ids and labels."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.remarks import ROLES, TOOLS, count, remark
from arctic_training.data.formats.row_error import RowError
from arctic_training.data.tokenization.assistant_mask import AssistantMasker, MaskedChat
from arctic_training.data.tokenization.chat_template import ChatTemplate, Span
from arctic_training.data.tokenization.check_labels import check_labels
from arctic_training.data.tokenization.message_keys import MessageKeys
from arctic_training.data.tokenization.tokenize import SpanTokenizer, Tokens, end_token
from arctic_training.data.tokenization.turn_locator import Renderer, TurnLocator
from arctic_training.errors.types import DataError
from arctic_training.loss.targets import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VERIFIED = 32
"""Samples whose labels are decoded again, and compared with the text that they stand for."""


class SampleEncoder:
    """Encodes samples. The label of a token is the token itself where the assistant says it, else -100."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        mask_inputs: bool = True,
        mask_history: bool = False,
        ignore_empty_think: bool = False,
        tokenize_arguments: Mapping[str, Any] | None = None,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """``mask_inputs`` false labels every token but the first of each sample, which nothing predicts.

        ``mask_history`` labels the last assistant message of each chat only, and nothing if the sample excludes it.
        """
        self.tokenizer, self.mask_inputs, self.ignore_empty_think = tokenizer, mask_inputs, ignore_empty_think
        self.mask_history = mask_history
        self.template_arguments = dict(template_arguments or {})
        self._tokenize = SpanTokenizer(tokenizer, tokenize_arguments)
        self._masker: AssistantMasker | None = None
        self._to_verify = _VERIFIED
        self._has_generation_prompt = False
        """Whether the template is known to have one."""

    def __call__(
        self, samples: Sequence[Sample], first: int = 0, *, last_turns: Sequence[int] | None = None
    ) -> list[tuple[Tokens, Tokens]]:
        """Returns token ids and labels of each sample, int32 ``[length]``.

        ``last_turns`` says for each sample how many of the assistant's turns have labels, counted from the end; None:
        all that the sample does not exclude. Raises `RowError`, counting from ``first``.
        """
        encoded: list[tuple[Tokens, Tokens]] = [(np.empty(0, np.int32),) * 2] * len(samples)
        chats = [n for n, sample in enumerate(samples) if sample.messages]
        _count_messages([samples[n] for n in chats])
        without_tools = [n for n in chats if samples[n].tools is None]
        groups = [without_tools, *([n] for n in chats if samples[n].tools is not None)]
        for group in filter(None, groups):
            masked = self._mask(samples, group, first)
            counts = [None if last_turns is None else last_turns[n] for n in group]
            spans = [
                self._label_spans(samples[n], chat, count, first + n)
                for n, chat, count in zip(group, masked, counts, strict=True)
            ]
            texts = [chat.text for chat in masked]
            for n, one in zip(group, self._encode(texts, spans, add_special_tokens=False), strict=True):
                encoded[n] = one
        pairs = [n for n, sample in enumerate(samples) if not sample.messages]
        if pairs:
            for n, one in zip(pairs, self._encode_pairs([samples[n] for n in pairs]), strict=True):
                encoded[n] = one
        return encoded

    def encode_prompts(self, samples: Sequence[Sample]) -> list[Tokens]:
        """Returns the token ids of the prompt before the last labelled answer of each chat; empty without one."""
        texts = []
        for sample in samples:
            try:
                texts.append(self.prompt_text(sample, sample.untrained_messages) if sample.messages else "")
            except DataError:
                texts.append("")
        return [ids for ids, _ in self._tokenize(texts, [[]] * len(texts))]

    def prompt_text(self, sample: Sample, untrained: Collection[int] = ()) -> str:
        """Returns the chat before its last answer that is not ``untrained``, with the generation prompt.

        Raises `DataError` for a chat that the template refuses, or where it has no generation prompt.
        """
        template = self.masker.template
        chat = template.read(sample.messages)
        answers = (n for n, message in enumerate(chat) if message["role"] == "assistant" and n not in untrained)
        last = max(answers, default=len(chat))
        try:
            (text,) = template.render([chat[:last]], sample.tools, generation_prompt=True)
        except Exception as error:
            raise DataError(f"the chat template refuses it without its last answer: {error}") from error
        if not self._has_generation_prompt:
            if TurnLocator(Renderer(template, sample.tools), text, chat, last).prompt != text:
                raise DataError(
                    "the chat template begins an answer with a header, and has no generation prompt for it: add the "
                    "header to it, {% if add_generation_prompt %}"
                )
            self._has_generation_prompt = True
        return text

    @property
    def masker(self) -> AssistantMasker:
        """The masker of the chat template. Raises `DataError` when the tokenizer has no template."""
        if self._masker is None:
            template = ChatTemplate(self.tokenizer, self.template_arguments)
            self._keys = MessageKeys(template)
            self._masker = AssistantMasker(template, ignore_empty_think=self.ignore_empty_think)
        return self._masker

    def _mask(self, samples: Sequence[Sample], group: Sequence[int], first: int) -> list[MaskedChat]:
        """Renders the chats of ``group``, which have the same tools. Raises `RowError`."""
        masker, tools = self.masker, samples[group[0]].tools
        try:
            masked = masker([samples[n].messages for n in group], tools)
        except Exception:
            for n in group:  # find the one that fails
                try:
                    masker([samples[n].messages], tools)
                except Exception as error:
                    why = str(error) if isinstance(error, DataError) else f"the chat template refuses it: {error}"
                    raise RowError(first + n, why + self._hint(samples[n])) from error
            raise
        for chat in masked:
            self._keys.check(chat.messages, tools)
        return masked

    def _label_spans(self, sample: Sample, masked: MaskedChat, last_turns: int | None, row: int) -> list[Span]:
        """Returns the characters of a chat that have labels. Raises `RowError` when they cannot be found."""
        excluded = sample.untrained_messages - sample.prompt_messages
        if excluded and not self.mask_inputs:
            why = f"message {min(excluded) + 1} has the {sample.exclusion}"
            raise RowError(row, f"{why}, and mask_inputs: false makes every token a target")
        try:
            turns = self._trained_turns(sample) if last_turns is None else _last_turns(masked, last_turns)
            remarks = check_labels(masked, turns, self.masker.template.end_tokens)
        except DataError as error:
            raise RowError(row, f"{error}{self._hint(sample)}") from error
        for sentence in remarks:
            remark(sentence)
        return [span for turn in turns for span in masked.answers[turn]]

    def _trained_turns(self, sample: Sample) -> list[int]:
        """Returns the assistant's turns to be learned, counted from 0: none that the sample excludes."""
        numbers = [n for n, message in enumerate(sample.messages) if message["role"] == "assistant"]
        turns = list(enumerate(numbers))[-1 if self.mask_history else 0 :]
        return [turn for turn, n in turns if n not in sample.untrained_messages]

    def _hint(self, sample: Sample) -> str:
        """Names an argument of the chat template with which it takes the sample, if there is one."""
        turns = self._trained_turns(sample)
        for name in self.masker.template.variables:
            for value in (False, True):
                arguments = {**self.template_arguments, name: value}
                try:
                    masker = AssistantMasker(ChatTemplate(self.tokenizer, arguments))
                    (masked,) = masker([sample.messages], sample.tools)
                    check_labels(masked, turns, self.masker.template.end_tokens)
                except Exception:
                    continue
                if all(masked.answers[turn] for turn in turns):
                    return f"; it works with data.chat_template_kwargs: {{{name}: {str(value).lower()}}}"
        return ""

    def _encode(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]], *, add_special_tokens: bool
    ) -> list[tuple[Tokens, Tokens]]:
        """Returns token ids and labels of each text; tokens of its ``spans`` are labelled."""
        encoded = []
        tokens = self._tokenize(texts, spans, add_special_tokens=add_special_tokens)
        for text, labelled, (ids, mask) in zip(texts, spans, tokens, strict=True):
            if self._to_verify:
                self._to_verify -= 1
                self._verify(text, labelled, ids[mask])
            labels = np.where(mask, ids, np.int32(IGNORE_INDEX)) if self.mask_inputs else ids.copy()
            labels[:1] = IGNORE_INDEX
            encoded.append((ids, labels))
        return encoded

    def _verify(self, text: str, spans: Sequence[Span], targets: Tokens) -> None:
        """Raises `DataError` when ``targets`` do not decode to the text of the spans, white space apart."""
        if is_lexer(self.tokenizer) and (targets == self.tokenizer.unk_token_id).any():
            return  # a lexer keeps nothing of what it does not know; all data are checked for that at once
        normalizer = self.tokenizer.backend_tokenizer.normalizer if self.tokenizer.is_fast else None
        decoded, at = _normalized(self.tokenizer.decode(targets)), 0
        for start, end in spans:
            answer = text[start:end]
            expected = _normalized(normalizer.normalize_str(answer) if normalizer is not None else answer)
            if (position := decoded.find(expected, at)) < 0:
                raise DataError(
                    f"the tokens of what the assistant says, {answer!r}, decode to {decoded[at:]!r}: the tokenizer "
                    "does not keep text as it is, so that labels cannot be found"
                )
            at = position + len(expected)

    def _encode_pairs(self, samples: Sequence[Sample]) -> list[tuple[Tokens, Tokens]]:
        """Encodes plain text as it is, and the end token. A space tells a lexer where the prompt ends."""
        prompts = [sample.prompt + (" " if is_lexer(self.tokenizer) else "") for sample in samples]
        texts = [prompt + sample.completion for prompt, sample in zip(prompts, samples, strict=True)]
        spans = [[(len(prompt), len(text))] for prompt, text in zip(prompts, texts, strict=True)]
        end = end_token(self.tokenizer)
        encoded = []
        for sample, (ids, labels) in zip(samples, self._encode(texts, spans, add_special_tokens=True), strict=True):
            if end is not None and len(ids) and ids[-1] == end:
                labels[-1] = end  # the tokenizer adds it itself
            elif end is not None:
                ids, labels = np.append(ids, np.int32(end)), np.append(labels, np.int32(end))
            if not sample.completion.strip() and (self.mask_inputs or not sample.prompt):
                labels[:] = IGNORE_INDEX  # an empty cell does not mean that the answer is empty
            encoded.append((ids, labels))
        return encoded


def _count_messages(chats: Sequence[Sample]) -> None:
    """Counts messages by their role, chats with tools, and their calls."""
    messages = [message for chat in chats for message in chat.messages]
    for role, number in Counter(message["role"] for message in messages).items():
        count(ROLES, role, number)
    count(TOOLS, "chats with tools", sum(chat.tools is not None for chat in chats))
    count(TOOLS, "tool calls", sum(len(message.get("tool_calls") or ()) for message in messages))


def _last_turns(masked: MaskedChat, count: int) -> list[int]:
    """Returns the last ``count`` turns of the assistant. Raises `DataError` for one that the template leaves out."""
    turns = range(max(0, len(masked.answers) - count), len(masked.answers))
    if not all(masked.answers[turn] for turn in turns):
        enclosed = sum(map(bool, masked.answers))
        raise DataError(
            f"the chat template encloses {enclosed} of {len(masked.answers)} answers in {{% generation %}}, and not "
            "the last, which is to be learned"
        )
    return list(turns)


def _normalized(text: str) -> str:
    """Returns what is left of a text that a tokenizer may have spaced or spelt otherwise."""
    # white space first: what it keeps apart would be put together, and what that gives may be white space
    joined = unicodedata.normalize("NFKC", "".join(text.replace("▁", " ").split())).casefold()
    return "".join(joined.replace("▁", " ").split())
