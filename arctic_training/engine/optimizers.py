"""DeepSpeed's own optimizers."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

from arctic_training.distributed import process_group
from arctic_training.engine.build_lock import compiling
from arctic_training.logging import logger

Groups = list[dict[str, Any]]


def fused_adam(groups: Groups, *, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """DeepSpeed's fused AdamW on a GPU; torch's where there is none, or where DeepSpeed's cannot be built."""
    if torch.cuda.is_available():
        process_group.init_deepspeed()
        try:
            from deepspeed.ops.adam import FusedAdam

            with compiling("fused_adam"):
                made: torch.optim.Optimizer = FusedAdam(groups, lr=lr, betas=betas, eps=eps, adam_w_mode=True)
            return made
        except Exception as error:
            logger.warning(f"DeepSpeed's fused Adam cannot be built here, torch's takes its place: {error}")
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def cpu_adam(groups: Groups, *, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """DeepSpeed's AdamW for optimizer states in the CPU's memory. Compiled at its first use."""
    return _compiled("cpu_adam", lambda adam, _: adam.DeepSpeedCPUAdam(groups, lr=lr, betas=betas, eps=eps))


def lion(groups: Groups, *, lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """DeepSpeed's Lion, for the GPU or the CPU. Compiled at its first use."""
    if torch.cuda.is_available():
        return _compiled("fused_lion", lambda _, lion: lion.FusedLion(groups, lr=lr, betas=betas))
    return _compiled("cpu_lion", lambda _, lion: lion.DeepSpeedCPULion(groups, lr=lr, betas=betas))


def muon(groups: Groups) -> torch.optim.Optimizer:
    """DeepSpeed's Muon, which knows of ZeRO's partitions; groups without ``use_muon`` get AdamW.

    Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """
    process_group.init_deepspeed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    for group in groups:
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]
    made: torch.optim.Optimizer = MuonWithAuxAdam(groups)
    return made


def _compiled(op: str, make: Callable[[Any, Any], Any]) -> torch.optim.Optimizer:
    process_group.init_deepspeed()
    from deepspeed.ops import adam, lion

    with compiling(op):
        made: torch.optim.Optimizer = make(adam, lion)
    return made
