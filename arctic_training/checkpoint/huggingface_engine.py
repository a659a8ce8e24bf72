"""Checkpoints for use elsewhere: a folder that transformers, or peft for an adapter, loads by itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field

from arctic_training import distributed
from arctic_training.checkpoint.engine import CheckpointEngine
from arctic_training.checkpoint.export import adapter_weights, merged_weights, require_mergeable, save_weights
from arctic_training.checkpoint.folder import disk_errors
from arctic_training.config.checkpoint import CheckpointConfig
from arctic_training.config.numbers import HumanInt
from arctic_training.engine.engine import Engine
from arctic_training.errors import RecipeError
from arctic_training.state import RunState


class HFCheckpointConfig(CheckpointConfig):
    type: str = "huggingface"
    merge_adapter: bool = False
    """Save a LoRA model as one whole model, its adapter added to the weights, and not as the adapter alone."""
    max_shard_size: HumanInt = Field(default=5_000_000_000, ge=1)
    """Bytes of weights in one file. Under ZeRO stage 3 no process holds more than that for saving."""


class HFCheckpointEngine(CheckpointEngine[HFCheckpointConfig]):
    """Weights in their training type, config, generation config, tokenizer and chat template.

    The primary model is in the folder itself, other trained models in a folder by their role's name.
    """

    name = "huggingface"
    config_type = HFCheckpointConfig

    def __call__(self) -> Self:
        for role, engine in self.trainer.engines.items():
            if not hasattr(engine.module, "save_pretrained"):
                what = type(engine.module).__name__
                raise RecipeError(
                    f"checkpoint.type: huggingface cannot save {role}, a {what}, which transformers does not know; "
                    "use type deepspeed"
                )
            if self.config.merge_adapter and hasattr(engine.module, "peft_config"):
                require_mergeable(engine.module)
        return super().__call__()

    def write(self, folder: Path, engines: Mapping[str, Engine], state: RunState) -> Mapping[str, Any]:
        failed: OSError | None = None
        for role, engine in engines.items():
            try:
                self._export(engine.module, folder if role == "model" else folder / role)
            except OSError as error:
                failed = failed or error  # the other models' weights must be gathered with the other processes
        if failed:
            raise failed
        if distributed.is_main() and hasattr(self.trainer.tokenizer, "save_pretrained"):
            with disk_errors():
                self.trainer.tokenizer.save_pretrained(folder)
        return {"roles": sorted(engines), "progress": self.trainer.progress.state_dict()}

    def _export(self, module: torch.nn.Module, folder: Path) -> None:
        limit = self.config.max_shard_size
        if not hasattr(module, "peft_config"):
            save_weights(module, folder, limit)
        elif self.config.merge_adapter:
            save_weights(module.get_base_model(), folder, limit, merged_weights(module))  # type: ignore[operator]
        else:
            weights = adapter_weights(module)
            if distributed.is_main():
                trained = [name for name, one in module.named_parameters() if one.requires_grad and "embed" in name]
                with disk_errors():
                    module.save_pretrained(  # type: ignore[operator]
                        folder, state_dict=weights, save_embedding_layers=bool(trained)
                    )
