"""Prompts that a policy is to answer, each with the answer that it is to be compared with."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.numbers import HumanInt
from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.data.factories.config import SourcedDataConfig
from arctic_training.data.factories.sourced import SourcedDataFactory
from arctic_training.data.formats import chat
from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.row_error import NothingLeft, RowError, read_rows
from arctic_training.data.preparation.prepare import Rows, map_rows, token_table
from arctic_training.data.tokenization.assistant_mask import Found
from arctic_training.data.tokenization.encoder import SampleEncoder, last_turns
from arctic_training.data.tokenization.tokenize import Tokens
from arctic_training.distributed import process_group
from arctic_training.errors.types import DataError
from arctic_training.logging import logger
from arctic_training.loss.targets import IGNORE_INDEX


class PromptDataConfig(SourcedDataConfig):
    pack_samples: bool = True
    """Put the answers of a micro-batch into one row, each with its prompt a document that does not see the others; else
    side by side, padded. Both give the same numbers; padding is for models whose layers know no documents."""
    div_length: HumanInt = Field(default=8, ge=1)
    """What the length of a row is a multiple of."""
    chat_template_kwargs: dict[str, Any] = {}
    """Handed to the chat template, such as ``{enable_thinking: false}``."""


class PromptDataFactory(SourcedDataFactory[Any]):
    """Rows in any of the shapes of `arctic_training.data.formats.chat`. What the assistant says last is the reference.

    A sample is the prompt, ``input_ids``, and the reference with the token that ends it, ``answer_ids``. A prompt that
    leaves no room for an answer of ``max_new_tokens`` below ``max_length`` is left out. A batch has a list of
    each under ``prompts`` and ``references``, and ``weights``: 1, or 0 for a prompt that only fills a batch.
    """

    name = "prompt"
    config_type: ClassVar[type[ComponentConfig]] = PromptDataConfig
    not_in_cache_key = SourcedDataFactory.not_in_cache_key | {"max_length", "pack_samples", "div_length"}

    @classmethod
    def packs(cls, config: Any) -> bool:
        return bool(config.pack_samples)

    def process(self, dataset: Any) -> Any:
        config = self.config
        encoder = LastAnswerEncoder(
            self.tokenizer,
            tokenize_arguments=getattr(self.trainer.config.tokenizer, "tokenize_kwargs", None),
            template_arguments=config.chat_template_kwargs,
        )
        encode = _Encode(encoder, list(dataset.column_names))
        return map_rows(dataset, encode, processes=config.num_proc, folder=self.cache_folder)

    def postprocess_samples(self, samples: Any) -> Any:
        """Leave out prompts that are too long. Raises `DataError` when all of them are."""
        room = self.max_length - int(getattr(self.trainer.config, "max_new_tokens", 0))
        lengths = samples.lengths()
        fits = lengths <= room
        if fits.all():
            return samples
        told = f"{(~fits).sum()} of {len(lengths)} prompts leave no room for max_new_tokens in "
        told += f"max_length = {self.max_length}"
        if not fits.any():
            raise NothingLeft(f"data.max_length: {told}, the shortest has {lengths.min()} tokens: nothing is left")
        logger.warning(f"{told}, and are left out")
        return samples.select(np.flatnonzero(fits))

    def make_padding_sample(self, sample: Any) -> Any:
        return {**sample, "blank": True}

    def batch(self, samples: list[Any]) -> dict[str, Any]:
        """Prompts are whole on every process; of those that share sequences the first one counts them."""
        batch = self.collate(samples)
        if process_group.rank() % self.trainer.config.sequence_parallel_size:
            batch["weights"] = [0.0] * len(samples)
        return batch

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        return {
            "prompts": [sample["input_ids"] for sample in samples],
            "references": [sample["answer_ids"] for sample in samples],
            "weights": [float("blank" not in sample) for sample in samples],
        }


def closing_tokens(tokenizer: Any, config: Any) -> list[int]:
    """The last two tokens of what the assistant says by the chat template; none where there is no template."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        ((ids, labels),) = SampleEncoder(tokenizer, template_arguments=config.chat_template_kwargs)([Sample(turns)])
    except DataError:  # it may want another chat than this one
        return []
    said: list[int] = ids[labels != IGNORE_INDEX].tolist()
    return said[-2:]


class LastAnswerEncoder(SampleEncoder):
    """Labels only the last of the assistant's turns, and makes prompts of what comes before it."""

    def _turns(self, n: int, sample: Sample, found: Found) -> list[int]:
        """Raises `DataError` for one that the template does not enclose."""
        return last_turns(found, 1)

    def pairs(self, samples: Sequence[Sample], first: int) -> list[tuple[Tokens, Tokens]]:
        """Returns the tokens of each prompt, as a model is asked it in use, and of its answer.

        Raises `RowError` for a sample that lacks one of them, or cannot be asked.
        """
        encoded = self(samples, first)
        chats = [n for n, sample in enumerate(samples) if any(turn["role"] == "assistant" for turn in sample.messages)]
        texts = [self._asked(samples[n], first + n) for n in chats]
        prompts = dict(zip(chats, self._tokenize(texts, [[]] * len(texts)), strict=True))
        made = []
        for n, (sample, (ids, labels)) in enumerate(zip(samples, encoded, strict=True)):
            targets = np.flatnonzero(labels != IGNORE_INDEX)
            if sample == Sample():
                made.append((ids[:0], ids[:0]))  # counted, named and left out
                continue
            if not len(targets):
                raise RowError(first + n, "there is no answer")
            if not sample.messages and not sample.prompt:
                raise RowError(first + n, "there is no prompt before the answer")
            if n not in prompts:
                made.append(self._apart(sample))
                continue
            prompt, start = prompts[n][0], int(targets[0])
            if np.array_equal(ids[: len(prompt)], prompt):
                start = max(start, len(prompt))  # a template may enclose the header in what the assistant says
            made.append((prompt, ids[start : targets[-1] + 1]))
        return made

    def _asked(self, sample: Sample, row: int) -> str:
        try:
            return self.asked(sample)
        except DataError as error:
            raise RowError(row, str(error)) from error

    def _apart(self, sample: Sample) -> tuple[Tokens, Tokens]:
        """The tokens of a pair's prompt, as a model is asked it, and of its completion: none holds parts of both."""
        end, text = self.tokenizer.eos_token_id, sample.prompt + " " * is_lexer(self.tokenizer)
        ((prompt, _),) = self._tokenize([text], [[]], special=True)
        ((completion, _),) = self._tokenize([sample.completion], [[]])
        prompt = prompt[:-1] if len(prompt) and prompt[-1] == end else prompt
        return prompt, completion if end is None else np.append(completion, np.int32(end))


class _Encode:
    """Makes samples of up to 1,000 rows; pickled when several processes share the work."""

    def __init__(self, encoder: LastAnswerEncoder, columns: Sequence[str]) -> None:
        """Raises `DataError` when no shape fits the columns."""
        chat.reader(columns)
        self.encoder, self.columns = encoder, columns

    def __call__(self, rows: Rows, first: int) -> Any:
        """Raises `RowError`."""
        samples = read_rows(chat.reader(self.columns), rows, first)
        prompts, answers = zip(*self.encoder.pairs(samples, first), strict=True)
        return token_table({"input_ids": prompts, "answer_ids": answers})
