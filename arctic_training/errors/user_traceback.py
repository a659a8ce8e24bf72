"""The part of a traceback that lies in the user's own files."""

import sys
import traceback
from pathlib import Path


def user_traceback(error: BaseException) -> str:
    """Returns the frames of ``error`` in the folders of imported user code (`import_file`); empty without any."""
    modules = [vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")]
    folders = {Path(one["__file__"]).parent for one in modules if "__source__" in one and one.get("__file__")}
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if Path(frame.filename).parent in folders]
    if not users:
        return ""
    lines = ["Traceback (most recent call last; --debug shows all of it):\n", *traceback.format_list(users)]
    if frames[-1] is not users[-1]:
        lines.append(f"  ... to {frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}\n")
    return "".join([*lines, *traceback.format_exception_only(error)]).rstrip()
