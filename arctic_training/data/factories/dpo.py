"""Data for DPO: two completions to each prompt, the first preferred."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.completions import CompletionDataConfig, CompletionDataFactory, Truncation
from arctic_training.data.formats import preference
from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.preference import Preference
from arctic_training.data.preparation.row_encoder import Columns, RowEncoder
from arctic_training.data.preview.rows import PreviewRow, add_facts, documents, without_fillers
from arctic_training.data.tokenization.encoder import SampleEncoder
from arctic_training.data.tokenization.tokenize import Tokens
from arctic_training.loss.targets import IGNORE_INDEX

if TYPE_CHECKING:
    from datasets import Dataset


class DPODataConfig(CompletionDataConfig):
    """The data of the DPO trainer."""

    dpo_prompt_truncation_mode: Literal["keep_start", "keep_end"] = "keep_start"
    """Which part of a prompt is kept when it is too long."""


class DPODataFactory(CompletionDataFactory[DPODataConfig]):
    """Encodes rows with ``chosen`` and ``rejected``: chats, or texts, with a ``prompt`` or a common beginning.

    A sample is the chosen completion with its prompt, ``input_ids`` and ``labels``, and the rejected one,
    ``rejected_input_ids`` and ``rejected_labels``. A batch has all chosen completions first, then the rejected ones
    in the same order, as rows or as documents of one row; ``completion_lengths``, int64 ``[2 * pairs]``, the labels
    of each; ``pair_weights``, fp32 ``[pairs]``, 0 for a pair that only fills a batch; and ``chosen_tokens``, the labels
    of the chosen completions that count.
    """

    name = "dpo"
    counts = "pairs"
    sequences_per_row = 2
    row_level_keys = ("pair_weights", "chosen_tokens")
    needs_prompt: ClassVar[bool] = True
    """True where completions are learned given a prompt, so that texts without one are refused."""

    def process(self, dataset: "Dataset") -> "Dataset":
        truncate = self.truncation(self.config.dpo_prompt_truncation_mode)
        encode = partial(_encode_pairs, self.encoder, truncate)
        reader = preference.reader(dataset.column_names, needs_prompt=self.needs_prompt)
        return self.map_rows(dataset, RowEncoder(reader, encode))

    def no_target(self, sample: Mapping[str, Any]) -> str:
        truncated = len(sample["rejected_input_ids"]) == self.max_length
        if truncated and (sample["rejected_labels"] == IGNORE_INDEX).all():
            return f"have a prompt that leaves no room for a completion in max_length = {self.max_length}"
        if truncated and np.array_equal(sample["input_ids"], sample["rejected_input_ids"]):
            return f"have completions that are the same once truncated to max_length = {self.max_length}"
        return "prefer nothing, chosen and rejected being the same, or empty"

    def make_padding_sample(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        names = ("labels", "rejected_labels")
        return {**sample, **{name: np.full_like(sample[name], IGNORE_INDEX) for name in names}}

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        completions = [{name: sample[name] for name in ("input_ids", "labels")} for sample in samples]
        completions += [{name: sample[f"rejected_{name}"] for name in ("input_ids", "labels")} for sample in samples]
        batch = self.collate_completions(completions)
        lengths = batch["completion_lengths"].numpy()
        decided = np.minimum(*np.split(lengths, 2)) > 0
        return batch | {
            "pair_weights": torch.from_numpy(decided.astype(np.float32)),
            "chosen_tokens": int(lengths[: len(samples)][decided].sum()),
        }

    def show(self, batch: Batch) -> list[PreviewRow]:
        completions = documents(batch)
        rows = [PreviewRow(list(pair)) for pair in zip(completions, completions[len(completions) // 2 :], strict=False)]
        for row in rows:
            row.texts[0].name, row.texts[1].name = "chosen", "rejected"
        add_facts(rows, batch)
        return without_fillers(rows, batch["pair_weights"])


def _encode_pairs(encoder: SampleEncoder, truncate: Truncation, pairs: list[Preference], first: int) -> Columns:
    """Returns ``input_ids`` and ``labels`` of both completions. Raises `RowError`."""

    def encode(samples: list[Sample], last_turns: list[int]) -> list[tuple[Tokens, Tokens]]:
        return [truncate(ids, labels) for ids, labels in encoder(samples, first, last_turns=last_turns)]

    chosen = encode([pair.chosen for pair in pairs], [pair.chosen_turns for pair in pairs])
    rejected = encode([pair.rejected for pair in pairs], [pair.rejected_turns for pair in pairs])
    columns: dict[str, list[Tokens]] = {}
    for pair, (ids, labels), (rejected_ids, rejected_labels) in zip(pairs, chosen, rejected, strict=True):
        # truncated completions may be alike though the pair is decided
        differ = not (np.array_equal(ids, rejected_ids) and np.array_equal(labels, rejected_labels))
        if not (pair.decided and differ and (rejected_labels != IGNORE_INDEX).any()):
            labels = np.full_like(labels, IGNORE_INDEX)  # counted, named and dropped
        row = {"input_ids": ids, "labels": labels}
        row |= {"rejected_input_ids": rejected_ids, "rejected_labels": rejected_labels}
        for name, tokens in row.items():
            columns.setdefault(name, []).append(tokens)
    return columns
