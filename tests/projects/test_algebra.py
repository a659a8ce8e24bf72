"""The projects of symbolic tasks: every word of their problems is in the vocabulary, and no row is too long."""

from pathlib import Path

import pytest

from arctic_training import get_config
from arctic_training.registry import lookup
from arctic_training.trainer.assembly import prepared_data
from tests.processes import ROOT


@pytest.mark.parametrize("name", ["sums", "addition", "start"])
def test_every_problem_can_be_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    small = ["data.sources.count=2k", "data.eval_sources.count=200", f"data.cache_dir={tmp_path}"]
    config = get_config(f"projects/algebra/{name}.yaml", small)
    with prepared_data(lookup("trainer", config.type), config) as (_, loaders):
        assert len(loaders.train.dataset) == 2000 and len(loaders.evaluation["eval"].dataset) == 200
