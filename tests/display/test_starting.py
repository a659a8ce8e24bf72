"""The line that says what is done before a run shows its progress: there at once, and gone without a trace."""

import io
import re
import subprocess
import sys
import time
from pathlib import Path

import pyte
import pytest

from arctic_training.display import activity as activities
from arctic_training.display.activity import activity
from arctic_training.display.starting import close_starting, starting
from tests.command import clean_environment
from tests.display.terminal import Terminal


class Screen(io.StringIO):
    """A terminal of a person, or a pipe."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    @property
    def text(self) -> list[str]:
        screen = pyte.Screen(80, 10)
        pyte.Stream(screen).feed(self.getvalue().replace("\n", "\r\n"))
        return [line.rstrip() for line in screen.display if line.strip()]


def started(monkeypatch: pytest.MonkeyPatch, *, terminal: bool = True, **variables: str) -> Screen:
    screen = Screen(terminal=terminal)
    monkeypatch.setattr(sys, "stdout", screen)
    for name, value in {"TERM": "xterm", "RANK": "0", "WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    return screen


def test_it_is_erased_by_what_is_printed_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, errors = started(monkeypatch), sys.stderr
    with starting():
        with activity("importing libraries"):
            assert screen.text == ["importing libraries ..."]
            print("a line of train.py")
            assert screen.text == ["a line of train.py"]
        with activity("reading " + "a" * 100):
            assert len(screen.text) == 2 and len(screen.text[1]) == 79
    assert screen.text == ["a line of train.py"] and (sys.stdout, sys.stderr) == (screen, errors)
    assert not activities.on_begin


def test_it_ends_where_a_bar_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = started(monkeypatch)
    with starting():
        with activity("reading the recipe"):
            pass
        close_starting()
        assert screen.text == [] and sys.stdout is screen
        with activity("training"):
            assert screen.text == []


def test_it_is_written_again_while_nothing_else_is(tmp_path: Path) -> None:
    """A process that computes in Python, such as one that imports: it ends when three times were shown."""
    program = (
        "import os, sys\n"
        "from arctic_training.display.activity import activity\n"
        "from arctic_training.display.starting import starting\n"
        "with starting(), activity('importing libraries'):\n"
        "    print('a line of train.py')\n"
        "    while not os.path.exists('enough'):\n"
        "        sum(range(1000))\n"
    )

    def start(tty: Path) -> subprocess.Popen[bytes]:
        with open(tty, "wb") as terminal:
            command, environment = [sys.executable, "-c", program], clean_environment(TERM="xterm")
            return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=terminal, stderr=terminal)

    def watch(terminal: Terminal, process: object) -> None:
        times.update(line for line in terminal.text if re.fullmatch(r"importing libraries \.\.\. \d+ s", line))
        if len(times) == 3:
            (tmp_path / "enough").touch()

    terminal, times = Terminal(), set[str]()
    assert terminal.run(start, watch) == 0
    assert terminal.text == ["a line of train.py"]


def test_a_line_that_is_not_complete_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arctic_training.display.starting._PAUSE", 1e-3)
    screen = started(monkeypatch)
    with starting(), activity("importing libraries"):
        print("a question: ", end="")
        written = screen.getvalue()
        time.sleep(0.05)
        assert screen.getvalue() == written


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"RANK": "1"}, {"RANK": "one"}, {}])
def test_it_is_not_in_a_pipe_and_not_of_every_process(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = started(monkeypatch, terminal=bool(variables), **variables)
    with starting(), activity("importing libraries"):
        assert sys.stdout is screen
    assert screen.getvalue() == ""


def test_the_command_says_at_once_what_it_does(tmp_path: Path) -> None:
    """A new interpreter: while it imports, the line is there; the error alone stays."""

    def start(tty: Path) -> subprocess.Popen[bytes]:
        with open(tty, "wb") as terminal:
            command = [sys.executable, "-m", "arctic_training", "nowhere.yaml"]
            environment = clean_environment(TERM="xterm")
            return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=terminal, stderr=terminal)

    terminal = Terminal()
    assert terminal.run(start) == 2
    assert terminal.seen[0] == ["importing libraries ..."] and len(terminal.text) == 1
    assert terminal.text[0].startswith("nowhere.yaml: ")
