"""Keeps a run and the program around it apart: torch's modes and the environment."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from arctic_training.distributed import environment


@contextmanager
def isolated_run() -> Iterator[None]:
    """Computes gradients, in the dtypes of the recipe, also inside a program's ``torch.no_grad``,
    ``torch.inference_mode`` or ``torch.autocast``; has `restore_env` undo what libraries set inside the block."""
    with ExitStack() as stack:
        stack.enter_context(environment.track_env())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
