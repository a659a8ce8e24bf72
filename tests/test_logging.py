"""The log of a run beside that of the program which the run is part of."""

import logging as std_logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import loguru
import pytest

from arctic_training import logging
from arctic_training.errors import redaction
from arctic_training.logging import close_log, logger, start_console_log, start_file_log


@pytest.mark.parametrize("name", ["{}", "{time}", "a{b", "}{0}"])
def test_braces_in_the_path_of_a_log_are_part_of_it(name: str, tmp_path: Path) -> None:
    start_file_log(tmp_path / name, level="INFO", rank=0, ranks="*")
    logger.info("written {} here")
    close_log()
    assert [file.relative_to(tmp_path) for file in tmp_path.rglob("*.log")] == [Path(name, "rank_0.log")]
    assert (tmp_path / name / "rank_0.log").read_text(encoding="utf-8").endswith("written {} here\n")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """The file of a log that is open."""
    start_console_log(level="WARNING", rank=1, world=2, ranks=[1])
    logger.info("early")
    start_file_log(tmp_path, level="WARNING", rank=1, ranks="*")
    yield tmp_path / "rank_1.log"
    close_log()
    start_console_log(level="SUCCESS", rank=0, world=1, ranks=[0])
    close_log()


def test_the_programs_own_sinks_hear_it_and_the_run(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction, "_secrets", {})
    redaction.register_secret("hunter2hunter2", "${env:PASSWORD}")
    heard: list[str] = []
    sink = loguru.logger.add(heard.append, level="INFO", format="{level} {extra} {message}")
    try:
        start_console_log(level="WARNING", rank=1, world=2, ranks=[1])
        loguru.logger.bind(job=3).info("hunter2hunter2 is {}", "its own")
        logger.warning("the run's {password} is hunter2hunter2")
        logger.debug("too little")
        close_log()
        loguru.logger.info("after it")
    finally:
        loguru.logger.remove(sink)
    assert heard == [
        "INFO {'job': 3} hunter2hunter2 is its own\n",
        "WARNING {'rank': '[rank 1] '} the run's {password} is ${env:PASSWORD}\n",
        "INFO {} after it\n",
    ]
    assert "hunter2" not in capsys.readouterr().err.replace("hunter2hunter2 is its own", "")
    assert "its own" not in run.read_text()


def test_nothing_is_printed_twice(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start_console_log(level="WARNING", rank=1, world=2, ranks=[1])
    logger.warning("once")
    logger.info("not at all")
    assert [line.split(" ", 1)[1].split() for line in capsys.readouterr().err.splitlines()] == [
        ["WARNING", "[rank", "1]", "once"]
    ]


def test_the_file_begins_with_what_came_before_it_and_ends_with_the_run(run: Path) -> None:
    logger.info("between")
    close_log()
    logger.info("late")
    assert [line.split()[-1] for line in run.read_text().splitlines()] == ["early", "between"]
    assert logging._buffer == []


def test_importing_changes_nothing_of_the_library() -> None:
    code = (
        "import loguru; core = loguru.logger._core; before = (dict(core.handlers), core.patcher, dict(core.extra))\n"
        "import arctic_training.logging\n"
        "assert (dict(core.handlers), core.patcher, dict(core.extra)) == before\n"
        "arctic_training.logging.logger.success('heard')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert [line.split()[1:] for line in done.stderr.splitlines()] == [["SUCCESS", "heard"]]


@pytest.mark.parametrize(("level", "ranks"), [("ERROR", [0]), ("SUCCESS", [1])])
def test_after_a_quiet_run_important_messages_are_printed_again(
    level: str, ranks: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    start_console_log(level=level, rank=0, world=1, ranks=ranks)
    logger.success("unheard")
    close_log()
    logger.success("heard")
    logger.info("too little")
    assert [line.split()[1:] for line in capsys.readouterr().err.splitlines()] == [["SUCCESS", "heard"]]


def test_messages_of_a_library_are_silent_for_a_block_only() -> None:
    library, printed = std_logging.getLogger("noisy_for_the_test"), list[str]()
    handler = std_logging.Handler()
    handler.emit = lambda record: printed.append(record.getMessage())  # type: ignore[method-assign]
    library.addHandler(handler)
    library.setLevel("INFO")
    with logging.without_messages("noisy_for_the_test"):
        library.getChild("part").info("tables")
        library.getChild("part").error("broken")
    library.info("later")
    assert printed == ["broken", "later"]
