"""Preference data: two answers to each prompt, the first preferred."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.numbers import HumanInt
from arctic_training.data.batching.collate import pack, pad
from arctic_training.data.factories.config import SourcedDataConfig
from arctic_training.data.factories.sourced import SourcedDataFactory
from arctic_training.data.formats import preference
from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.row_error import read_rows
from arctic_training.data.preparation.prepare import map_rows, token_table
from arctic_training.data.tokenization.assistant_mask import Found
from arctic_training.data.tokenization.encoder import SampleEncoder, last_turns
from arctic_training.generation.special_tokens import get_pad_token_id
from arctic_training.loss.targets import IGNORE_INDEX

Tokens = npt.NDArray[np.int32]


class DPODataConfig(SourcedDataConfig):
    max_prompt_length: HumanInt = Field(default=4096, ge=1)
    """Tokens of the longest prompt; longer ones are cut. Answers are cut where ``max_length`` ends."""
    dpo_prompt_truncation_mode: Literal["keep_start", "keep_end"] = "keep_start"
    """Which part of a prompt that is too long is kept."""
    pack_samples: bool = True
    """Put the answers of a micro-batch into one row, each a document that does not see the others; else side by side,
    padded. Both give the same numbers; padding is for models whose layers know no documents."""
    div_length: HumanInt = Field(default=8, ge=1)
    """What the length of a row is a multiple of."""
    chat_template_kwargs: dict[str, Any] = {}
    """Handed to the chat template, such as ``{enable_thinking: false}``."""


class DPODataFactory(SourcedDataFactory[Any]):
    """Rows with ``chosen`` and ``rejected``: chats, or texts, with a ``prompt`` of their own or a common beginning.

    A sample is the preferred answer with its prompt, ``input_ids`` and ``labels``, and the other one,
    ``rejected_input_ids`` and ``rejected_labels``. A batch has all preferred answers first, then the others in the same
    order, as rows or as documents of one row; ``answer_lengths`` int64 [2 * pairs], the targets of each;
    ``pair_weights`` [pairs], 0 for a pair that only fills a batch; and ``answer_tokens``, the targets of the preferred
    answers that count.
    """

    name = "dpo"
    config_type: ClassVar[type[ComponentConfig]] = DPODataConfig
    not_in_cache_key = SourcedDataFactory.not_in_cache_key | {"pack_samples", "div_length"}
    once = ("pair_weights", "answer_tokens")

    @classmethod
    def packs(cls, config: Any) -> bool:
        return bool(config.pack_samples)

    def process(self, dataset: Any) -> Any:
        config = self.config
        encode = _Encode(
            SpanEncoder(
                self.tokenizer,
                tokenize_arguments=getattr(self.trainer.config.tokenizer, "tokenize_kwargs", None),
                template_arguments=config.chat_template_kwargs,
            ),
            dataset.column_names,
            Cut(self.max_length, config.max_prompt_length, config.dpo_prompt_truncation_mode),
        )
        return map_rows(dataset, encode, processes=config.num_proc, folder=self.cache_folder)

    def no_target(self, sample: Any) -> str:
        cut = len(sample["rejected_input_ids"]) == self.max_length
        if cut and (sample["rejected_labels"] == IGNORE_INDEX).all():
            return f"have a prompt that leaves no room for an answer in max_length = {self.max_length}"
        if cut and np.array_equal(sample["input_ids"], sample["rejected_input_ids"]):
            return f"have answers that are the same once cut at max_length = {self.max_length}"
        return "prefer nothing, chosen and rejected being the same, or empty"

    def make_padding_sample(self, sample: Any) -> Any:
        return {name: np.full_like(one, IGNORE_INDEX) if "labels" in name else one for name, one in sample.items()}

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        answers = [{name: sample[name] for name in ("input_ids", "labels")} for sample in samples]
        answers += [{name: sample[f"rejected_{name}"] for name in ("input_ids", "labels")} for sample in samples]
        lengths = np.array([np.count_nonzero(answer["labels"][1:] != IGNORE_INDEX) for answer in answers], np.int64)
        decided = np.minimum(*np.split(lengths, 2)) > 0
        place = pack if self.config.pack_samples else partial(pad, positions=self.max_length)
        batch = place(answers, pad_token=get_pad_token_id(self.tokenizer), multiple=self.config.div_length)
        return batch | {
            "answer_lengths": torch.from_numpy(lengths),
            "pair_weights": torch.from_numpy(decided.astype(np.float32)),
            "answer_tokens": int(lengths[: len(samples)][decided].sum()),
        }


class SpanEncoder(SampleEncoder):
    """Labels only the last of the assistant's turns: as many as ``answers`` says of each sample."""

    answers: Mapping[int, int] = {}

    def _turns(self, n: int, sample: Sample, found: Found) -> list[int]:
        """Raises `DataError` for one that the template does not enclose."""
        return last_turns(found, self.answers[n])


class Cut:
    """Shortens prompts and answers that are too long."""

    def __init__(self, max_length: int, max_prompt_length: int, mode: str) -> None:
        self.max_length, self.max_prompt_length, self.mode = max_length, max_prompt_length, mode

    def __call__(self, ids: Tokens, labels: Tokens) -> tuple[Tokens, Tokens]:
        """The prompt is what comes before the first target; what follows the last one is of no use."""
        targets = np.flatnonzero(labels != IGNORE_INDEX)
        if not len(targets):
            return ids[:1], labels[:1]
        start, end = int(targets[0]), int(targets[-1]) + 1
        kept = min(start, self.max_prompt_length)
        prompt = slice(0, kept) if self.mode == "keep_start" else slice(start - kept, start)
        whole = [np.concatenate([part[prompt], part[start:end]])[: self.max_length] for part in (ids, labels)]
        return whole[0], whole[1]


class _Encode:
    """Makes samples of up to 1,000 rows; pickled when several processes share the work."""

    def __init__(self, encoder: SpanEncoder, columns: Sequence[str], cut: Cut) -> None:
        preference.reader(columns)  # refuses what holds no preferences
        self.encoder, self.columns, self.cut = encoder, list(columns), cut

    def __call__(self, rows: list[dict[str, Any]], first: int) -> Any:
        pairs = read_rows(preference.reader(self.columns), rows, first)
        chosen = self._tokens([pair.chosen for pair in pairs], [pair.chosen_answers for pair in pairs], first)
        rejected = self._tokens([pair.rejected for pair in pairs], [pair.rejected_answers for pair in pairs], first)
        columns: dict[str, list[Tokens]] = {}
        for pair, better, worse in zip(pairs, chosen, rejected, strict=True):
            differ = not all(map(np.array_equal, better, worse))  # they may have done so where they are cut off
            usable = pair.decided and differ and (worse[1] != IGNORE_INDEX).any()
            labels = better[1] if usable else np.full_like(better[1], IGNORE_INDEX)  # counted, named and left out
            told = {
                "input_ids": better[0],
                "labels": labels,
                "rejected_input_ids": worse[0],
                "rejected_labels": worse[1],
            }
            for name, tokens in told.items():
                columns.setdefault(name, []).append(tokens)
        return token_table(columns)

    def _tokens(self, samples: list[Sample], answers: list[int], first: int) -> list[tuple[Tokens, Tokens]]:
        self.encoder.answers = dict(enumerate(answers))
        return [self.cut(ids, labels) for ids, labels in self.encoder(samples, first)]
