"""Uploads an exported model to the hub of Hugging Face."""

import re
from pathlib import Path

from arctic_training.config.checks.hub import unreachable_hub
from arctic_training.errors.types import InputError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def require_token(repository: str) -> str:
    """Returns the token of the hub: that of ``$HF_TOKEN``, or the one that ``hf auth login`` has stored.

    Raises `InputError` when no token is found, when the hub does not answer, and for a name that no repository can
    have.
    """
    from huggingface_hub import constants, get_token

    if not _REPOSITORY.fullmatch(repository):
        raise InputError(f"--push-to-hub: {repository!r}: expected OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise InputError("--push-to-hub: HF_HUB_OFFLINE is set; unset it to upload")
    if not (token := get_token()):
        raise InputError("--push-to-hub: no token; set HF_TOKEN, or log in with: hf auth login")
    if why := unreachable_hub():
        raise InputError(f"--push-to-hub: {why}; check the network")
    return token


def push_to_hub(folder: Path, repository: str, token: str, *, private: bool) -> str:
    """Uploads all files of ``folder`` in one commit, creating the repository if there is none, and returns its address.

    Raises `InputError` with what the hub answers when it refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload the exported model")
    except Exception as error:  # also of the HTTP library of huggingface_hub, which is another one in every version
        text = " ".join(str(error).split())[:300]
        raise InputError(f"--push-to-hub: {repository}: {text}; what was exported is in {folder}") from error
    return str(url)
