"""The file of metrics: what a killed run left in it is one line that cannot be read, wherever it was cut."""

import json
from pathlib import Path

import pytest

from arctic_training.tracker.curves import read_curves
from arctic_training.tracker.jsonl import JsonlConfig, JsonlTracker
from arctic_training.tracker.records import METRICS, read_records


def log(run_dir: Path, steps: range) -> None:
    tracker = JsonlTracker(JsonlConfig(type="jsonl"))
    tracker.start({}, run_dir, steps.start)
    for step in steps:
        tracker.log({"loss": 1 / step}, step)
    tracker.finish(failed=False)


@pytest.mark.parametrize("kept", [0, 1, 5, -1, None])
def test_a_resumed_run_begins_a_line_where_a_kill_has_cut_one(tmp_path: Path, kept: int | None) -> None:
    """``kept`` bytes of the last line are left, all of them, or all but its end."""
    log(tmp_path, range(1, 4))
    *lines, last = (tmp_path / METRICS).read_bytes().splitlines(keepends=True)
    (tmp_path / METRICS).write_bytes(b"".join(lines) + last[:kept])
    log(tmp_path, range(4, 6))
    records, unread = read_records(tmp_path / METRICS)
    is_complete = kept in (None, -1)
    assert [one["step"] for one in records] == ([1, 2, 3, 4, 5] if is_complete else [1, 2, 4, 5])
    assert unread == (0 if is_complete or kept == 0 else 1)
    assert sorted(read_curves(tmp_path / METRICS)["loss"]["loss"]) == [one["step"] for one in records]


@pytest.mark.parametrize("line", ["", "[1]", "3", '{"loss": 1}', '{"step": "a"}', "\ufffd"])
def test_what_is_no_record_is_counted(tmp_path: Path, line: str) -> None:
    (tmp_path / METRICS).write_text(f"{line}\n{json.dumps({'step': 2, 'loss': float('nan')})}\n", encoding="utf-8")
    records, unread = read_records(tmp_path / METRICS)
    assert [one["step"] for one in records] == [2] and unread == 1
    assert read_records(tmp_path / "none") == ([], 0)
    (tmp_path / METRICS).write_text('{"step": 1, "loss": 2, "note": "x", "flag": true, "nothing": null}')
    assert read_records(tmp_path / METRICS) == ([{"step": 1, "loss": 2}], 0)
