"""A folder of checkpoints: whatever happens to the process that writes, it holds a complete one."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint import retention
from arctic_training.checkpoint.checkpointer import Checkpointer, save_all
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.engine.engine import Engine
from arctic_training.errors.types import CheckpointError, ResumeError
from arctic_training.state import Progress, RunState


class Notes(Checkpointer[CheckpointConfig]):
    """Saves the number of the update, twice."""

    resumable = True

    def write(self, folder: Path, engines: Mapping[str, Engine], state: RunState) -> dict[str, Any]:
        for name in ("one.txt", "sub/two.txt"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(str(self.trainer.progress.step) * 100)
        return {"note": "short"}

    def read(self, folder: Path, manifest: Mapping[str, Any], engines: Mapping[str, Engine], state: RunState) -> None:
        texts = {(folder / name).read_text() for name in ("one.txt", "sub/two.txt")}
        assert texts == {str(manifest["step"]) * 100}
        self.trainer.progress.step = manifest["step"]


Notes.name = "notes"  # stated here, it is not registered


def notes(root: Path, update: int = 0, **section: Any) -> Notes:
    run = SimpleNamespace(evaluate_last=False)
    view: Any = SimpleNamespace(run_dir=root, progress=Progress(step=update), config=run)
    return Notes(view, CheckpointConfig(type="notes", output_dir=root, **section))()


def save(root: Path, *updates: int, **section: Any) -> Notes:
    engine = notes(root, **section)
    for update in updates:
        engine.trainer.progress.step = update
        assert engine.save({}, RunState()) == root / f"step_{update}"
    return engine


def resumed(root: Path) -> int:
    engine = notes(root)
    engine.load({}, RunState())
    return engine.trainer.progress.step


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    engine = save(tmp_path, 3)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["latest", "step_3"]
    assert (tmp_path / "latest").read_text() == "step_3\n"
    manifest = json.loads((tmp_path / "step_3" / "manifest.json").read_text())
    assert (manifest["step"], manifest["type"], manifest["note"], manifest["world"]) == (3, "notes", "short", 1)
    assert {name: one["size"] for name, one in manifest["files"].items()} == {"one.txt": 100, "sub/two.txt": 100}
    assert engine.latest == tmp_path / "step_3"
    assert resumed(tmp_path) == 3


def killed_at(operation: int, act: Callable[[], object]) -> bool:
    """Whether a process that does ``act`` was killed at that file operation; false when it does fewer."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, _: Any) -> None:
            nonlocal seen
            if event.startswith(("open", "os.", "shutil.")) and event not in ("os.kill", "os.listdir", "os.scandir"):
                seen += 1
                if seen > operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def kills(root: Path, act: Callable[[], object], check: Callable[[], object]) -> int:
    """Kill ``act`` at each of its file operations in turn, each time from the same state of ``root``."""
    before, operation = root.with_name("before"), 0
    shutil.copytree(root, before)
    while killed_at(operation, act):
        check()
        operation += 1
        shutil.rmtree(root)
        shutil.copytree(before, root)
    shutil.rmtree(before)
    return operation


@pytest.mark.fault(4, 27)
def test_a_save_that_is_killed_at_any_file_operation_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    root = tmp_path / "run"
    save(root, 1)
    seen = []

    def check() -> None:
        seen.append(resumed(root))
        assert [one.name for one in root.iterdir() if one.name.startswith(".")] == []
        save(root, 7)
        assert resumed(root) == 7

    assert kills(root, lambda: save(root, 2), check) >= 12
    assert set(seen) == {1, 2}
    assert seen == sorted(seen)


@pytest.mark.fault(4)
def test_saving_the_same_step_again_never_leaves_neither(tmp_path: Path) -> None:
    root = tmp_path / "run"
    save(root, 2)
    assert kills(root, lambda: save(root, 2), lambda: resumed(root) == 2 or pytest.fail("neither")) >= 12


