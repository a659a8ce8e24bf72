"""Shakespeare's plays by their characters: the data, the references, and that a model learns them."""

import math
import runpy
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from arctic_training import get_config
from arctic_training.registry import lookup

PROJECT = Path(__file__).parents[2] / "projects" / "shakespeare"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "recipe.yaml")
    return sys.modules[lookup("data_source", "shakespeare").__module__]


@pytest.fixture(scope="module")
def references(project: ModuleType) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "train", project)
        return runpy.run_path(str(PROJECT / "references.py"))


def test_plays_are_text_and_each_is_trained_on_or_held_out(project: ModuleType) -> None:
    trained, held = project.plays("train"), project.plays("eval")
    assert len(trained) == 36 and set(held) == {"macbeth", "twelfth-night"} and not trained.keys() & held.keys()
    assert "When shall we three meet again\nIn thunder, lightning, or in rain?" in held["macbeth"]
    text = "".join(trained.values())
    assert not set("*_\\#") & set(text) and " \n" not in text


def test_a_token_is_a_character(project: ModuleType) -> None:
    tokenizer = project.CharacterTokenizerFactory(None, None).create_tokenizer()
    text = project.plays("eval")["macbeth"][:3000]
    assert text.isascii() and len(tokenizer(text).input_ids) == len(text)
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) == 257


def kneser_ney(text: str, context: str, symbol: str, vocabulary: int, discounts: list[float]) -> float:
    """The probability of ``symbol`` after ``context`` by the formula of Chen and Goodman, one count at a time."""
    highest = len(discounts) - 1

    def count(gram: str) -> int:
        if len(gram) == highest + 1:
            return sum(text.startswith(gram, at) for at in range(len(text)))
        return len({text[at - 1] for at in range(1, len(text)) if text.startswith(gram, at)})

    def probability(history: str) -> float:
        lower = probability(history[1:]) if history else 1 / vocabulary
        counts = {one: count(history + one) for one in set(text)}
        total, kinds = sum(counts.values()), sum(map(bool, counts.values()))
        if not total:
            return lower
        discount = discounts[len(history)]
        return (max(counts.get(symbol, 0) - discount, 0) + discount * kinds * lower) / total

    return probability(context)


def test_the_ngram_is_that_of_the_formula(references: dict[str, Any]) -> None:
    trained, held = "abracadabra abracadabra barbara", "cabra barb"
    grams = [Counter(trained[at : at + size] for at in range(len(trained) - size + 1)) for size in range(4)]
    discounts = []
    for size in (1, 2, 3):
        counts = grams[3] if size == 3 else Counter(gram[1:] for gram in grams[size + 1])
        once, twice = (sum(one == number for one in counts.values()) for number in (1, 2))
        discounts.append(once / (once + 2 * twice) if once and twice else 0.5)
    expected = [
        -math.log2(kneser_ney(trained, held[at - 2 : at], held[at], 256, discounts)) for at in range(2, len(held))
    ]
    texts = [np.frombuffer(text.encode(), np.uint8).astype(np.int64) for text in (trained, held)]
    assert references["ngram_bits"](*texts, 3) == pytest.approx(np.mean(expected), rel=1e-9)


def test_xz_pays_for_what_is_new_only(references: dict[str, Any]) -> None:
    random = np.random.default_rng(0).integers(0, 256, 20_000).astype(np.uint8).tobytes()
    assert references["xz_bits"](random, random) < 0.2
    assert 7.9 < references["xz_bits"](random[:10_000], random[10_000:]) < 8.2


def trained_on(run: Path, *overrides: str) -> tuple[list[float], dict[str, float]]:
    """Returns the losses that a run logs, and its last evaluation."""
    config = get_config(PROJECT / "recipe.yaml", [f"output_dir={run}", "loss_log_interval=0", *overrides])
    trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    losses: list[float] = []
    evaluations: list[dict[str, float]] = [{}]
    trainer.listen("post-log", lambda _, values: losses.append(values["loss"]))
    trainer.listen("post-evaluate", lambda _, values: evaluations.append(values))
    trainer.train()
    trainer.close()
    return losses, evaluations[-1]


def test_a_short_run_learns_more_than_frequencies(project: ModuleType, tmp_path: Path) -> None:
    short = [
        "data.max_length=64",
        "data.eval_sources=[]",
        "eval_interval=0",
        "train_iters=80",
        "checkpoint=[]",
        "scheduler.warmup_steps=10",
    ]
    losses, _ = trained_on(tmp_path / "run", f"data.cache_dir={tmp_path}", *short)
    assert losses[-1] / math.log(2) < 4.6 < losses[0] / math.log(2)
