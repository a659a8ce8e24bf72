"""Generators of problems and their answers: each instance is a function of its own seed."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import cast

from arctic_training.config.sections.base import C, ComponentConfig
from arctic_training.config.sections.component import Configured
from arctic_training.registry import lookup


class ProblemGenerator(Configured[C], ABC, kind="generator"):
    """Generates problems with their answers. A subclass with a ``name`` can be named in a recipe."""

    @abstractmethod
    def __call__(self, seed: int) -> tuple[str, str]:
        """Returns a problem and its answer, which depend on the config and on ``seed``, below 2^64, alone."""

    def measures(self, problem: str, answer: str) -> Mapping[str, float]:
        """Returns numbers that describe an instance, by name, for the statistics of `generate-data`."""
        return {}


def create_generator(config: ComponentConfig) -> ProblemGenerator[ComponentConfig]:
    """Returns the generator that reads ``config``."""
    return cast(type[ProblemGenerator[ComponentConfig]], lookup("generator", config.type))(config)


def instance_seed(seed: int, split: str, number: int) -> int:
    """Returns the seed of instance ``number`` of ``split``: 64 bits of a hash of all three."""
    digest = hashlib.blake2b(f"{seed}\0{split}\0{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
