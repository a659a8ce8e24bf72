"""Asks the hub of Hugging Face once whether it answers, before libraries ask it again and again for half a minute."""

import time
from pathlib import Path
from typing import Literal

from arctic_training.config.checks.files import is_hub_name
from arctic_training.display.activity import activity

_TIMEOUT = 10.0
"""Seconds that the hub has to answer."""
_PAUSE = 1.0
"""Seconds between two attempts."""
_answered: set[str] = set()
"""The addresses of hubs that have answered this process."""


def unreachable_hub() -> str:
    """Returns why the hub, at the address of ``$HF_ENDPOINT``, does not answer; empty when it answers, or when
    ``$HF_HUB_OFFLINE`` forbids asking it. Any answer counts, and one attempt may fail."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE or constants.ENDPOINT in _answered:
        return ""
    why = ""
    for attempt in range(2):
        time.sleep(_PAUSE * attempt)
        try:
            get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
        except Exception as error:  # of the HTTP library of huggingface_hub, which is another one in every version
            why = " ".join(str(error).split()) or type(error).__name__
        else:
            _answered.add(constants.ENDPOINT)
            return ""
    return f"{constants.ENDPOINT} does not answer ({why})"


def unavailable(name: str, kind: Literal["model", "dataset"] = "model") -> str:
    """Returns why ``name`` cannot be loaded: it is no file or folder here, and no name that the hub can have, or it is
    not in the hub's cache of this ``kind`` (a tokenizer is in that of models), and the hub does not answer. Empty when
    one of them may have it."""
    from huggingface_hub import constants

    if Path(name).expanduser().exists():
        return ""
    if not is_hub_name(name):
        return "no such file or folder"
    folder = constants.REPO_ID_SEPARATOR.join([f"{kind}s", *name.split("/")])
    if (Path(constants.HF_HUB_CACHE) / folder / "snapshots").exists():
        return ""
    with activity(f"asking the hub for {name}"):
        why = unreachable_hub()
    return f"no folder here, and {why}; name a folder, or check the network" if why else ""
