"""The source of order 2: the text is what the table says, and a model comes close to the source."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from arctic_training import get_config
from arctic_training.registry import lookup

PROJECT = Path(__file__).parents[2] / "projects" / "markov"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "recipe.yaml")
    return sys.modules[lookup("data_source", "markov").__module__]


def test_the_text_follows_the_table(project: ModuleType) -> None:
    text, table = project.sample(200_000, seed=5), project.table()
    assert table.shape == (8, 8, 8) and np.allclose(table.sum(-1), 1)
    counts = np.zeros_like(table)
    np.add.at(counts, (text[:-2], text[1:-1], text[2:]), 1)
    often = counts.sum(-1) > 2000
    shares = counts[often] / counts[often].sum(-1, keepdims=True)
    assert often.sum() > 20 and np.abs(shares - table[often]).max() < 0.04
    assert not np.array_equal(project.sample(100, seed=0), project.sample(100, seed=1))


def test_the_references_are_in_order(project: ModuleType) -> None:
    text, counted = project.sample(50_000, seed=2), project.sample(200_000, seed=0)
    source, bigram, unigram = (
        project.losses(text, 2),
        project.losses(text, 1, counted),
        project.losses(text, 0, counted),
    )
    assert source + 0.3 < bigram < unigram - 0.1 < np.log(8)
    # a count of all pairs and triples of the text itself cannot do worse than the source on it
    assert project.losses(text, 1, text) <= bigram
