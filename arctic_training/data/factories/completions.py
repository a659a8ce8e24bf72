"""The base of data factories for completions that were compared or rated, which encodes, truncates and batches them."""

from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from pydantic import Field

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanInt
from arctic_training.data.batching.collate import pack, pad
from arctic_training.data.factories.config import SourcedDataConfig
from arctic_training.data.factories.sourced import SourcedDataFactory
from arctic_training.data.formats.remarks import TRUNCATED, count
from arctic_training.data.preparation.samples import Sample
from arctic_training.data.tokenization.encoder import SampleEncoder
from arctic_training.data.tokenization.tokenize import Tokens
from arctic_training.generation.special_tokens import get_pad_token_id
from arctic_training.loss.targets import IGNORE_INDEX


class CompletionDataConfig(SourcedDataConfig):
    """The data of trainers that learn from completions with their prompts."""

    max_prompt_length: HumanInt = Field(default=4096, ge=1)
    """Tokens of the longest prompt; longer ones are truncated. Completions are truncated at ``max_length``."""
    pack_samples: bool = True
    """Pack the completions of a micro-batch into one row, each with its prompt a document that does not attend to the
    others; else pad them. Both give the same numbers; padding is for models whose layers cannot separate documents."""
    div_length: HumanInt = Field(default=8, ge=1)
    """The length of a row is a multiple of this."""
    chat_template_kwargs: dict[str, Any] = {}
    """Passed to the chat template, such as ``{enable_thinking: false}``."""


C = TypeVar("C", bound=CompletionDataConfig)


class CompletionDataFactory(SourcedDataFactory[C]):
    """Base for samples with the token ids and labels of completions, each with its prompt."""

    config_type: ClassVar[type[ComponentConfig]] = CompletionDataConfig
    not_in_cache_key = SourcedDataFactory.not_in_cache_key | {"pack_samples", "div_length"}

    @property
    def encoder(self) -> SampleEncoder:
        """The encoder that the section of the recipe describes."""
        return SampleEncoder(
            self.tokenizer,
            tokenize_arguments=self.tokenize_arguments,
            template_arguments=self.config.chat_template_kwargs,
        )

    def truncation(self, mode: str) -> "Truncation":
        """Returns the truncation of the recipe; ``mode``, ``keep_start`` or ``keep_end``, is what a prompt keeps."""
        return Truncation(self.max_length, self.config.max_prompt_length, mode)

    def collate_completions(self, completions: list[Sample]) -> dict[str, Any]:
        """Returns the batch, with ``completion_lengths``, int64 ``[completions]``: the labels of each.

        A completion has ``input_ids`` and ``labels``, int32 ``[tokens]``.
        """
        lengths = [np.count_nonzero(one["labels"][1:] != IGNORE_INDEX) for one in completions]
        collate = pack if self.config.pack_samples else partial(pad, positions=self.max_length)
        batch = collate(completions, pad_token=get_pad_token_id(self.tokenizer), multiple=self.config.div_length)
        return batch | {"completion_lengths": torch.tensor(lengths, dtype=torch.int64)}


class Truncation:
    """Truncates prompts and completions that are too long."""

    def __init__(self, max_length: int, max_prompt_length: int, mode: str) -> None:
        self.max_length, self.max_prompt_length, self.mode = max_length, max_prompt_length, mode

    def __call__(self, ids: Tokens, labels: Tokens) -> tuple[Tokens, Tokens]:
        """Returns ids and labels up to the last label. What comes before the first label is the prompt."""
        targets = np.flatnonzero(labels != IGNORE_INDEX)
        if not len(targets):
            return ids[:1], labels[:1]
        start, end = int(targets[0]), int(targets[-1]) + 1
        kept = min(start, self.max_prompt_length)
        if kept < start:
            count(TRUNCATED, f"prompts longer than max_prompt_length = {self.max_prompt_length}")
        if kept + end - start > self.max_length:
            count(TRUNCATED, f"completions that end after max_length = {self.max_length}")
        prompt = slice(0, kept) if self.mode == "keep_start" else slice(start - kept, start)
        ids, labels = (np.concatenate([part[prompt], part[start:end]])[: self.max_length] for part in (ids, labels))
        return ids, labels
