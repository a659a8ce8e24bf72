"""Who this process is among the processes of the run, and what they say to one another."""

import os

import torch


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    return rank() == 0


def device() -> torch.device:
    """Where this process computes."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
