"""The base of data factories for language models: samples of tokens are truncated or dropped, padded or packed."""

import zlib
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.data.batching import collate
from arctic_training.data.batching.chunking import SampleSlices, concat_and_chunk, truncate
from arctic_training.data.batching.loader import Batch
from arctic_training.data.batching.packing import best_fit, repeated
from arctic_training.data.factories.config import TokenDataConfig
from arctic_training.data.factories.sourced import SourcedDataFactory
from arctic_training.data.formats import remarks
from arctic_training.data.formats.row_error import NothingLeft
from arctic_training.data.preparation.samples import Indices, Sample, Samples, TokenSamples
from arctic_training.errors.types import DataError
from arctic_training.generation.special_tokens import get_pad_token_id
from arctic_training.logging import logger
from arctic_training.loss.targets import IGNORE_INDEX

C = TypeVar("C", bound=TokenDataConfig)


class TokenDataFactory(SourcedDataFactory[C]):
    """Base for samples with ``input_ids`` and, where not every token has a label, ``labels``.

    A batch is that of `arctic_training.data.batching.collate.pad`, or of `pack` with ``pack_samples``.
    """

    config_type: ClassVar[type[ComponentConfig]] = TokenDataConfig
    counts = "labels"
    not_in_cache_key = SourcedDataFactory.not_in_cache_key | {
        "max_length",
        "pack_samples",
        "filter_samples",
        "pad_to",
        "div_length",
        "always_max_length",
        "repeat_to_pack_max_length",
        "fuse_positions_prob",
        "stream_buffer",
    }
    _has_warned = False

    @property
    def rows(self) -> int:
        return 1 if self.config.pack_samples else self.trainer.config.micro_batch_size

    @property
    def capacity(self) -> int:
        """Tokens in a packed row."""
        return self.max_length * self.trainer.config.micro_batch_size

    def postprocess_samples(self, samples: Samples) -> TokenSamples:
        """Drops or truncates samples longer than ``max_length``, and logs how many. Raises `NothingLeft`."""
        lengths = samples.lengths()
        too_long = lengths > self.max_length
        if not (count := int(too_long.sum())):
            return self._fill_rows(samples)
        action = remarks.DROPPED if self.config.filter_samples else remarks.TRUNCATED
        why = f"{count} of {len(lengths)} samples are longer than max_length = {self.max_length} tokens"
        if count == len(lengths) and self.config.filter_samples:
            raise NothingLeft(
                f"data.max_length: {why}, the shortest {lengths.min()}: nothing is left; raise it, or truncate them "
                "with filter_samples: false"
            )
        remarks.count(action, f"samples longer than max_length = {self.max_length}", count)
        logger.log("INFO" if self._has_warned else "WARNING", f"{why}, and {action}")
        self._has_warned = True
        if self.config.filter_samples:
            return self._fill_rows(samples.select(np.flatnonzero(~too_long)))
        return self._fill_rows(self._drop_empty(truncate(samples, self.max_length), np.flatnonzero(too_long)))

    def _drop_empty(self, samples: SampleSlices, truncated: Indices) -> SampleSlices:
        """Drops ``truncated`` samples that have no label left. Raises `DataError` for too many."""
        if not len(truncated) or "labels" not in samples[0]:
            return samples
        empty = [int(n) for n in truncated if (samples[int(n)]["labels"] == IGNORE_INDEX).all()]
        if not empty:
            return samples
        why = f"{len(empty)} of {len(samples)} samples have no target token within max_length = {self.max_length}"
        if len(empty) == len(samples):
            raise NothingLeft(f"data.max_length: {why}; nothing is left to train on")
        if len(empty) > self.config.max_share_without_targets * len(samples) and not self.config.endless:
            share = self.config.max_share_without_targets
            raise DataError(f"data.max_length: {why}; more than data.max_share_without_targets = {share:g} allows")
        remarks.count(remarks.DROPPED, f"no target token within max_length = {self.max_length}", len(empty))
        logger.warning(f"{why}, and are dropped")
        return samples.select(np.delete(np.arange(len(samples)), empty))

    def _fill_rows(self, samples: TokenSamples) -> TokenSamples:
        """Cuts samples so that every row has ``capacity`` tokens, with ``always_max_length``."""
        if not self.config.always_max_length:
            return samples
        order = np.random.Generator(np.random.PCG64(self.config.seed)).permutation(len(samples))
        slices, rows = concat_and_chunk(samples, self.capacity, order, drop_last=self.config.drop_last)
        slices.rows = rows
        return slices

    def group(self, samples: Any) -> Sequence[Indices] | None:
        if not self.config.pack_samples:
            return None
        if isinstance(samples, SampleSlices) and samples.rows is not None:
            return samples.rows
        packs = best_fit(samples.lengths(), self.capacity)
        if self.config.repeat_to_pack_max_length:
            packs = repeated(packs, samples.lengths(), self.capacity)
        fill = int(samples.lengths()[packs.members].sum()) / (len(packs) * self.capacity)
        logger.info(f"{len(samples)} samples in {len(packs)} rows of {self.capacity} tokens, {fill:.2%} filled")
        return packs

    def collate(self, samples: list[Sample]) -> Batch:
        """Returns the batch of `arctic_training.data.batching.collate.pad` or `pack`."""
        config = self.config
        samples = [sample if "labels" in sample else {**sample, "labels": sample["input_ids"]} for sample in samples]
        options: dict[str, Any] = {"pad_token": self.pad_token}
        if config.pad_to == "max_length":
            options["length"] = self.capacity if config.pack_samples else self.max_length
        else:
            options["multiple"] = config.div_length or (256 if config.pack_samples else 8)
        if not config.pack_samples:
            return collate.pad(samples, positions=self.max_length, **options)
        return collate.pack(samples, fuse=self._fused(samples[0]), **options)

    def make_padding_sample(self, sample: Sample) -> Sample:
        return super().make_padding_sample({"labels": sample["input_ids"], **sample})

    @property
    def pad_token(self) -> int:
        """The token id of padding: the tokenizer's, else its end token, else 0."""
        return get_pad_token_id(self.tokenizer)

    def _fused(self, sample: Sample) -> bool:
        """Returns whether a row is one document. Its tokens decide, not when, where or in which epoch it is read."""
        probability = self.config.fuse_positions_prob
        return probability > 0 and zlib.crc32(sample["input_ids"].tobytes(), self.config.seed) / 2**32 < probability
