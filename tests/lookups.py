"""Remembers what libraries look up for every run anew, and what is the same as long as a process lives."""

import functools
import importlib.metadata
from typing import Any

from loguru import _better_exceptions


def remember() -> None:
    """Keeps the versions of libraries, and the folders that loguru looks up for each of its sinks.

    Together they took a seventh of the CPU time of a short run; a process of a user has one run.
    """
    metadata: Any = importlib.metadata
    if not hasattr(metadata.version, "cache_info"):
        metadata.version = functools.cache(metadata.version)
        formatter: Any = _better_exceptions.ExceptionFormatter
        formatter._get_lib_dirs = staticmethod(functools.cache(formatter._get_lib_dirs))
