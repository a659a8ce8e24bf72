"""What a run survives or refuses. Tests carry the numbers of rows; a session with ``--faults`` prints what held, and
fails when a row is not shown."""

from typing import Any

import pytest

FAULTS = {
    1: ("two equal runs", "equal to the bit"),
    2: ("a stop after any step, and a resume", "equal to the bit to a run that was not stopped"),
    3: ("SIGKILL of the whole run at random times", "the final weights of a run that was never killed"),
    4: ("SIGKILL at each file operation of a save", "the old checkpoint or the new one, never neither"),
    5: ("one process dies while it saves", "the previous checkpoint stays valid"),
    6: (
        "a full disk",
        "reported with path and free space; the run continues or stops as configured; space is released",
    ),
    7: ("a folder that cannot be written", "found before the first step, exit code 2"),
    8: (
        "a checkpoint that is truncated, altered or incomplete",
        "named; the newest intact one is used, a named path refused",
    ),
    9: ("SIGKILL of one process", "the others end at once, the dead one is named"),
    10: ("a process that hangs", "detected within `hang_timeout`, stacks printed, exit code 70"),
    11: (
        "SIGTERM, SIGINT, SIGUSR1 to the command",
        "step finished, saved, all end, an exit code of its own; exact resume",
    ),
    12: ("SIGKILL of the command", "no process is left running"),
    13: ("an exception in one process", "one message with its rank, the others end"),
    14: ("a loss or gradient that is not finite", "stop, skip or go back; never saved over good weights"),
    15: ("a window without labels", "a finite loss, other windows unchanged"),
    16: ("another split of the global batch, or of its sequences", "the same gradient to 1e-6, losses to 1e-5"),
    17: ("a short last window", "the exact mean of what is in it"),
    18: ("a resume on another number of ranks or at another ZeRO stage", "the same losses to 1e-5, each sample once"),
    19: ("a resume under another recipe, data or tokenizer", "refused with the differences, unless they are allowed"),
    20: ("a planted pickle", "not run"),
    21: ("hostile YAML", "refused with little work and memory"),
    22: ("a model with code of its own", "not imported unless the recipe says so"),
    23: ("two runs in one folder", "the second is refused, the first unharmed"),
    24: ("many runs, many steps", "no file left behind, constant memory and open files"),
    25: ("tokenizer threads and forked workers", "no warning, no deadlock"),
    26: ("a loader worker that is killed", "named, the run ends at once"),
    27: ("incomplete checkpoints, stale locks and build locks", "handled, the run starts"),
    28: ("retention", "an intact checkpoint at all times; the best and the new one are never removed"),
    29: ("out of memory", "reported with the shape of the batch and what to change"),
    30: ("a source that fails on a row", "the row is named"),
    31: ("the learning rate of every step", "the schedule in closed form"),
    32: ("bad recipes and inputs", "the exact message, exit code 2, nothing written"),
    33: ("random input to reader, templates, packing", "an error of ours or none; no hang"),
    34: ("changed rows, template, tokenizer, setting, code", "never old rows from the cache"),
    35: ("a time limit", "saved and ended before it"),
    36: ("secrets of the environment", "in no log, folder or message"),
    37: ("SIGKILL while a checkpoint is written beside training", "the one before, and exact resume from it"),
}
"""The fault, and what is promised."""


class Matrix:
    """The outcome of every test that carries a number."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[int]] = {}
        self.outcomes: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if numbers := dict(report.user_properties).get("faults"):
            self.numbers[report.nodeid] = numbers
            self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
            if report.when == "call" or report.outcome != "passed":
                self.outcomes[report.nodeid] = report.outcome

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.OK and any(row[2] == "NOT SHOWN" for row in self.rows()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("faults")
        for number, counts, verdict, seconds in self.rows():
            line = f"{number:2}  {verdict:9} {counts:>8} {seconds:4.0f} s  {FAULTS[number][0]}"
            terminalreporter.line(line, red=verdict != "holds")

    def rows(self) -> list[tuple[int, str, str, float]]:
        """Number, tests passed of all, verdict, seconds."""
        rows = []
        for number in FAULTS:
            mine = [node for node in self.outcomes if number in self.numbers[node]]
            passed = sum(self.outcomes[node] == "passed" for node in mine)
            failed = any(self.outcomes[node] == "failed" for node in mine)
            verdict = "BROKEN" if failed else "holds" if passed else "NOT SHOWN"
            rows.append((number, f"{passed}/{len(mine)}", verdict, sum(self.seconds[node] for node in mine)))
        return rows


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", action="store_true", help="print what of the fault matrix held; fail unless all did")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.faults and not hasattr(config, "workerinput"):  # a process of pytest-xdist reports to the main one
        config.pluginmanager.register(Matrix())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each test the numbers of its marks as a property, which its reports carry to the main process."""
    for item in items:
        numbers = [number for mark in item.iter_markers("fault") for number in mark.args]
        if unknown := set(numbers) - FAULTS.keys():
            raise pytest.UsageError(f"{item.nodeid}: no fault has the number {unknown}")
        if numbers:
            item.user_properties.append(("faults", numbers))
