"""Mismatched completions: each prompt with the completion of another sample, for the KL estimate of KTO."""

import numpy as np

from arctic_training.data.preparation.samples import Indices, Sample, SampleList
from arctic_training.data.tokenization.tokenize import Tokens
from arctic_training.loss.targets import IGNORE_INDEX


class MismatchedCompletions:
    """Samples with ``mismatched_input_ids`` and ``mismatched_labels``: their prompt, and another's completion.

    The other one is the next on a cycle through all samples, drawn by ``seed``: it depends neither on the epoch nor on
    how rows are split into batches. A single sample has no other, and its mismatched completion no labels.
    """

    def __init__(self, samples: SampleList, *, seed: int, max_length: int) -> None:
        self.samples, self.max_length = samples, max_length
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(samples))
        self.others: Indices = np.empty_like(order)
        """The index of the sample whose completion each one gets, int64 ``[samples]``."""
        self.others[order] = np.roll(order, -1)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample, number = self.samples[index], int(self.others[index])
        prompt, _ = _split(sample)
        ids, labels = prompt, np.full_like(prompt, IGNORE_INDEX)
        if number != index:
            other = self.samples[number]
            start, completion = len(_split(other)[0]), _split(other)[1]
            ids = np.concatenate([prompt, completion])[: self.max_length]
            labels = np.concatenate([labels, other["labels"][start : start + len(completion)]])[: self.max_length]
        return {**sample, "mismatched_input_ids": ids, "mismatched_labels": labels}


def _split(sample: Sample) -> tuple[Tokens, Tokens]:
    """Returns the token ids of a sample before its first label, and those up to its last."""
    targets = np.flatnonzero(sample["labels"] != IGNORE_INDEX)
    start, end = (int(targets[0]), int(targets[-1]) + 1) if len(targets) else (len(sample["labels"]),) * 2
    return sample["input_ids"][:start], sample["input_ids"][start:end]
