"""Statistics of the instances of a split."""

import hashlib
import math

from arctic_training.symbolic.instances import Instance


class Moments:
    """Mean, standard deviation, least and greatest of numbers."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0
        self.least, self.greatest = math.inf, -math.inf

    def add(self, value: float) -> None:
        """Adds a number."""
        self.count += 1
        self.total += value
        self.squares += value * value
        self.least, self.greatest = min(self.least, value), max(self.greatest, value)

    def as_dict(self) -> dict[str, float]:
        """Returns ``mean``, ``std`` of the numbers themselves, ``min`` and ``max``; at least one has been added."""
        mean = self.total / self.count
        std = math.sqrt(max(self.squares / self.count - mean * mean, 0.0))
        return {"mean": round(mean, 6), "std": round(std, 6), "min": self.least, "max": self.greatest}


class InstanceStatistics:
    """The lengths of problems and answers, in characters and words, different answers, and the generator's measures."""

    def __init__(self) -> None:
        self.moments: dict[str, Moments] = {}
        self._answers: set[bytes] = set()

    def add(self, instance: Instance) -> None:
        """Adds an instance."""
        self._answers.add(hashlib.blake2b(instance.answer.encode(), digest_size=16).digest())
        numbers: dict[str, float] = {}
        for name, text in (("problem", instance.problem), ("answer", instance.answer)):
            numbers |= {f"{name}_characters": len(text), f"{name}_words": len(text.split())}
        for name, value in {**numbers, **instance.measures}.items():
            self.moments.setdefault(name, Moments()).add(value)

    def as_dict(self) -> dict[str, object]:
        """Returns ``different_answers`` and the moments of every number, by its name."""
        moments = {name: one.as_dict() for name, one in self.moments.items()}
        return {"different_answers": len(self._answers), **moments}