@pytest.mark.fault(4, 28)
def test_retention_that_is_killed_leaves_the_newest(tmp_path: Path) -> None:
    root = tmp_path / "run"
    save(root, 1, 2, 3)

    def check() -> None:
        assert resumed(root) in (3, 4)
        for step in disk.list_steps(root):
            assert disk.verify(disk.step_folder(root, step)) is None

    assert kills(root, lambda: save(root, 4, keep_last=1), check) >= 15


@pytest.mark.fault(27, 28)
def test_steps_compare_as_numbers_and_not_by_the_clock(tmp_path: Path) -> None:
    save(tmp_path, 9, 10, 100)
    (tmp_path / "latest").unlink()
    for time, step in enumerate((100, 10, 9)):
        os.utime(tmp_path / f"step_{step}", (4e9 * time, 4e9 * time))
    assert disk.list_steps(tmp_path) == [9, 10, 100]
    assert resumed(tmp_path) == 100


@pytest.mark.fault(28)
@given(st.sets(st.integers(1, 400), min_size=1, max_size=6), st.integers(0, 4))
def test_retention_keeps_the_newest(tmp_path_factory: pytest.TempPathFactory, steps: set[int], keep: int) -> None:
    root = tmp_path_factory.mktemp("retention")
    for step in steps:
        (root / f"step_{step}").mkdir()
        (root / f"step_{step}" / "manifest.json").write_text(
            json.dumps({"format": disk.FORMAT, "step": step, "files": {}})
        )
    removed = retention.prune(root, keep)
    left = sorted(steps)[-keep:] if keep else sorted(steps)
    assert disk.list_steps(root) == left
    assert sorted(removed) == sorted(steps - set(left))


@pytest.mark.fault(28)
def test_what_was_just_written_stays_though_later_ones_are_there(tmp_path: Path) -> None:
    save(tmp_path, 5, 10)
    save(tmp_path, 6, keep_last=1)
    assert disk.list_steps(tmp_path) == [6, 10]
    assert resumed(tmp_path) == 6


@pytest.mark.fault(28)
def test_a_run_that_begins_anew_where_another_has_been_keeps_its_own(tmp_path: Path, messages: list[str]) -> None:
    save(tmp_path, 8, 10)
    notes(tmp_path, 10).warn_about_newer()
    assert messages == []
    engine = notes(tmp_path, keep_last=2)
    engine.warn_about_newer()
    assert messages[-1].startswith(
        f"{tmp_path} holds checkpoints of an earlier run that are ahead of this one, step_8 to step_10: they"
    )
    for update in (2, 4, 6):
        engine.trainer.progress.step = update
        engine.save({}, RunState())
    assert disk.list_steps(tmp_path) == [4, 6, 8, 10]
    (tmp_path / "step_6" / "one.txt").write_text("short")
    assert engine.latest == tmp_path / "step_4"
    assert resumed(tmp_path) == 4


@pytest.mark.fault(2, 6)
def test_what_a_run_goes_on_from_is_saved_last_and_though_another_fails(tmp_path: Path) -> None:
    class Export(Notes):
        resumable = False

        def write(self, folder: Path, *arguments: Any) -> dict[str, Any]:
            assert disk.list_steps(tmp_path / "notes") == []
            return super().write(folder, *arguments)

    own = notes(tmp_path / "notes", 1)
    export = Export(own.trainer, CheckpointConfig(output_dir=tmp_path / "export", on_save_error="stop"))
    save_all([own, export], {}, RunState())
    assert disk.list_steps(tmp_path / "export") == disk.list_steps(tmp_path / "notes") == [1]
    own.trainer.progress.step = 2
    shutil.rmtree(tmp_path / "export")
    (tmp_path / "export").touch()
    with pytest.raises(CheckpointError, match="export"):
        save_all([own, export], {}, RunState())
    assert disk.list_steps(tmp_path / "notes") == [1, 2]


