"""Switches off the progress bars of transformers and datasets."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal


@contextmanager
def without_progress_bars(
    library: Literal["transformers", "datasets"], *, keep_in_terminal: bool = False
) -> Iterator[None]:
    """Disables the progress bars of ``library`` inside.

    ``keep_in_terminal``: not where standard error is a terminal.
    """
    bars: Any = importlib.import_module(f"{library}.utils.logging")
    disable = bars.is_progress_bar_enabled() and not (keep_in_terminal and sys.stderr.isatty())
    if disable:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if disable:
            bars.enable_progress_bar()
