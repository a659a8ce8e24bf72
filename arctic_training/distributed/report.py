"""Reports why a process failed: to the launcher that started it, or on standard error."""

import json
import os
import sys
import time
import traceback

from arctic_training.errors.redaction import redact
from arctic_training.errors.types import ArcticError, NonFiniteError, RecipeError
from arctic_training.errors.user_traceback import user_traceback

CHANNEL = "ARCTIC_TRAINING_FAILURE_FD"
"""The environment variable with the file descriptor of the pipe to the launcher."""

_MAX_CHARACTERS = 30_000
"""What a pipe takes without a reader."""
_ECHOES = ("the first process", "closed by peer", "Connection reset", "Broken pipe", "NCCL communicator was aborted")
"""Parts of the errors that a process raises because another process has failed."""


def report(error: BaseException, *, debug: bool = False) -> int:
    """Writes ``error`` and returns the exit code.

    Errors of this package are written as their text. Of others the traceback is written, only the frames in the user's
    own files where there are any. ``debug`` writes the full traceback of every error.
    """
    known = isinstance(error, ArcticError)
    text = redact(_text(error, debug=debug))
    code = error.exit_code if isinstance(error, ArcticError) else 1
    from arctic_training.distributed import process_group  # imports torch, which a refused recipe does not need

    channel = os.environ.pop(CHANNEL, "")
    rank = process_group.rank()
    if channel:
        failure = {
            "time": time.time(),
            "rank": rank,
            "echo": any(echo in str(error) for echo in _ECHOES),
            "known": known,
            "code": code,
            "text": text[-_MAX_CHARACTERS:],
        }
        os.write(int(channel), json.dumps(failure).encode())
    elif rank == 0 or not isinstance(error, (RecipeError, NonFiniteError)):  # which all ranks raise alike
        print(text if rank == 0 else f"[rank {rank}] {text}", file=sys.stderr, flush=True)
    return code


def _text(error: BaseException, *, debug: bool) -> str:
    if isinstance(error, ArcticError) and not debug:
        return str(error)
    users = "" if debug else user_traceback(error)
    return users or "".join(traceback.format_exception(error)).rstrip()