def manifest(folder: Path, **facts: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.fault(8)
@pytest.mark.parametrize(
    ("hurt", "says"),
    [
        (lambda at: (at / "one.txt").write_text("3" * 99), "one.txt has 99 bytes instead of 100"),
        (lambda at: (at / "one.txt").write_text("3" * 99 + "4"), "one.txt was changed"),
        (lambda at: (at / "sub" / "two.txt").unlink(), "two.txt is missing"),
        (lambda at: (at / "manifest.json").unlink(), "not a complete checkpoint"),
        (lambda at: (at / "manifest.json").write_text("{"), "cannot be read"),
        (lambda at: (at / "manifest.json").write_text("[]"), "not the manifest of a checkpoint"),
        (lambda at: (at / "manifest.json").write_text("[" * 100_000), "cannot be read"),
        (lambda at: manifest(at, files={"one.txt": 3}), "not the manifest of a checkpoint"),
        (lambda at: manifest(at, step="three"), "not the manifest of a checkpoint"),
        (lambda at: (at / "manifest.json").write_text('{"format": 99, "files": {}}'), "format 99"),
    ],
)
def test_damage_is_found_before_anything_is_loaded(tmp_path: Path, hurt: Callable[[Path], object], says: str) -> None:
    save(tmp_path, 2, 3)
    hurt(tmp_path / "step_3")
    assert resumed(tmp_path) == 2
    with pytest.raises(CheckpointError, match=says):
        notes(tmp_path).load({}, RunState(), tmp_path / "step_3")
    shutil.rmtree(tmp_path / "step_2")
    with pytest.raises(ResumeError, match="no complete checkpoint to resume from"):
        resumed(tmp_path)


@pytest.mark.fault(8)
def test_a_checkpoint_of_another_type_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / "step_1" / "manifest.json"
    path.write_text(path.read_text().replace('"notes"', '"other"'))
    with pytest.raises(ResumeError, match="of type 'other'"):
        resumed(tmp_path)


@pytest.mark.fault(6)
def test_a_disk_that_refuses_is_told_and_the_run_goes_on(tmp_path: Path, messages: list[str]) -> None:
    root = tmp_path / "run"
    engine = save(root, 1)
    (root / ".aside-step_2").write_text("in the way")
    engine.trainer.progress.step = 2
    assert engine.save({}, RunState()) is None
    assert "cannot create a checkpoint" in messages[-1]
    (root / ".aside-step_2").unlink()
    assert resumed(root) == 1
    for section, end in (({"on_save_error": "stop"}, False), ({"save_end_of_training": True}, True)):
        engine = notes(root, update=2, **section)
        (root / ".aside-step_2").write_text("in the way")
        engine.should_save(engine.trainer.progress, end=end)
        with pytest.raises(CheckpointError, match=r"rank 0.*\.aside-step_2"):
            engine.save({}, RunState())


@pytest.mark.fault(6, 28)
@pytest.mark.parametrize("section", [{}, {"keep_last": 1}])
def test_what_the_disk_does_not_let_go_is_no_failed_save_and_is_tried_again(
    tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch, section: dict[str, Any]
) -> None:
    """A file in use, or of another owner: what was replaced, or is kept no longer, stays; the new one is in force."""
    engine = save(tmp_path, 2, on_save_error="stop", **section)
    (tmp_path / "step_2" / "mark").touch()
    remove, refused = shutil.rmtree, []

    def busy(path: Any, **options: Any) -> None:
        refused.append(path)
        raise OSError(16, "Device or resource busy", str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    for update in (2, 2, 3):
        engine.trainer.progress.step = update
        engine.should_save(engine.trainer.progress, end=True)
        assert engine.save({}, RunState()) == tmp_path / f"step_{update}"
        assert engine.latest == tmp_path / f"step_{update}" and not (tmp_path / f"step_{update}" / "mark").exists()
        assert "Device or resource busy" in messages[-1] and "tried again" in messages[-1]
    assert resumed(tmp_path) == 3 and "cannot remove" in messages[-1]
    assert len([one for one in tmp_path.iterdir() if one.name.startswith(".")]) == (3 if section else 2)
    monkeypatch.setattr(shutil, "rmtree", remove)
    engine.trainer.progress.step = 4
    assert engine.save({}, RunState()) and refused
    names = {one.name for one in tmp_path.iterdir()}
    assert names == {"latest", "step_4"} | (set() if section else {"step_2", "step_3"})


@pytest.mark.fault(6)
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small disk needs root")
def test_a_full_disk_gives_the_attempts_space_back(
    tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "small"
    root.mkdir()
    if os.system(f"mount -t tmpfs -o size=200k tmpfs {root} 2>/dev/null") != 0:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        engine = save(root, 1)
        free = shutil.disk_usage(root).free
        monkeypatch.setattr(engine, "write", lambda folder, *_: (folder / "big").write_bytes(b"0" * 300_000))
        engine.trainer.progress.step = 2
        assert engine.save({}, RunState()) is None
        assert "No space left" in messages[-1]
        assert shutil.disk_usage(root).free == free
        assert resumed(root) == 1
    finally:
        os.system(f"umount {root}")


@pytest.mark.fault(7)
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting needs root")
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A read-only mount refuses root too."""
    from arctic_training.cli.main import main

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir()
    if os.system(f"mount -t tmpfs -o ro,size=100k tmpfs {tmp_path / 'locked'} 2>/dev/null") != 0:
        pytest.skip("tmpfs cannot be mounted here")
    before = sorted(tmp_path.rglob("*"))
    recipe = "model: {name_or_path: %s/model}\ndata: {sources: [%s/rows.jsonl]}\n%s\n"
    try:
        for section, message in (
            ("checkpoint: {output_dir: %s/locked/saved}", "3:26: checkpoint.output_dir: %s/locked: no permission to"),
            ("checkpoint: {output_dir: %s/file/saved}", "3:26: checkpoint.output_dir: %s/file is a file; expected a"),
            ("output_dir: %s/locked/run", "3:13: output_dir: %s/locked: no permission to write there"),
        ):
            (tmp_path / "recipe.yaml").write_text(recipe % (tmp_path, tmp_path, section % tmp_path))
            assert main([str(tmp_path / "recipe.yaml")]) == 2
            assert f"recipe.yaml:{message % tmp_path}" in capsys.readouterr().err
            assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "recipe.yaml"])
    finally:
        os.system(f"umount {tmp_path / 'locked'}")


@pytest.mark.parametrize(
    ("section", "progress", "end", "due"),
    [
        ({"save_every_n_steps": 5}, (0, 3, 10), False, True),
        ({"save_every_n_steps": 5}, (0, 3, 11), False, False),
        ({"save_every_n_steps": 5, "enabled": False}, (0, 3, 10), False, False),
        ({"save_every_n_epochs": 2}, (2, 0, 9), False, True),
        ({"save_every_n_epochs": 2}, (1, 0, 9), False, False),
        ({"save_every_n_epochs": 2}, (2, 1, 9), False, False),
        ({"save_end_of_training": True}, (1, 0, 9), True, True),
        ({"save_end_of_training": True}, (1, 0, 9), False, False),
        ({}, (1, 0, 10), True, False),
    ],
)
def test_when_it_is_due(tmp_path: Path, section: Any, progress: Any, end: bool, due: bool) -> None:
    epoch, row, update = progress
    engine = notes(tmp_path, **section)
    at = Progress(epoch=epoch, sample_index=row, step=update)
    assert engine.should_save(at, end=end) is due
    engine.trainer.progress.step = update
    engine.save({}, RunState())
    assert engine.should_save(at, end=end) is False  # once for each update
