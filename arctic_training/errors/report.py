"""How a process tells why it failed: to the launcher that started it, or on standard error."""

import json
import os
import sys
import time
import traceback

from arctic_training.errors.redaction import redact
from arctic_training.errors.types import ArcticError, NonFiniteError, RecipeError
from arctic_training.errors.user_traceback import user_traceback

CHANNEL = "ARCTIC_TRAINING_FAILURE_FD"
"""The environment variable that holds the file descriptor to which a process that was launched here tells."""

_MOST = 30_000
"""Characters; what a pipe takes without a reader."""
_ECHOES = ("the first process", "closed by peer", "Connection reset", "Broken pipe", "NCCL communicator was aborted")
"""What a process says when another one has failed."""


def _text(error: BaseException, *, debug: bool) -> str:
    if isinstance(error, ArcticError) and not debug:
        return str(error)
    own = "" if debug else user_traceback(error)
    return own or "".join(traceback.format_exception(error)).rstrip()


def report(error: BaseException, *, debug: bool = False) -> int:
    """Tell ``error``: one raised on purpose by its text, any other by its traceback, as far as it is the user's own if
    he has a part in it; the exit code."""
    wanted = isinstance(error, ArcticError)
    text = redact(_text(error, debug=debug))
    code = error.exit_code if isinstance(error, ArcticError) else 1
    from arctic_training.distributed import process_group  # a recipe that is refused needs no torch

    channel = os.environ.pop(CHANNEL, "")
    rank = process_group.rank()
    if channel:
        echo = any(word in str(error) for word in _ECHOES)
        told = {"time": time.time(), "rank": rank, "echo": echo, "known": wanted, "code": code, "text": text[-_MOST:]}
        os.write(int(channel), json.dumps(told).encode())
    elif rank == 0 or not isinstance(error, (RecipeError, NonFiniteError)):  # every rank says these alike
        print(text if rank == 0 else f"[rank {rank}] {text}", file=sys.stderr, flush=True)
    return code
