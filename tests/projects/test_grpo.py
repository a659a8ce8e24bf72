"""Running sums by a model's own answers: the data are what they say, and both figures rise."""

import sys
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from arctic_training import get_config
from arctic_training.registry import lookup

PROJECT = Path(__file__).parents[2] / "projects" / "grpo"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "start.yaml")
    return sys.modules[lookup("data_source", "running_sums").__module__]


def test_problems_are_answered_right_and_never_both_trained_on_and_held_out(project: ModuleType) -> None:
    trained, held = (list(islice(project.problems(split, 0), 500)) for split in ("train", "eval"))
    assert not {row["problem"] for row in trained} & {row["problem"] for row in held}
    assert len({row["problem"] for row in trained}) == 500
    for row in trained + held:
        numbers = [int(word) for word in row["problem"].split()]
        assert row["answer"] == " ".join(str(sum(numbers[: n + 1]) % 17) for n in range(4))


def run(recipe: str, *overrides: str) -> list[dict[str, float]]:
    config = get_config(PROJECT / recipe, ["loss_log_interval=0", *overrides])
    trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    evaluations: list[dict[str, float]] = []
    trainer.listen("post-evaluate", lambda _, values: evaluations.append(values))
    trainer.train()
    trainer.close()
    return evaluations


@pytest.mark.nightly
def test_both_figures_rise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = tmp_path / "start"
    evaluations = run("start.yaml", f"output_dir={tmp_path / 'run'}", f"checkpoint.output_dir={start}")
    assert evaluations[-1]["exact_match/eval"] >= 0.9
    before, after = run("recipe.yaml", f"output_dir={tmp_path / 'grpo'}", f"model.name_or_path={start / 'model'}")
    assert before["reward/exact_match/eval"] < 0.8, "there is nothing to gain"
    assert after["reward/exact_match/eval"] >= before["reward/exact_match/eval"] + 0.10
    assert after["exact_match/eval"] >= 0.95
    assert f"sampled answers that are right after: {after['reward/exact_match/eval']:.1%}" in capsys.readouterr().out
