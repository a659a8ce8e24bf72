"""The instances of a split: all different, and none of another split."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError
from arctic_training.errors.user_traceback import user_traceback
from arctic_training.symbolic.generator import ProblemGenerator, instance_seed

CHUNK = 128
"""Instances that are generated at once."""
TRAIN = "train"
"""The split to train on; every other one is held out."""
_MOST_IN_VAIN = 10_000
"""Instances in a row of which none is new, after which there are no more to be expected."""


@dataclass(frozen=True)
class Instance:
    """A problem and its answer."""

    problem: str
    answer: str
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Counts:
    """The numbers of instances that a selection has seen."""

    instances: int = 0
    """Those that were kept."""
    generated: int = 0
    repeated: int = 0
    """Those whose problem was kept already."""
    of_other_splits: int = 0


def generate(
    generator: ProblemGenerator[ComponentConfig], seed: int, split: str, numbers: Iterable[int], *, measured: bool
) -> list[Instance]:
    """Returns the instances ``numbers`` of ``split``. Raises `DataError` for one that fails or is not two texts."""
    instances = []
    for number in numbers:
        own = instance_seed(seed, split, number)
        where = f"the generator {generator.name} at seed {own} (instance {number} of {split})"
        try:
            instance = generator(own)
            if not _is_instance(instance):
                raise DataError(f"{where} returned {short_repr(instance)}; expected a problem and an answer, two texts")
            measures = dict(generator.measures(*instance)) if measured else {}
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{where} fails:\n{user_traceback(error) or repr(error)}") from error
        instances.append(Instance(*instance, measures))
    return instances


def select(
    batches: Iterable[Sequence[Instance]], counts: Counts, *, split: str, count: int, held_out: float
) -> Iterator[Instance]:
    """Yields the first ``count`` different instances of ``batches`` that belong to ``split``, and counts all of them.

    A problem belongs to the evaluation splits where a hash of its text, as a fraction of 1, is below ``held_out``, and
    else to `TRAIN`: so that no seed mixes them. Raises `DataError` where there are too few different problems.
    """
    kept: set[bytes] = set()
    most_in_vain = max(_MOST_IN_VAIN, round(50 / (1 - held_out if split == TRAIN else held_out)))
    in_vain = 0
    for instance in (instance for batch in batches for instance in batch):
        counts.generated += 1
        in_vain += 1
        digest = hashlib.blake2b(instance.problem.encode(), digest_size=16).digest()
        is_held_out = int.from_bytes(digest[:8], "big") < held_out * 2**64
        if is_held_out == (split == TRAIN):
            counts.of_other_splits += 1
        elif digest in kept:
            counts.repeated += 1
        else:
            kept.add(digest)
            counts.instances += 1
            in_vain = 0
            yield instance
            if counts.instances == count:
                return
        if in_vain == most_in_vain:
            raise DataError(
                f"only {counts.instances:,} different problems of {split} are among {counts.generated:,} instances, "
                f"and none among the last {in_vain:,}; count is {count:,}: lower it, or make the problems larger"
            )


def _is_instance(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(one, str) and one.strip() for one in value)
