"""Data for policies: prompts, each with a reference."""

import functools
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from arctic_training.config.sections.types import HumanInt
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.config import SourcedDataConfig
from arctic_training.data.factories.model_facts import has_encoder
from arctic_training.data.factories.sourced import SourcedDataFactory
from arctic_training.data.formats import chat, remarks
from arctic_training.data.formats.row_error import NothingLeft
from arctic_training.data.preparation.prompt_encoder import PromptEncoder, SourceTargetEncoder, encode_prompts
from arctic_training.data.preparation.row_encoder import RowEncoder
from arctic_training.data.preparation.samples import Samples, TokenSamples
from arctic_training.data.preview.rows import PreviewRow, PreviewText, add_facts, without_fillers
from arctic_training.distributed import process_group
from arctic_training.logging import logger

if TYPE_CHECKING:
    from datasets import Dataset


class PromptDataConfig(SourcedDataConfig):
    """The data of trainers that generate completions."""

    max_length: HumanInt | None = Field(default=None, ge=2)
    """Tokens of the longest prompt with its completion, or of the longest prompt that an encoder reads; by default the
    model's context length."""
    pack_samples: bool = True
    """Pack the completions of a micro-batch into one row, each with its prompt a document that does not attend to the
    others; else pad them. Both give the same numbers; padding is for models whose layers cannot separate documents, and
    an encoder-decoder always has padded rows."""
    div_length: HumanInt = Field(default=8, ge=1)
    """The length of a row is a multiple of this."""
    chat_template_kwargs: dict[str, Any] = {}
    """Passed to the chat template, such as ``{enable_thinking: false}``."""


class PromptDataFactory(SourcedDataFactory[PromptDataConfig]):
    """Encodes prompts of chats in any of the usual formats; the assistant's last answer is the reference.

    A sample is the prompt, ``input_ids``, and the reference with its end token, ``completion_ids``; for an
    encoder-decoder they are source and target of `seq2seq`. A prompt that leaves no room for ``max_new_tokens`` below
    ``max_length`` is dropped. A batch has a list of each under ``prompts`` and ``references``, and ``weights``: 1, or 0
    for a prompt that only fills a batch.
    """

    name = "prompt"
    counts = "completions"
    not_in_cache_key = SourcedDataFactory.not_in_cache_key | {"max_length", "pack_samples", "div_length"}

    @functools.cached_property
    def encoder_decoder(self) -> bool:
        """Returns whether the model reads a prompt with an encoder; a completion takes none of its positions."""
        return has_encoder(self.trainer)

    def sample_settings(self) -> dict[str, Any]:
        return super().sample_settings() | ({"encoder_decoder": True} if self.encoder_decoder else {})

    def process(self, dataset: "Dataset") -> "Dataset":
        arguments: dict[str, Any] = {
            "tokenize_arguments": self.tokenize_arguments,
            "template_arguments": self.config.chat_template_kwargs,
        }
        if self.encoder_decoder:
            encoder: PromptEncoder = SourceTargetEncoder(self.tokenizer, encoder_decoder=True, **arguments)
        else:
            encoder = PromptEncoder(self.tokenizer, **arguments)
        return self.map_rows(dataset, RowEncoder(chat.reader(dataset.column_names), partial(encode_prompts, encoder)))

    def postprocess_samples(self, samples: Samples) -> TokenSamples:
        """Drops prompts that are too long. Raises `NothingLeft` when all of them are."""
        needed = 0 if self.encoder_decoder else int(getattr(self.trainer.config, "max_new_tokens", 0))
        lengths = samples.lengths()
        fits = lengths <= self.max_length - needed
        if fits.all():
            return samples
        what = f"leave no room for max_new_tokens in max_length = {self.max_length}"
        if self.encoder_decoder:
            what = f"have more tokens than max_length = {self.max_length}"
        count = f"{(~fits).sum()} of {len(lengths)} prompts {what}"
        if not fits.any():
            raise NothingLeft(f"data.max_length: {count}, the shortest has {lengths.min()} tokens: nothing is left")
        remarks.count(remarks.DROPPED, f"prompts that {what}", int((~fits).sum()))
        logger.warning(f"{count}, and are dropped")
        return samples.select(np.flatnonzero(fits))

    def make_padding_sample(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**sample, "weights": 0.0}

    def batch(self, samples: list[Any]) -> Batch:
        """Returns all prompts on every rank; of the ranks that share sequences the first one counts them."""
        batch = self.add_extra_columns(self.collate(samples), samples)
        if process_group.rank() % self.trainer.config.sequence_parallel_size:
            batch["weights"] = [0.0] * len(samples)
        return batch

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        return {
            "prompts": [sample["input_ids"] for sample in samples],
            "references": [sample["completion_ids"] for sample in samples],
            "weights": [sample.get("weights", 1.0) for sample in samples],
        }

    def show(self, batch: Batch) -> list[PreviewRow]:
        pairs = zip(batch["prompts"], batch["references"], strict=True)
        rows = [
            PreviewRow([PreviewText(prompt, name="prompt"), PreviewText(reference, name="reference")])
            for prompt, reference in pairs
        ]
        add_facts(rows, batch, without=("prompts", "references", "weights"))
        return without_fillers(rows, batch["weights"])
