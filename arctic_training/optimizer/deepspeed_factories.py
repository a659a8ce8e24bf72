"""Optimizers of DeepSpeed."""

from typing import Any

import torch
from pydantic import Field
from torch import nn

from arctic_training.config.sections.optimizer import Decay, OptimizerConfig
from arctic_training.config.sections.types import HumanFloat
from arctic_training.engine import optimizers
from arctic_training.errors.types import RecipeError
from arctic_training.optimizer.factory import OptimizerFactory, parameter_groups
from arctic_training.optimizer.torch_factories import AdamConfig


class FusedAdamFactory(OptimizerFactory[AdamConfig]):
    """Makes DeepSpeed's fused AdamW on a GPU, torch's fused AdamW elsewhere."""

    name = "fused_adam"

    def create_optimizer(self, model: nn.Module, config: AdamConfig) -> torch.optim.Optimizer:
        return optimizers.fused_adam(parameter_groups(model, config.weight_decay), **config.arguments)


class CPUAdamFactory(OptimizerFactory[AdamConfig]):
    """Makes DeepSpeed's AdamW on the CPU, for ``offload_optimizer``."""

    name = "cpu_adam"

    def create_optimizer(self, model: nn.Module, config: AdamConfig) -> torch.optim.Optimizer:
        return optimizers.cpu_adam(parameter_groups(model, config.weight_decay), **config.arguments)


class MuonConfig(OptimizerConfig):
    """The optimizer section for Muon."""

    learning_rate: HumanFloat = Field(default=2e-2, ge=0)
    """Peak learning rate of the matrices."""
    momentum: HumanFloat = Field(default=0.95, ge=0, lt=1)
    """For the weights that Muon trains: share of the last step in the next."""
    adam_learning_rate: HumanFloat = Field(default=3e-4, ge=0)
    """Peak learning rate of everything else: embeddings, output layer, biases, norms."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """For the weights that Adam trains: decay of the means of the gradient and of its square."""
    eps: HumanFloat = Field(default=1e-10, gt=0)
    """For the weights that Adam trains: added to the root of the mean square."""

    @property
    def moments(self) -> int:
        return 1  # of the matrices, which are nearly all

    def highest_stage(self, dtype: str) -> int:
        # above it DeepSpeed clips Muon's steps as if they were gradients
        return 1 if dtype == "bf16" else 0


class MuonFactory(OptimizerFactory[MuonConfig]):
    """Makes Muon for the matrices in the layers, AdamW for everything else; at stage 0, or 1 in bf16.

    Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """

    name = "muon"

    def check(self) -> None:
        """Raises `RecipeError` at a ZeRO stage that would change the algorithm, or clip its steps by value."""
        super().check()
        if self.stage and self.trainer.config.gradient_clip_value is not None:
            raise RecipeError(
                f"gradient_clip_value: at ZeRO stage {self.stage} the steps of {self.name} would be clipped and not "
                "the gradients; use max_grad_norm, or give deepspeed.zero_optimization.stage: 0"
            )

    def create_optimizer(self, model: nn.Module, config: MuonConfig) -> torch.optim.Optimizer:
        outer_ids = {id(parameter) for module in _embeddings_and_head(model) for parameter in module.parameters()}
        groups: list[dict[str, Any]] = []
        for group in parameter_groups(model, config.weight_decay):
            matrices = [p for p in group["params"] if id(p) not in outer_ids and p.dim() == 2]
            matrix_ids = {id(p) for p in matrices}
            others = [p for p in group["params"] if id(p) not in matrix_ids]
            decay = group["weight_decay"]
            if matrices:
                muon = {"lr": config.learning_rate, "momentum": config.momentum, "weight_decay": decay}
                groups.append({"params": matrices, "use_muon": True, **muon})
            if others:
                adam = {"lr": config.adam_learning_rate, "betas": config.betas, "eps": config.eps}
                groups.append({"params": others, "use_muon": False, "weight_decay": decay, **adam})
        return optimizers.muon(groups)


def _embeddings_and_head(model: nn.Module) -> list[nn.Module]:
    """Returns the embeddings and the output layer, which Adam trains."""
    modules: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [*modules, head] if isinstance(head, nn.Module) else modules
