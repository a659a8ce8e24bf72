"""The progress of a run on a terminal: what a person sees of it, and that nothing tears it."""

import io
import os
import re
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from rich.console import Console

from arctic_training.display import watch
from arctic_training.display.activity import activity
from arctic_training.display.bar import Bar
from arctic_training.display.libraries import captured_bars, library_bars, without_progress_bars
from tests import tiny
from tests.command import clean_environment
from tests.display.terminal import Process, Terminal
from tests.forkserver import fork
from tests.warm_start import Command

TRAIN = """
import time

from arctic_training import SFTTrainer, is_main


class Slow(SFTTrainer):
    name = "slow_for_the_test"

    def step(self, batch):
        time.sleep(0.15)
        super().step(batch)
        if self.progress.step == 5 and is_main():
            print("a line of the program", flush=True)
"""
FRACTION = re.compile(r"^training +[━╸╺ ]+ +(\d+)/12 (?:(?:\d:\d\d:\d\d|-:--:--) left|in \d:\d\d:\d\d)$")


def start(terminal: Terminal, folder: Path, model: Path, *words: str, **more: Any) -> int:
    tiny.save_chats(folder / "chats.jsonl", 12)
    (folder / "train.py").write_text(TRAIN)
    recipe = {
        "type": "slow_for_the_test",
        "model": {"name_or_path": str(model), "dtype": "fp32"},
        "data": {"sources": ["chats.jsonl"], "eval_sources": ["chats.jsonl"], "max_length": 400},
        "train_iters": 12,
        "eval_interval": 6,
        "evaluators": [{"type": "generate", "max_new_tokens": 4}],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment = clean_environment(TERM="xterm")
    return terminal.run(lambda tty: Command(["recipe.yaml", *words], folder, environment, tty, tty), **more)


def test_a_run_on_a_terminal(tmp_path: Path, tiny_model: Path) -> None:
    """Two processes: one bar of the first, which only rises, and every other line once, above it."""
    terminal = Terminal()
    assert start(terminal, tmp_path, tiny_model, "--num_gpus", "2") == 0, terminal.text
    steps = [int(match[1]) for screen in terminal.seen for line in screen if (match := FRACTION.match(line))]
    assert steps == sorted(steps) and len(set(steps)) >= 3 and steps[-1] == 12
    last = terminal.text
    assert sum(map(bool, map(FRACTION.match, last))) == 1
    evaluated = [re.match(r"step (\d+)/12 \| loss/eval \d\.\d{4} ", line) for line in last if "step" in line]
    assert [match and match[1] for match in evaluated] == ["6", "12"]
    assert last.count("a line of the program") == 1
    numbers = last[last.index(next(filter(FRACTION.match, last))) + 1]
    assert numbers == last[-1] and re.match(
        r"epoch\s\d\S* · loss\s\d\.\d{4} · grad_norm\s\S+ · lr\s\S+ · tokens/s\s[\d,]+$", numbers
    )
    assert not terminal.screen.cursor.hidden


def test_ctrl_c_and_errors_leave_the_terminal_in_order(tmp_path: Path, tiny_model: Path) -> None:
    sent: list[int] = []

    def interrupt(terminal: Terminal, process: Process) -> None:
        if not sent and any(map(FRACTION.match, terminal.text)):
            sent.append(signal.SIGINT)
            process.send_signal(signal.SIGINT)

    terminal = Terminal()
    assert start(terminal, tmp_path, tiny_model, "train_iters=12", watch=interrupt) == 130
    warning = [line for line in terminal.text if "WARNING" in line]
    assert len(warning) == 1 and "stopping after step" in warning[0] and "SIGINT was received" in warning[0]
    assert sum(line.startswith("training") for line in terminal.text) == 1
    assert not terminal.screen.cursor.hidden


def drawn(bar: Bar) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(bar._render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_is_drawn_fits_eighty_columns() -> None:
    bar = Bar(Console(file=io.StringIO()))
    bar.numbers = {"loss": "2.5", "lr": "0.001"}
    assert drawn(bar).strip() == ""
    with activity("training", 1000) as run, activity("reading /a/very/long/path/of/a/data/set.jsonl") as read:
        run.done, read.done = 500, 70_000
        first, second, numbers = filter(str.strip, drawn(bar).splitlines())
    assert re.fullmatch(r"training +[━╸╺]+ +500/1,000 0:00:00 left ?", first) and len(first) <= 80
    assert re.fullmatch(r"reading /a/very/long/pat?… +[━╸╺]+ +70,000 0:00:00 ?", second) and len(second) <= 80
    assert numbers.split() == ["loss", "2.5", "·", "lr", "0.001"]
    filled = first.count("━") / (first.count("━") + first.count("╺"))
    assert filled > 0.3


def test_bars_of_libraries_are_rows(capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm.auto import tqdm

    with captured_bars(), tqdm(total=2_000_000, desc="weights", unit="B", unit_scale=True) as bar:
        assert library_bars() == []  # one that is over at once is not shown
        bar.start_t -= 10
        bar.update(500_000)
        (row,) = library_bars()
    assert (row.name, row.done, row.total, row.text) == ("weights", 500_000, 2_000_000, "500kB/2.00MB")
    assert library_bars() == [] and capsys.readouterr().err == ""
    with tqdm(total=1, file=sys.stderr) as bar:
        bar.update()
    assert "1/1" in capsys.readouterr().err


def test_a_file_gets_lines_of_what_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_PAUSE", 0.01)
    monkeypatch.setattr(watch, "_SILENCE", 0.1)
    monkeypatch.setattr(watch, "_REPEAT", 0.1)
    watch.open_display("auto")
    try:
        assert not watch.has_bar()
        with activity("training", 3):
            time.sleep(0.2)  # its lines are its metrics
            with activity("quick"):
                pass
            with activity("loading the model"):
                time.sleep(0.15)
            with activity("evaluating", 4) as one:
                one.done = 2
                time.sleep(0.25)
    finally:
        watch.close_display()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["loading the model ...", *["evaluating: 2/4 | eta 0:00:00"] * 2]


class Forked(NamedTuple):
    """A process of `fork`."""

    process: ForkServerProcess

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None: ...


def fork_often() -> None:
    """Forks this process often, while a bar is drawn all the time."""
    watch._PAUSE = 0.0005
    before = sys.stdout
    watch.open_display("bar")
    with activity("training", 100) as one:
        for one.done in range(1, 101):
            if not os.fork():
                print("unseen", file=open(os.devnull, "w"))  # noqa: SIM115
                os._exit(7 if watch._display is None and sys.stdout is before else 8)
            assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
        watch.close_display()
    assert sys.stdout is before
    print("over")


def test_a_process_that_is_forked_shows_nothing(tmp_path: Path) -> None:
    """However often it is forked while a bar is drawn: no copy waits for a lock, or writes to the terminal."""
    terminal, environment = Terminal(), clean_environment(TERM="xterm")
    assert terminal.run(lambda tty: Forked(fork(fork_often, (), environment, tty))) == 0, terminal.text
    assert [line.split()[0] for line in terminal.text] == ["training", "over"]


@pytest.mark.parametrize(
    ("options", "style", "bar"),
    [
        ({"force_terminal": True}, "auto", True),
        ({"force_terminal": True}, "lines", False),
        ({"force_terminal": False}, "auto", False),
        ({"force_terminal": False}, "bar", True),
        ({"force_jupyter": True}, "auto", None),
        ({"force_jupyter": True}, "none", False),
    ],
)
def test_what_is_shown_where(options: dict[str, Any], style: watch.Style, bar: bool | None) -> None:
    import importlib.util

    expected = importlib.util.find_spec("ipywidgets") is not None if bar is None else bar
    environment = {"TERM": "xterm", **{k: v for k, v in os.environ.items() if k not in ("TERM", "FORCE_COLOR")}}
    console = Console(file=io.StringIO(), _environ=environment | {"TERM": "xterm"}, **options)
    assert watch.shows_bar(console, style) is expected


def test_libraries_print_no_bar_where_none_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    from datasets.utils import tqdm as of_datasets
    from tqdm.auto import tqdm
    from transformers.utils.logging import tqdm as of_transformers

    with without_progress_bars(keep_in_terminal=True):  # which standard error is not
        for bar in (tqdm, of_datasets, of_transformers):
            assert list(bar(range(3), desc="weights")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    assert list(tqdm(range(3), desc="weights")) == [0, 1, 2]
    assert "weights: 100%" in capsys.readouterr().err
