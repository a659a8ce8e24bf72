"""The source of order 2: the text is what the table says, and a model comes close to the source."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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


def trained(project: ModuleType, run: Path, **keys: Any) -> dict[str, float]:
    overrides = [f"output_dir={run}", "loss_log_interval=0", *(f"{key}={value}" for key, value in keys.items())]
    config = get_config(PROJECT / "recipe.yaml", overrides)
    trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    trainer.train()
    metrics: dict[str, float] = trainer.evaluate()
    trainer.close()
    return metrics


def test_a_short_run_knows_more_than_one_symbol_back(project: ModuleType, tmp_path: Path) -> None:
    metrics = trained(project, tmp_path, train_iters=120, **{"data.sources.count": "300k"})
    bigram = project.losses(project.sample(50_000, seed=2), 1, project.sample(200_000, seed=0))
    assert metrics["nats/source"] < metrics["nats"] < bigram - 0.1


@pytest.mark.nightly
def test_the_model_comes_close_to_the_source(project: ModuleType, tmp_path: Path) -> None:
    metrics = trained(project, tmp_path)
    assert metrics["excess"] <= 0.03, metrics
