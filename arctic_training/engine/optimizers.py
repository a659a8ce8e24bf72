"""DeepSpeed's own optimizers, some of which are compiled at their first use."""

import warnings
from typing import Any

import torch

from arctic_training.distributed import process_group
from arctic_training.engine.build_lock import build_lock
from arctic_training.logging import logger

Groups = list[dict[str, Any]]
"""Parameter groups as torch's optimizers take them."""


def fused_adam(groups: Groups, *, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Returns DeepSpeed's fused AdamW on a GPU; torch's where there is none, or where DeepSpeed's cannot be built."""
    if torch.cuda.is_available():
        process_group.init_deepspeed()
        try:
            from deepspeed.ops.adam import FusedAdam

            with build_lock("fused_adam"):
                optimizer: torch.optim.Optimizer = FusedAdam(groups, lr=lr, betas=betas, eps=eps, adam_w_mode=True)
            return optimizer
        except Exception as error:
            logger.warning(f"cannot build DeepSpeed's fused Adam here, using torch's: {error}")
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def cpu_adam(groups: Groups, *, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Returns DeepSpeed's AdamW for optimizer states in CPU memory. Compiled at its first use."""
    process_group.init_deepspeed()
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    with build_lock("cpu_adam"):
        optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, lr=lr, betas=betas, eps=eps)
    return optimizer


def muon(groups: Groups) -> torch.optim.Optimizer:
    """Returns DeepSpeed's Muon, which supports ZeRO's partitions; groups without ``use_muon`` get AdamW.

    Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """
    process_group.init_deepspeed()
    with warnings.catch_warnings(action="ignore"):
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    for group in groups:
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]
    optimizer: torch.optim.Optimizer = MuonWithAuxAdam(groups)
    return optimizer
