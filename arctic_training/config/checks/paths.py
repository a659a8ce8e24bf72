"""What is wrong with a path, by a look at it: nothing is read, and no hub is asked."""

import os
from pathlib import Path

_YES = {"1", "ON", "YES", "TRUE"}


def unreadable(name: str, *, holds: str = "") -> str:
    """Why a model, tokenizer or data set is not there; empty when it is, or when ``name`` may be one of the hub.

    ``holds`` is a file that its folder must have.
    """
    if told := impossible(name):
        return told
    path = Path(name).expanduser()
    if not path.exists():
        return f"{name}: no such file or folder" if name.startswith((".", "/", "~")) or path.suffix == ".gguf" else ""
    if not os.access(path, os.R_OK):
        return f"{name}: cannot be read"
    if holds and path.is_dir() and not (path / holds).exists():
        return f"{name}: no {holds} in it; a folder that save_pretrained wrote is wanted"
    return ""


def impossible(name: str) -> str:
    """Why no file can have that name; empty when one can."""
    try:
        os.stat(Path(name).expanduser())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""
    except (OSError, ValueError, RuntimeError) as error:
        told = name if len(name) <= 60 else f"{name[:57]}..."
        return f"{told}: no path of a file ({getattr(error, 'strerror', None) or error})"
    return ""


def no_file(path: Path | None) -> str:
    """Why ``path`` cannot be appended to; empty when it can, or when there is none."""
    if path is None:
        return ""
    if told := impossible(str(path)):
        return told
    return f"{path} is a folder, and a file is wanted" if path.is_dir() else unwritable(path.parent)


def beyond_reach(text: str) -> str:
    """What is said of a name that is neither a folder here nor to be had from the hub, which said ``text``."""
    if any(os.environ.get(name, "").upper() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        return "no folder here, and HF_HUB_OFFLINE forbids to ask the hub; unset it, or name a folder"
    return f"no folder here, and not to be had from the hub: {text}"


def unwritable(folder: Path | None) -> str:
    """Why ``folder`` cannot be made and written to; empty when it can, or when there is none."""
    if folder is None:
        return ""
    if told := impossible(str(folder)):
        return told
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{there} is a file, and a folder is wanted"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there}: no right to write there"
