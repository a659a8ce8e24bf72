"""The figures of the projects reach their bounds: at a fraction of the length, and nightly at full length."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import ValidationError

from arctic_training import get_config
from tests.command import execute
from tests.processes import ROOT
from tests.tracked import tracked

PROJECTS = ROOT / "projects"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", PROJECTS / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["figures"] = module
    spec.loader.exec_module(module)
    return module


figures = load_script()
QUICK = [name for name in figures.names() if any(one.quick is not None for one in figures.read(name).figures)]


def run_forked(words: Sequence[str]) -> None:
    done = execute(ROOT, *words)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", QUICK)
def test_quick_figures(name: str, tmp_path: Path) -> None:
    measured = list(figures.measure(name, tmp_path, quick=True, execute=run_forked))
    assert len(measured) == sum(one.quick is not None for one in figures.read(name).figures)
    assert [str(one) for one in measured if not one.holds] == []


@pytest.mark.nightly
@pytest.mark.parametrize("name", figures.names())
def test_figures(name: str, tmp_path: Path) -> None:
    measured = list(figures.measure(name, tmp_path, quick=False))
    assert len(measured) == len(figures.read(name).figures)
    assert [str(one) for one in measured if not one.holds] == []


@pytest.mark.parametrize("name", figures.names())
def test_runs_and_figures_fit_together(name: str) -> None:
    project = figures.read(name)
    runs = {run.name or Path(run.recipe).stem: run for run in project.runs}
    assert len(runs) == len(project.runs)
    for figure in project.figures:
        assert str(figure.bound), "a bound that any value reaches"
        assert figure.quick is None or (str(figure.quick) and runs[figure.run].quick is not None)
    for run in runs.values():
        overrides = [one.format(runs="somewhere") for one in [*run.overrides, *(run.quick or [])]]
        get_config(PROJECTS / name / run.recipe, [one for one in overrides if "somewhere" not in one])


def test_every_project_has_figures() -> None:
    recipes = {file.parent.name for file in tracked("projects/*/*.yaml") if file.name != "figures.yaml"}
    assert recipes == set(figures.names())


def test_the_page_keeps_what_was_not_measured_again() -> None:
    """A figure of a project, of another machine and commit, in its place among the others."""
    before = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    assert figures.page({}, before) == before
    figure = figures.read("mnist").figures[0]
    again = figures.Measured(figure, figure.bound, [0.125], seconds=7)
    old, new = (page.splitlines() for page in (before, figures.page({"mnist": [again]}, before)))
    changed = [line for line in new if line not in old]
    assert len(new) == len(old) and any("0.125" in line and " 7 | " in line for line in changed)
    assert sum("projects/mnist" in line for line in changed) == 1


def test_bounds() -> None:
    bound = figures.Bound
    assert bound(at_least=1).holds([0, 1]) and not bound(at_least=1).holds([2, 0.9])
    assert bound(at_most=1).holds([2, 1]) and not bound(at_most=1).holds([0, 1.1])
    assert bound(rise=0.5).holds([1, 9, 1.5]) and not bound(rise=0.5).holds([1, 9, 1.4])
    assert not bound(at_least=1, rise=1).holds([1, 1])
    with pytest.raises(ValidationError, match="at_leats"):
        bound.model_validate({"at_leats": 1})
