"""Preferences on sums modulo 17: the data are what they say, and both figures rise."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from arctic_training import get_config
from arctic_training.registry import lookup

PROJECT = Path(__file__).parents[2] / "projects" / "dpo"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "start.yaml")
    return sys.modules[lookup("data_source", "sums").__module__]


def test_questions_are_answered_right_and_never_both_trained_on_and_held_out(project: ModuleType) -> None:
    trained, held = project.take(500, "train"), project.take(500, "eval", seed=1)
    assert not {question for question, _ in trained} & {question for question, _ in held}
    assert len({question for question, _ in trained}) == 500
    for question, answer in trained + held:
        numbers = [int(word) for word in question.removesuffix(" =").split()]
        assert answer == " " + " ".join(str(sum(numbers[: n + 1]) % 17) for n in range(4))
    assert project.take(500, "train") == trained


def run(recipe: str, *overrides: str) -> tuple[Any, list[dict[str, float]]]:
    config = get_config(PROJECT / recipe, ["loss_log_interval=0", *overrides])
    trainer = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    evaluations: list[dict[str, float]] = []
    trainer.listen("post-evaluate", lambda _, values: evaluations.append(values))  # type: ignore[attr-defined]
    trainer.train()  # type: ignore[attr-defined]
    trainer.close()  # type: ignore[attr-defined]
    return trainer, evaluations


@pytest.mark.nightly
def test_both_figures_rise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = tmp_path / "start"
    _, evaluations = run("start.yaml", f"output_dir={tmp_path / 'run'}", f"checkpoint.output_dir={start}")
    assert evaluations[-1]["success"] >= 0.8
    _, evaluations = run("recipe.yaml", f"output_dir={tmp_path / 'dpo'}", f"model.name_or_path={start / 'model'}")
    before, after = evaluations
    assert 0.6 <= before["success"] < 0.99, "there is nothing to gain"
    assert after["accuracy/eval"] >= 0.9
    assert after["success"] >= before["success"]
    assert f"success after: {after['success']:.1%}" in capsys.readouterr().out
