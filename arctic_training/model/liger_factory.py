"""Models of transformers with Liger's fused kernels."""

import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import nn

from arctic_training.errors.types import MissingDependencyError, ModelError
from arctic_training.model.huggingface_factory import HFModelFactory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class LigerModelFactory(HFModelFactory):
    """Makes the same models with Liger's GPU kernels for norms, rotary positions and MLPs."""

    name = "liger"

    def check(self) -> None:
        """Raises `MissingDependencyError` or `ModelError` where Liger cannot be used; see also the base."""
        self._require_kernels()
        self._require_supported(self.create_config())
        super().check()

    def _require_kernels(self) -> None:
        """Raises `MissingDependencyError` without the library, `ModelError` without a GPU."""
        if importlib.util.find_spec("liger_kernel") is None:
            raise MissingDependencyError("model.type: liger needs the library liger-kernel: pip install liger-kernel")
        if not torch.cuda.is_available() and self.trainer.device.type != "meta":
            raise ModelError("model.type: liger has kernels for GPUs, and this machine has none; use type: huggingface")

    def _require_supported(self, config: "PreTrainedConfig") -> None:
        """Raises `ModelError` for models that Liger would leave unchanged, with a line in a log only."""
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as SUPPORTED

        if {config.model_type, config.get_text_config().model_type}.isdisjoint(SUPPORTED):
            raise ModelError(
                f"model.type: liger has no kernels for models of type {config.model_type}; use type: huggingface, "
                f"or a model of type {', '.join(sorted(SUPPORTED))}"
            )

    def create_model(self, config: "PreTrainedConfig") -> nn.Module:
        self._require_kernels()
        self._require_supported(config)
        model = super().create_model(config)
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        # the loss is computed by `token_losses`
        _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)
        return model
