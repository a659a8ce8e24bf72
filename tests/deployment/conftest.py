"""The two runs that the tests of this room share: full weights with an average of them, and LoRA."""

import pytest

from tests.deployment.runs import TrainedRun, train


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("full")
    return train(folder, lora=False, callbacks=[{"type": "ema", "decay": 0.5}])


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return train(tmp_path_factory.mktemp("lora"), lora=True)
