"""Rows of instruction data to tokens and labels."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.remarks import remark
from arctic_training.data.formats.row_error import RowError
from arctic_training.data.tokenization.assistant_mask import AssistantMasker, Found
from arctic_training.data.tokenization.chat_template import ChatTemplate, Span
from arctic_training.data.tokenization.check_labels import check_learned
from arctic_training.data.tokenization.message_keys import MessageKeys
from arctic_training.data.tokenization.tokenize import SpanTokenizer, Tokens
from arctic_training.data.tokenization.turn_locator import Renderer, TurnLocator
from arctic_training.errors.types import DataError
from arctic_training.loss.targets import IGNORE_INDEX

_VERIFIED = 32
"""Samples whose targets are decoded again, to see that they are what was said."""


class SampleEncoder:
    """Makes token ids and labels: a label is the token itself where the assistant says it, else -100."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        mask_inputs: bool = True,
        ignore_empty_think: bool = False,
        tokenize_arguments: Mapping[str, Any] | None = None,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """``mask_inputs`` false makes every token a target but the first of each sample, which nothing predicts."""
        self.tokenizer, self.mask_inputs, self.ignore_empty_think = tokenizer, mask_inputs, ignore_empty_think
        self.template_arguments = dict(template_arguments or {})
        self._tokenize = SpanTokenizer(tokenizer, tokenize_arguments)
        self._finder: AssistantMasker | None = None
        self._unverified = _VERIFIED
        self._prompts = False
        """The template is known to have a generation prompt."""

    def __call__(self, samples: Sequence[Sample], first: int = 0) -> list[tuple[Tokens, Tokens]]:
        """Token ids and labels of each sample. Raises `RowError`, counting from ``first``."""
        made: list[tuple[Tokens, Tokens]] = [(np.empty(0, np.int32),) * 2] * len(samples)
        chats = [n for n, sample in enumerate(samples) if sample.messages]
        alike = [n for n in chats if samples[n].tools is None]
        groups = [alike, *([n] for n in chats if samples[n].tools is not None)]
        for group in filter(None, groups):
            texts, spans = self._find(samples, group, first)
            for n, one in zip(group, self._labelled(texts, spans, special=False), strict=True):
                made[n] = one
        pairs = [n for n, sample in enumerate(samples) if not sample.messages]
        if pairs:
            for n, one in zip(pairs, self._completed([samples[n] for n in pairs]), strict=True):
                made[n] = one
        return made

    def prompts(self, samples: Sequence[Sample]) -> list[Tokens]:
        """Returns the tokens by which a model is asked for the last learned answer of each chat; none without one."""
        texts = []
        for sample in samples:
            try:
                texts.append(self.asked(sample, sample.context) if sample.messages else "")
            except DataError:
                texts.append("")
        return [ids for ids, _ in self._tokenize(texts, [[]] * len(texts))]

    def asked(self, sample: Sample, context: Collection[int] = ()) -> str:
        """Returns the conversation before its last answer that is none of ``context``, with the generation prompt.

        Raises `DataError` for one that the chat template refuses, or where it has no generation prompt.
        """
        template = self.finder.template
        chat = template.read(sample.messages)
        answers = (n for n, message in enumerate(chat) if message["role"] == "assistant" and n not in context)
        last = max(answers, default=len(chat))
        try:
            (text,) = template.render([chat[:last]], sample.tools, generation_prompt=True)
        except Exception as error:
            raise DataError(f"the chat template refuses it without its last answer: {error}") from error
        if not self._prompts and TurnLocator(Renderer(template, sample.tools), text, chat, last).prompt != text:
            raise DataError(
                "the chat template begins an answer with a header, and has no generation prompt that says so: add the "
                "header to it, {% if add_generation_prompt %}"
            )
        self._prompts = True
        return text

    @property
    def finder(self) -> AssistantMasker:
        if self._finder is None:
            template = ChatTemplate(self.tokenizer, self.template_arguments)
            self._keys = MessageKeys(template)
            self._finder = AssistantMasker(template, ignore_empty_think=self.ignore_empty_think)
        return self._finder

    def _find(self, samples: Sequence[Sample], group: Sequence[int], first: int) -> tuple[list[str], list[list[Span]]]:
        finder, tools = self.finder, samples[group[0]].tools
        try:
            found = finder([samples[n].messages for n in group], tools)
        except Exception:
            for n in group:  # which of them is it?
                try:
                    finder([samples[n].messages], tools)
                except Exception as error:
                    said = str(error) if isinstance(error, DataError) else f"the chat template refuses it: {error}"
                    raise RowError(first + n, said + self._remedy(samples[n])) from error
            raise
        for one in found:
            self._keys.look(one.chat, tools)
        spans = [self._targets(n, samples[n], one, first + n) for n, one in zip(group, found, strict=True)]
        return [one.text for one in found], spans

    def _targets(self, n: int, sample: Sample, found: Found, row: int) -> list[Span]:
        """The characters that are learned of sample ``n`` of the batch. Raises `RowError` when that cannot be told."""
        excluded = sample.context - sample.prompted
        if excluded and not self.mask_inputs:
            told = f"message {min(excluded) + 1} has the {sample.flag}"
            raise RowError(row, f"{told}, and mask_inputs: false makes every token a target")
        try:
            turns = self._turns(n, sample, found)
            remarks = check_learned(found, turns, self.finder.template.ends)
        except DataError as error:
            raise RowError(row, f"{error}{self._remedy(sample)}") from error
        for sentence in remarks:
            remark(sentence)
        return [span for turn in turns for span in found.answers[turn]]

    def _remedy(self, sample: Sample) -> str:
        """Names an argument of the chat template with which it takes the sample, if there is one."""
        for name in self.finder.template.variables:
            for value in (False, True):
                arguments = {**self.template_arguments, name: value}
                try:
                    (found,) = AssistantMasker(ChatTemplate(self.tokenizer, arguments))([sample.messages], sample.tools)
                    check_learned(found, range(len(found.answers)), self.finder.template.ends)
                except Exception:
                    continue
                return f"; it works with data.chat_template_kwargs: {{{name}: {str(value).lower()}}}"
        return ""

    def _turns(self, n: int, sample: Sample, found: Found) -> list[int]:
        """Returns the assistant's turns that are learned: none of the weight 0, none that the template leaves out."""
        turns = [number for number, message in enumerate(sample.messages) if message["role"] == "assistant"]
        return [turn for turn, number in enumerate(turns) if number not in sample.context and found.answers[turn]]

    def _labelled(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]], *, special: bool
    ) -> list[tuple[Tokens, Tokens]]:
        made = []
        for text, found, (ids, mask) in zip(texts, spans, self._tokenize(texts, spans, special=special), strict=True):
            if self._unverified:
                self._unverified -= 1
                self._verify(text, found, ids[mask])
            labels = np.where(mask, ids, np.int32(IGNORE_INDEX)) if self.mask_inputs else ids.copy()
            labels[:1] = IGNORE_INDEX
            made.append((ids, labels))
        return made

    def _verify(self, text: str, spans: Sequence[Span], targets: Tokens) -> None:
        """Raises `DataError` when the targets do not decode to what the spans hold, white space and the like apart."""
        if is_lexer(self.tokenizer) and (targets == self.tokenizer.unk_token_id).any():
            return  # a lexer keeps nothing of what it does not know; whether it may is said of all data at once
        normalizer = self.tokenizer.backend_tokenizer.normalizer if self.tokenizer.is_fast else None
        decoded, at = _plain(self.tokenizer.decode(targets)), 0
        for start, end in spans:
            said = text[start:end]
            wanted = _plain(normalizer.normalize_str(said) if normalizer is not None else said)
            if (found := decoded.find(wanted, at)) < 0:
                raise DataError(
                    f"the tokens of what the assistant says, {said!r}, decode to {decoded[at:]!r}: the tokenizer does "
                    "not keep text as it is, so that targets cannot be told"
                )
            at = found + len(wanted)

    def _completed(self, samples: Sequence[Sample]) -> list[tuple[Tokens, Tokens]]:
        """Plain text as it is, with the end token after it. A lexer is told where the prompt ends, by a space."""
        prompts = [sample.prompt + " " * is_lexer(self.tokenizer) for sample in samples]
        texts = [prompt + sample.completion for prompt, sample in zip(prompts, samples, strict=True)]
        spans = [[(len(prompt), len(text))] for prompt, text in zip(prompts, texts, strict=True)]
        end = self.tokenizer.eos_token_id
        made = []
        for sample, (ids, labels) in zip(samples, self._labelled(texts, spans, special=True), strict=True):
            if end is not None and len(ids) and ids[-1] == end:
                labels[-1] = end  # the tokenizer adds it itself
            elif end is not None:
                ids, labels = np.append(ids, np.int32(end)), np.append(labels, np.int32(end))
            if not sample.completion.strip() and (self.mask_inputs or not sample.prompt):
                labels[:] = IGNORE_INDEX  # to answer nothing is not what an empty cell means
            made.append((ids, labels))
        return made


def last_turns(found: Found, count: int) -> list[int]:
    """The last ``count`` of the assistant's turns. Raises `DataError` for one that the template does not enclose."""
    turns = range(max(0, len(found.answers) - count), len(found.answers))
    if not all(found.answers[turn] for turn in turns):
        enclosed = sum(map(bool, found.answers))
        raise DataError(
            f"the chat template encloses {enclosed} of {len(found.answers)} answers in {{% generation %}}, and not the "
            "last, which is to be learned"
        )
    return list(turns)


def _plain(text: str) -> str:
    """What is left of a text that a tokenizer may have spaced or spelt otherwise."""
    # white space first: what it keeps apart would be put together, and what that gives may be white space
    joined = unicodedata.normalize("NFKC", "".join(text.replace("▁", " ").split())).casefold()
    return "".join(joined.replace("▁", " ").split())
