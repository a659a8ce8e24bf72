"""Of the way to an error, the part that leads through the user's own files."""

import sys
import traceback
from pathlib import Path


def user_traceback(error: BaseException) -> str:
    """The way to ``error`` as far as it leads through the user's own files; empty when it does not."""
    modules = [getattr(module, "__dict__", {}) for module in list(sys.modules.values())]
    folders = {Path(one["__file__"]).parent for one in modules if "__source__" in one and one.get("__file__")}
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent in folders]
    if not own:
        return ""
    lines = ["Traceback (most recent call last; --debug shows all of it):\n", *traceback.format_list(own)]
    if frames[-1] is not own[-1]:
        lines.append(f"  ... to {frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}\n")
    return "".join([*lines, *traceback.format_exception_only(error)]).rstrip()
