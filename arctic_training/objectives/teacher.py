"""The teacher of a distillation: a model that is run beside the student, or what it predicted before training."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arctic_training.engine.engine import Engine
from arctic_training.loss.divergence import Divergence, divergences, top_k_divergences, top_k_log_probs
from arctic_training.loss.output_layer import rows_per_chunk
from arctic_training.model.target_outputs import TargetOutputs, at_targets

IDS, LOG_PROBS = "teacher_ids", "teacher_logps"
"""Keys of a batch with what a teacher predicted: its most likely tokens at each label, int32 ``[labels, k]``, and their
log-probabilities in nats, fp32 ``[labels, k + 1]``, the last one that of all other tokens together; ``[labels, k]``
where there are no others. The labels of a sample follow those of the sample before it."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of a student with its teacher: the arguments of `divergences`."""

    kind: Divergence
    temperature: float
    mixture: float


class Teacher(ABC):
    """Predictions that a student learns from, at the labels of a batch."""

    hidden: Tensor | None = None
    """What the output layer of the teacher receives at the labels, ``[labels, width]``, where it is known."""

    @abstractmethod
    def divergences(self, logits: Tensor, rows: slice) -> Tensor:
        """Returns the divergences ``[n]`` of the student's logits ``[n, vocabulary]`` at the labels ``rows``."""

    def in_memory(self) -> AbstractContextManager[None]:
        """Returns the block inside which `divergences` is called. All ranks enter it together."""
        return nullcontext()


class LiveTeacher(Teacher):
    """A teacher that is run on each batch."""

    @torch.no_grad()
    def __init__(self, engine: Engine, batch: Mapping[str, Any], comparison: Comparison) -> None:
        self._comparison, kept = comparison, list[TargetOutputs]()

        def keep(outputs: TargetOutputs) -> Tensor:
            kept.append(outputs)
            return torch.zeros((), device=outputs.ids.device)

        at_targets(engine, batch, keep)
        self._outputs = kept[0]
        self.hidden = self._outputs.hidden

    def divergences(self, logits: Tensor, rows: slice) -> Tensor:
        with torch.no_grad():
            target_logits = self._outputs.logits(rows)
        return divergences(logits, target_logits, **vars(self._comparison))

    def in_memory(self) -> AbstractContextManager[None]:
        return self._outputs.weights_in_memory()


class StoredTeacher(Teacher):
    """Predictions that a teacher made before training: its most likely tokens at each label of a batch."""

    def __init__(self, batch: Mapping[str, Any], comparison: Comparison) -> None:
        self._ids, self._log_probs, self._comparison = batch[IDS], batch[LOG_PROBS], comparison

    def divergences(self, logits: Tensor, rows: slice) -> Tensor:
        ids, log_probs = self._ids[rows].long(), self._log_probs[rows]
        return top_k_divergences(logits, ids, log_probs, **vars(self._comparison))


def predictions(engine: Engine, batch: Mapping[str, Any], k: int, temperature: float) -> dict[str, Tensor]:
    """Returns what the model of ``engine`` predicts at the labels of a batch, at a temperature, by `IDS`, int32
    ``[labels, k]``, and `LOG_PROBS`, fp32 ``[labels, k + 1]`` or ``[labels, vocabulary]``."""
    parts: list[tuple[Tensor, Tensor]] = []

    def keep(outputs: TargetOutputs) -> Tensor:
        labels = len(outputs.ids)
        vocabulary = outputs.logits(slice(0, 0)).shape[-1]
        step = rows_per_chunk(outputs.ids.device.type, vocabulary)
        for start in range(0, max(labels, 1), step):
            logits = outputs.logits(slice(start, start + step))
            parts.append(top_k_log_probs(logits, k, temperature=temperature))
        return torch.zeros((), device=outputs.ids.device)

    at_targets(engine, batch, keep)
    ids, log_probs = (torch.cat(some) for some in zip(*parts, strict=True))
    return {IDS: ids.int(), LOG_PROBS: log_probs}
