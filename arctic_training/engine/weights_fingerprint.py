"""Digests of weights, by which a run knows whether those of a model are the same as before."""

import hashlib

import torch
from torch import Tensor, nn

from arctic_training.distributed import process_group
from arctic_training.engine.zero import gathered


def weights_fingerprint(module: nn.Module, *, frozen_alone: bool = False) -> str:
    """Returns a digest of the module's parameters and buffers, the same at every ZeRO stage and on every mesh.

    With ``frozen_alone`` it is that of the parameters that are not trained. All ranks call it; that of rank 0 counts.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in module.named_parameters():
        if frozen_alone and parameter.requires_grad:
            continue
        with gathered([parameter]):
            if process_group.is_main():
                _add(digest, name, parameter)
    for name, buffer in () if frozen_alone else module.named_buffers():
        _add(digest, name, buffer)
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
