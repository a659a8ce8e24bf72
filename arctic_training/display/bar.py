"""The progress of a run on a terminal or in a notebook: a bar for each activity, and the last numbers."""

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from arctic_training.display.activity import Activity, current
from arctic_training.display.format import clock, position
from arctic_training.display.libraries import captured_bars, library_bars

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_NAME_WIDTH = 24


class Bar:
    """Bars below everything else that is printed, which stays readable above them."""

    def __init__(self, console: "Console") -> None:
        self.console = console
        self.numbers: dict[str, str] = {}
        """The last values of the run, by name, as texts."""
        self._open = ExitStack()

    def start(self) -> None:
        """Begins to show what is done, and to print what is written to the terminal above it."""
        from rich.live import Live

        self._live = Live(
            get_renderable=self._render,
            console=self.console,
            auto_refresh=False,
            redirect_stderr=self.console.is_jupyter or sys.stderr.isatty(),
        )
        self._open.enter_context(captured_bars())
        self._streams = sys.stdout, sys.stderr
        self._live.start(refresh=True)
        self.console.show_cursor(True)  # a run that is killed could not bring it back

    def refresh(self) -> None:
        """Draws the bars anew."""
        self._live.refresh()

    def stop(self) -> None:
        """Draws the bars a last time; they stay, below what was printed."""
        widget, is_over = self._live.ipy_widget, not current()
        if widget is None:
            self._live.transient = is_over
            self._live.stop()
        else:  # a notebook, where the end draws nothing, and leaves an empty output behind
            self._live.refresh()
            with widget:
                self._live.stop()
            if is_over:
                widget.close()
        self._open.close()

    def forget(self) -> None:
        """Leaves the terminal to another process, of which this one is a copy."""
        sys.stdout, sys.stderr = self._streams

    def _render(self) -> "RenderableType":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        if not (activities := current()):
            return Text("")
        table = Table.grid(expand=True, padding=(0, 1))
        table.add_column(no_wrap=True, max_width=_NAME_WIDTH)
        table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right")
        for one in activities:
            table.add_row(one.name, _progress(one.done, one.total), _position(one))
        for bar in library_bars():
            table.add_row(bar.name, _progress(bar.done, bar.total), bar.text)
        numbers = [Text(" · ").join(_numbers(self.numbers))] if self.numbers else []
        # what others print to the terminal, such as ^C, comes onto the empty line
        return Group(table, *numbers, Text(""))


def _progress(done: float, total: float | None) -> "RenderableType":
    """Returns a bar, which pulses where ``total`` is None."""
    from rich.progress_bar import ProgressBar

    return ProgressBar(total=None if total is None else max(total, 1), completed=done)


def _position(one: Activity) -> str:
    if one.total is None:
        return f"{position(one.done, None)} {clock(one.seconds)}" if one.done else clock(one.seconds)
    time = f"in {clock(one.seconds)}" if one.done >= one.total else f"{clock(one.seconds_left)} left"
    return f"{position(one.done, one.total)} {time}"


def _numbers(values: dict[str, str]) -> "list[Text]":
    from rich.text import Text

    space = "\N{NO-BREAK SPACE}"  # so that no line ends between a name and its value
    return [Text.assemble((f"{name}{space}", "dim"), (value, "bold")) for name, value in values.items()]
