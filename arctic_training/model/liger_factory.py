"""Models of transformers with Liger's fused kernels."""

import importlib.util
from typing import Any

import torch
from torch import nn

from arctic_training.errors import MissingDependencyError, ModelError
from arctic_training.model.huggingface_factory import HFModelFactory


class LigerModelFactory(HFModelFactory):
    """The same models with Liger's norms, rotations and MLPs, which are written for GPUs."""

    name = "liger"

    def check(self) -> None:
        self._require_kernels()
        super().check()

    def _require_kernels(self) -> None:
        if importlib.util.find_spec("liger_kernel") is None:
            raise MissingDependencyError("model.type: liger needs the library liger-kernel: pip install liger-kernel")
        if not torch.cuda.is_available():
            raise ModelError("model.type: liger has kernels for GPUs, and there is none; use type: huggingface")

    def create_model(self, config: Any) -> nn.Module:
        self._require_kernels()
        model = super().create_model(config)
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        # the loss is this package's own, at the targets only
        _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)
        return model
