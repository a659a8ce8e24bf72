"""Instances: a function of seed, split and number, and never in two splits."""

import hashlib
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from arctic_training import ProblemGenerator
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.component import parse_component
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.data.sources.generator import GeneratorSource
from arctic_training.errors.types import DataError
from arctic_training.symbolic.generator import instance_seed
from arctic_training.symbolic.instances import Counts, Instance
from arctic_training.symbolic.statistics import InstanceStatistics
from tests.data import templates
from tests.data.view import make


def source(**keys: Any) -> GeneratorSource:
    section = {"type": "generator", "task": "cumulative_sums", "count": 300, **keys}
    return GeneratorSource(None, parse_component("data_source", section))  # type: ignore[arg-type]


def problems(split: str, **keys: Any) -> list[str]:
    return [row["problem"] for row in source(**keys)(split)]


def test_a_seed_is_a_hash_of_seed_split_and_number() -> None:
    digest = hashlib.blake2b(b"3\0train\x0017", digest_size=8).hexdigest()
    assert instance_seed(3, "train", 17) == int(digest, 16)
    assert len({instance_seed(*one) for one in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1", 1)]}) == 5


def test_problems_are_generated_once_and_then_read_from_the_cache(tmp_path: Path) -> None:
    """What changes them is the section and the split, not what the run does with them."""

    class Counting(ProblemGenerator[ComponentConfig]):
        name = "counting_of_the_tests"
        calls = 0

        def __call__(self, seed: int) -> tuple[str, str]:
            type(self).calls += 1
            return f"{seed % 1000} + 1", str(seed % 1000 + 1)

    folder = {"cache_dir": str(tmp_path / "cache")}

    def start(**keys: Any) -> int:
        Counting.calls = 0
        section = {"type": "generator", "task": Counting.name, "count": 20, **keys}
        factory = make(SFTDataFactory, templates.byte_level(templates.CHATML), {"sources": [section], **folder})
        assert len(factory().train.dataset) == 20
        return Counting.calls

    assert start() >= 20
    assert start() == 0
    assert start(seed=1) >= 20
    assert start(split="eval") >= 20
    assert start(sample_seed=5) >= 20 and start(sample_seed=5) == 0


def test_an_instance_does_not_depend_on_those_before_it() -> None:
    one = source()
    together = one.generate("train", range(40), measured=False)
    assert [one.generate("train", [number], measured=False)[0] for number in range(39, 30, -1)] == together[:30:-1]
    assert problems("train")[:50] == problems("train", count=50)


@pytest.mark.parametrize("task", ["cumulative_sums", "polynomial_addition", "integer_factorization"])
def test_no_problem_is_both_trained_on_and_held_out(task: str) -> None:
    first, second, held = (
        set(problems(split, task=task, seed=seed)) for split, seed in (("train", 0), ("train", 1), ("eval", 2))
    )
    assert len(first) == len(second) == len(held) == 300
    assert not (first | second) & held and first != second


def test_the_held_out_share_is_that_of_the_recipe() -> None:
    """Of the 81 problems each is in one split: all are found, and none twice."""
    tiny = {"task": {"type": "cumulative_sums", "modulus": 3, "length": 4}, "held_out": 0.5}
    counts = dict.fromkeys(("train", "eval"), 0)
    for split in counts:
        with pytest.raises(DataError, match=r"cumulative_sums: only (\d+) different problems of") as caught:
            problems(split, **tiny, count=82)
        counts[split] = int(str(caught.value).split("only ")[1].split()[0])
    assert sum(counts.values()) == 81 and 25 < counts["train"] < 56
    assert len(set(problems("train", **tiny, count=counts["train"]))) == counts["train"]


def test_what_is_not_kept_is_counted() -> None:
    one, counts = source(task={"type": "cumulative_sums", "modulus": 3, "length": 4}, count=30), Counts()
    kept = [instance.problem for instance in one.instances(one.batches("train", measured=False), "train", counts)]
    every = [one.generate("train", [number], measured=False)[0].problem for number in range(counts.generated)]
    assert every[-1] == kept[-1] and list(dict.fromkeys(p for p in every if p in kept)) == kept
    assert counts.instances == 30 and counts.repeated == sum(Counter(every)[p] - 1 for p in kept)
    assert counts.of_other_splits == counts.generated - counts.repeated - 30 == sum(p not in kept for p in every)


class Odd(ProblemGenerator[ComponentConfig]):
    """Fails for some seeds."""

    name = "odd_of_the_tests"

    def __call__(self, seed: int) -> Any:
        return ("1", 1) if seed % 2 else ("1", str(1 // (seed % 4)))


def test_a_generator_that_fails_is_named_with_its_seed() -> None:
    seeds = [instance_seed(0, "train", number) for number in range(20)]
    odd, zero = (next(n for n, seed in enumerate(seeds) if seed % 4 in rests) for rests in ((1, 3), (0,)))
    one = source(task="odd_of_the_tests")
    where = rf"^the generator odd_of_the_tests at seed \d+ \(instance {odd} of train\) returned \('1', 1\); expected a"
    with pytest.raises(DataError, match=where):
        one.generate("train", [odd], measured=False)
    with pytest.raises(DataError, match=rf"\(instance {zero} of train\) fails:\n.*ZeroDivisionError"):
        one.generate("train", [zero], measured=False)


def test_statistics_are_those_of_numpy() -> None:
    import numpy as np

    statistics = InstanceStatistics()
    instances = islice(source().batches("train", measured=True), 2)
    texts = [(one.problem, one.answer) for batch in instances for one in batch]
    for n, (problem, answer) in enumerate(texts):
        statistics.add(Instance(problem, answer, {"number": n}))
    values: dict[str, Any] = statistics.as_dict()
    lengths = np.array([len(problem) for problem, _ in texts])
    expected = {"mean": lengths.mean(), "std": lengths.std(), "min": lengths.min(), "max": lengths.max()}
    assert values["problem_characters"] == pytest.approx(expected, abs=1e-6)
    assert values["answer_words"] == {"mean": 4, "std": 0, "min": 4, "max": 4}
    assert values["number"]["max"] == len(texts) - 1
    assert values["different_answers"] == len({answer for _, answer in texts})
