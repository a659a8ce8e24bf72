"""Data for embeddings: pairs of texts that belong together, and hard negatives."""

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field

from arctic_training.config.sections.types import HumanInt
from arctic_training.data.batching.collate import pad_rows
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.config import SourcedDataConfig
from arctic_training.data.factories.sourced import SourcedDataFactory
from arctic_training.data.formats import pairs
from arctic_training.data.formats.remarks import TRUNCATED, count, remark
from arctic_training.data.preparation.row_encoder import Columns, RowEncoder
from arctic_training.data.preparation.samples import Sample
from arctic_training.data.preview.rows import PreviewRow, add_facts, documents, without_fillers
from arctic_training.data.tokenization.tokenize import Tokens
from arctic_training.generation.special_tokens import get_pad_token_id

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


_CANDIDATE = re.compile(r"candidate_\d{3,}_input_ids")
"""The columns of samples that hold candidates, in the order of their numbers."""


class PairDataConfig(SourcedDataConfig):
    """The data of the embedding trainer."""

    anchor_column: str | None = None
    """Column of the texts that are searched for; by default ``anchor``, ``query``, ``question`` or ``sentence1``."""
    positive_column: str | None = None
    """Column of the texts that are to be found; by default ``positive``, ``document``, ``passage``, ``answer`` or
    ``sentence2``."""
    negative_columns: list[str] | None = None
    """Columns of hard negatives, with a text or a list of texts each; by default ``negative``, ``negative_1``, ... and
    ``negatives``."""
    num_negatives: int | None = Field(default=None, ge=0)
    """Hard negatives of each row; rows with more use the first. By default one for each column."""
    anchor_prompt: str = ""
    """Text before every anchor, such as ``query: ``."""
    candidate_prompt: str = ""
    """Text before every positive and negative, such as ``passage: ``."""
    div_length: HumanInt = Field(default=8, ge=1)
    """The length of a row is a multiple of this."""


class PairDataFactory(SourcedDataFactory[PairDataConfig]):
    """Encodes rows with an anchor, a positive that belongs to it and, where there are columns, hard negatives.

    Texts longer than ``max_length`` tokens are truncated. A batch has ``micro_batch_size`` rows on every rank.
    ``anchor`` and ``candidates`` are mappings with ``input_ids`` and ``attention_mask``, int64 ``[rows, T]``; of the
    candidates the positives come first, in the order of the anchors, then the first negatives of all rows, and so on.
    ``anchor_ids``, int64 ``[rows]``, and ``candidate_ids``, int64 ``[candidates]``, are equal for equal texts.
    ``row_weights``, fp32 ``[rows]``, is 0 for a row that only fills a batch.
    """

    name = "pair"
    counts = "pairs"
    sequences_per_row = 2
    not_in_cache_key = SourcedDataFactory.not_in_cache_key | {"div_length"}
    even_batches = True

    def process(self, dataset: "Dataset") -> "Dataset":
        config = self.config
        read = pairs.reader(
            dataset.column_names,
            anchor=config.anchor_column,
            positive=config.positive_column,
            negatives=config.negative_columns,
            num_negatives=config.num_negatives,
        )
        prompts = (config.anchor_prompt, config.candidate_prompt)
        options = {**(self.tokenize_arguments or {}), "truncation": True, "max_length": self.max_length}
        return self.map_rows(dataset, RowEncoder(read, partial(_encode_texts, self.tokenizer, options, prompts)))

    def make_padding_sample(self, sample: Sample) -> Sample:
        return {**sample, "row_weights": 0.0}

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        names = sorted(name for name in samples[0] if _CANDIDATE.fullmatch(name))
        anchors = [sample["input_ids"] for sample in samples]
        candidates = [sample[name] for name in names for sample in samples]
        return {
            "anchor": self._pad(anchors),
            "candidates": self._pad(candidates),
            "anchor_ids": torch.tensor([_hash(tokens) for tokens in anchors]),
            "candidate_ids": torch.tensor([_hash(tokens) for tokens in candidates]),
            "row_weights": torch.tensor([sample.get("row_weights", 1.0) for sample in samples]),
        }

    def show(self, batch: Batch) -> list[PreviewRow]:
        rows = [PreviewRow([anchor]) for anchor in documents(batch["anchor"], "anchor")]
        for number, text in enumerate(documents(batch["candidates"])):
            negative = number // len(rows)
            text.name = f"negative {negative}" if negative else "positive"
            rows[number % len(rows)].texts.append(text)
        add_facts(rows, batch, without=("anchor_ids", "candidate_ids"))
        return without_fillers(rows, batch["row_weights"])

    def _pad(self, texts: Sequence[Tokens]) -> dict[str, torch.Tensor]:
        ids, mask = pad_rows(texts, get_pad_token_id(self.tokenizer), multiple=self.config.div_length)
        return {"input_ids": ids, "attention_mask": mask}


def _hash(tokens: Tokens) -> int:
    """Returns 64 bits that are equal for equal tokens."""
    digest = hashlib.blake2b(np.ascontiguousarray(tokens).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _encode_texts(
    tokenizer: "PreTrainedTokenizerBase",
    options: dict[str, Any],
    prompts: tuple[str, str],
    rows: list[list[str]],
    first: int,
) -> Columns:
    """Returns ``input_ids`` of the anchors and ``candidate_<n>_input_ids``, of which the positive is number 0."""
    columns = {}
    for number, texts in enumerate(zip(*rows, strict=True)):
        prompt = prompts[min(number, 1)]
        ids = tokenizer([prompt + text for text in texts], return_attention_mask=False, **options)["input_ids"]
        if longest := sum(len(tokens) == options["max_length"] for tokens in ids):
            remark("has texts of max_length tokens or more, which are truncated")
            count(TRUNCATED, f"texts of max_length = {options['max_length']} tokens or more", longest)
        name = f"candidate_{number - 1:03}_input_ids" if number else "input_ids"
        columns[name] = [np.array(tokens, np.int32) for tokens in ids]
    return columns
