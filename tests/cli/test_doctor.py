"""`doctor` tells versions, devices, compilers, room and extras as they are."""

import json
import os
import platform
import shutil
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from arctic_training.cli.main import main
from arctic_training.launch import machine
from tests.processes import ROOT


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, tuple[str, str]]]:
    main(["doctor", "--json"])
    sections = json.loads(capsys.readouterr().out)
    return {
        title: {one["name"]: (one["state"], one["detail"]) for one in several} for title, several in sections.items()
    }


def test_what_it_tells_is_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sections = report(capsys)
    assert sections["versions"]["python"][1].startswith(platform.python_version())
    for library in ("torch", "deepspeed", "transformers"):
        assert sections["versions"][library] == ("ok", metadata.version(library))
    assert f"cores for this process: {len(os.sched_getaffinity(0))};" in sections["devices"]["cpu"][1]
    assert (sections["compilers"]["g++"][0] == "ok") == (shutil.which("g++") is not None)
    assert sections["memory and disk"]["this folder"][1].startswith(str(Path.cwd()))
    assert sections["environment"]["HF_HUB_OFFLINE"] == ("note", "1")


def test_what_is_missing_is_told_with_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requires = ["torch>=2.0", "numpy>=1000", "no-such-package>=1", "no-such-extra; extra == 'liger'"]
    monkeypatch.setattr(machine.metadata, "requires", lambda name: requires)
    monkeypatch.setenv("PATH", str(tmp_path))
    sections = report(capsys)
    assert sections["versions"]["torch"][0] == "ok"
    assert sections["versions"]["numpy"] == ("missing", f"{metadata.version('numpy')}; expected >=1000")
    assert sections["versions"]["no-such-package"] == ("missing", "not installed; expected >=1")
    state, detail = sections["optional extras"]["liger"]
    assert state == "optional" and detail.endswith("missing no-such-extra: pip install 'arctic_training[liger]'")
    assert sections["compilers"]["g++"] == ("optional", "not on the PATH; needed for " + machine.PROGRAMS["g++"])
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "! no-such-package" in printed and max(map(len, printed.splitlines())) <= 80


def test_every_extra_says_what_it_is_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {*project["optional-dependencies"]} - {"bench", "dev", "docs"}
    assert extras and not [extra for extra in extras if not machine.purpose_of(extra)]
