"""What the tests share: one thread, no hub, no cache of the user's, and a tiny model on disk."""

import gc
import math
import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from arctic_training.display import watch
from arctic_training.errors import redaction
from arctic_training.logging import logger
from tests import lookups, tiny

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
lookups.remember()
pytest_plugins = ["tests.faults.matrix", "tests.slices"]

# properties are not timed: other processes may have the cores
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--examples", type=int, default=1, help="multiplies the examples of every property")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if unstable := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"{unstable[0]}: an address is part of the name; give ids that stay")
    functions = {item.function for item in items if isinstance(item, pytest.Function)}
    for function in functions:
        if own := getattr(function, "_hypothesis_internal_use_settings", None):  # a property's
            times = config.option.examples * own.max_examples
            function._hypothesis_internal_use_settings = settings(own, max_examples=times)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Refuses cases whose order differs from process to process, with which the tests could not be shared out."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        if len(mark.args) > 1 and isinstance(mark.args[1], set | frozenset):
            raise pytest.UsageError(f"{metafunc.definition.nodeid}: the cases are a set; sort them")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collects the tests without searching for garbage what is imported on the way, most of which stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def frozen_imports() -> None:
    """Takes what was imported before a module out of each later search for garbage, with which every run ends."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama and its tokenizer; not to be written to."""
    return tiny.save_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 24 chats."""
    return tiny.save_chats(tmp_path_factory.mktemp("chats") / "chats.jsonl")


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """The messages that the user sees: each line of the log from level SUCCESS."""
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(line.record["message"]), level="SUCCESS")
    yield lines
    logger.remove(sink)


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets the secrets of the test before."""
    monkeypatch.setattr(redaction, "_secrets", {})


@pytest.fixture(autouse=True)
def no_announcements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Announces nothing that takes long: on a busy machine anything may."""
    monkeypatch.setattr(watch, "_SILENCE", math.inf)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared data go to a folder of this test run."""
    cache = tmp_path_factory.mktemp("cache")
    os.environ["ARCTIC_TRAINING_CACHE"] = str(cache)
    yield cache
    del os.environ["ARCTIC_TRAINING_CACHE"]
