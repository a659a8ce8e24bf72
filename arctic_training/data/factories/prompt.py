"""Data for policies: prompts, each with a reference answer."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.config.sections.types import HumanInt
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.config import SourcedDataConfig
from arctic_training.data.factories.sourced import SourcedDataFactory
from arctic_training.data.formats import chat, remarks
from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.row_error import NothingLeft, RowError
from arctic_training.data.preparation.row_encoder import Columns, RowEncoder
from arctic_training.data.preparation.samples import Samples, TokenSamples
from arctic_training.data.preview.rows import PreviewRow, PreviewText, add_facts, without_fillers
from arctic_training.data.tokenization.encoder import SampleEncoder
from arctic_training.data.tokenization.tokenize import Tokens
from arctic_training.distributed import process_group
from arctic_training.errors.types import DataError
from arctic_training.logging import logger
from arctic_training.loss.targets import IGNORE_INDEX

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class PromptDataConfig(SourcedDataConfig):
    """The data of trainers that generate completions."""

    pack_samples: bool = True
    """Pack the completions of a micro-batch into one row, each with its prompt a document that does not attend to the
    others; else pad them. Both give the same numbers; padding is for models whose layers cannot separate documents."""
    div_length: HumanInt = Field(default=8, ge=1)
    """The length of a row is a multiple of this."""
    chat_template_kwargs: dict[str, Any] = {}
    """Passed to the chat template, such as ``{enable_thinking: false}``."""


class PromptDataFactory(SourcedDataFactory[PromptDataConfig]):
    """Encodes prompts of chats in any of the usual formats; the assistant's last answer is the reference.

    A sample is the prompt, ``input_ids``, and the reference with its end token, ``answer_ids``. A prompt that leaves no
    room for ``max_new_tokens`` below ``max_length`` is dropped. A batch has a list of each under ``prompts`` and
    ``references``, and ``weights``: 1, or 0 for a prompt that only fills a batch.
    """

    name = "prompt"
    counts = "completions"
    config_type: ClassVar[type[ComponentConfig]] = PromptDataConfig
    not_in_cache_key = SourcedDataFactory.not_in_cache_key | {"max_length", "pack_samples", "div_length"}

    @classmethod
    def packs(cls, config: Any) -> bool:
        return bool(config.pack_samples)

    def process(self, dataset: "Dataset") -> "Dataset":
        encoder = PromptEncoder(
            self.tokenizer,
            tokenize_arguments=self.tokenize_arguments,
            template_arguments=self.config.chat_template_kwargs,
        )
        return self.map_rows(dataset, RowEncoder(chat.reader(dataset.column_names), partial(_encode_samples, encoder)))

    def postprocess_samples(self, samples: Samples) -> TokenSamples:
        """Drops prompts that are too long. Raises `NothingLeft` when all of them are."""
        room = self.max_length - int(getattr(self.trainer.config, "max_new_tokens", 0))
        lengths = samples.lengths()
        fits = lengths <= room
        if fits.all():
            return samples
        count = f"{(~fits).sum()} of {len(lengths)} prompts leave no room for max_new_tokens in "
        count += f"max_length = {self.max_length}"
        if not fits.any():
            raise NothingLeft(f"data.max_length: {count}, the shortest has {lengths.min()} tokens: nothing is left")
        why = f"prompts that leave no room for max_new_tokens in max_length = {self.max_length}"
        remarks.count(remarks.DROPPED, why, int((~fits).sum()))
        logger.warning(f"{count}, and are dropped")
        return samples.select(np.flatnonzero(fits))

    def make_padding_sample(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**sample, "blank": True}

    def batch(self, samples: list[Any]) -> Batch:
        """Returns all prompts on every rank; of the ranks that share sequences the first one counts them."""
        batch = self.add_extra_columns(self.collate(samples), samples)
        if process_group.rank() % self.trainer.config.sequence_parallel_size:
            batch["weights"] = [0.0] * len(samples)
        return batch

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        return {
            "prompts": [sample["input_ids"] for sample in samples],
            "references": [sample["answer_ids"] for sample in samples],
            "weights": [float("blank" not in sample) for sample in samples],
        }

    def show(self, batch: Batch) -> list[PreviewRow]:
        pairs = zip(batch["prompts"], batch["references"], strict=True)
        rows = [
            PreviewRow([PreviewText(prompt, name="prompt"), PreviewText(answer, name="reference")])
            for prompt, answer in pairs
        ]
        add_facts(rows, batch, without=("prompts", "references", "weights"))
        return without_fillers(rows, batch["weights"])


def closing_tokens(tokenizer: "PreTrainedTokenizerBase", config: Any) -> list[int]:
    """Returns the last two tokens of an answer by the chat template; none without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        ((ids, labels),) = SampleEncoder(tokenizer, template_arguments=config.chat_template_kwargs)([Sample(turns)])
    except DataError:  # it may refuse this chat
        return []
    answer: list[int] = ids[labels != IGNORE_INDEX].tolist()
    return answer[-2:]


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
        end, text = self.tokenizer.eos_token_id, sample.prompt + (" " if is_lexer(self.tokenizer) else "")
        ((prompt, _),) = self._tokenize([text], [[]], add_special_tokens=True)
        ((completion, _),) = self._tokenize([sample.completion], [[]])
        prompt = prompt[:-1] if len(prompt) and prompt[-1] == end else prompt
        return prompt, completion if end is None else np.append(completion, np.int32(end))


def _encode_samples(encoder: PromptEncoder, samples: list[Sample], first: int) -> Columns:
    """Returns ``input_ids`` and ``answer_ids``. Raises `RowError`."""
    prompts, answers = zip(*encoder.encode_pairs(samples, first), strict=True)
    return {"input_ids": prompts, "answer_ids": answers}
