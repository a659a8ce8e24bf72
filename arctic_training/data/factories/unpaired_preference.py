"""Data for KTO: completions of prompts, each liked or not."""

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from arctic_training.data.batching.loader import Batch
from arctic_training.data.batching.mismatched import MismatchedCompletions
from arctic_training.data.factories.completions import CompletionDataConfig, CompletionDataFactory, Truncation
from arctic_training.data.formats import unpaired
from arctic_training.data.formats.unpaired import RatedCompletion
from arctic_training.data.preparation.row_encoder import Columns, RowEncoder
from arctic_training.data.preparation.samples import Sample, SampleList
from arctic_training.data.preview.rows import PreviewRow, add_facts, documents, without_fillers
from arctic_training.data.tokenization.encoder import SampleEncoder
from arctic_training.distributed import process_group
from arctic_training.distributed.sequence_parallel import shard_batch
from arctic_training.loss.targets import IGNORE_INDEX

if TYPE_CHECKING:
    from datasets import Dataset


class UnpairedPreferenceDataConfig(CompletionDataConfig):
    """The data of the KTO trainer."""

    prompt_truncation_mode: Literal["keep_start", "keep_end"] = "keep_start"
    """Which part of a prompt is kept when it is too long."""


class UnpairedPreferenceDataFactory(CompletionDataFactory[UnpairedPreferenceDataConfig]):
    """Encodes rows with a ``label``, true or false, beside a prompt and a completion or a chat; of a pair both.

    A sample is ``input_ids`` and ``labels`` of the completion with its prompt, and ``label``: whether it was liked. A
    batch has the completions as rows, or as documents of one row; ``completion_lengths``, int64 ``[rows]``, the labels
    of each; ``label``, bool ``[rows]``; ``row_weights``, fp32 ``[rows]``, 0 for a row that only fills a batch; and
    ``mismatched``: a batch of the same prompts, each with the completion of another sample, see
    `arctic_training.data.batching.mismatched`, with its own ``completion_lengths``.
    """

    name = "unpaired_preference"
    counts = "completions"
    row_level_keys = ("row_weights",)

    def process(self, dataset: "Dataset") -> "Dataset":
        truncate = self.truncation(self.config.prompt_truncation_mode)
        encode = partial(_encode_completions, self.encoder, truncate)
        return self.map_rows(dataset, RowEncoder(unpaired.reader(dataset.column_names), encode))

    def no_target(self, sample: Sample) -> str:
        if len(sample["input_ids"]) == self.max_length:
            return f"have a prompt that leaves no room for a completion in max_length = {self.max_length}"
        return "have an empty completion"

    def postprocess_samples(self, samples: SampleList) -> MismatchedCompletions:
        return MismatchedCompletions(samples, seed=self.config.seed, max_length=self.max_length)

    def make_padding_sample(self, sample: Sample) -> Sample:
        names = ("labels", "mismatched_labels")
        return {**sample, **{name: np.full_like(sample[name], IGNORE_INDEX) for name in names}}

    def batch(self, samples: list[Sample]) -> Batch:
        batch, size = super().batch(samples), self.trainer.config.sequence_parallel_size
        if size > 1:
            batch["mismatched"] = shard_batch(batch["mismatched"], size, process_group.rank() % size)
        return batch

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        batch = self._collate_completions(samples, "")
        return batch | {
            "label": torch.tensor([sample["label"] for sample in samples]),
            "row_weights": (batch["completion_lengths"] > 0).float(),
            "mismatched": self._collate_completions(samples, "mismatched_"),
        }

    def show(self, batch: Batch) -> list[PreviewRow]:
        pairs = zip(documents(batch, "completion"), documents(batch["mismatched"], "mismatched"), strict=True)
        rows = [PreviewRow(list(pair)) for pair in pairs]
        for row in rows:
            row.texts[1].is_derived = True
        add_facts(rows, batch)
        return without_fillers(rows, batch["row_weights"])

    def _collate_completions(self, samples: list[Sample], prefix: str) -> dict[str, Any]:
        completions = [{name: sample[prefix + name] for name in ("input_ids", "labels")} for sample in samples]
        return self.collate_completions(completions)


def _encode_completions(
    encoder: SampleEncoder, truncate: Truncation, rows: list[list[RatedCompletion]], first: int
) -> Columns:
    """Returns ``input_ids``, ``labels`` and ``label`` of the completions, row by row. Raises `RowError`."""
    encoded = []
    for completions in zip(*rows, strict=True):  # one of each row at a time, since the encoder numbers what it gets
        tokens = encoder([one.sample for one in completions], first, last_turns=[one.turns for one in completions])
        encoded.append([truncate(*one) for one in tokens])
    ids, labels = zip(*(one for row in zip(*encoded, strict=True) for one in row), strict=True)
    return {"input_ids": ids, "labels": labels, "label": [one.is_liked for row in rows for one in row]}
