"""Checkpoints for use elsewhere: a folder that transformers, or peft for an adapter, can load."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from pydantic import Field

from arctic_training.checkpoint.adapter import (
    base_weights,
    dry_run_adapter,
    plain_base,
    require_mergeable,
    save_adapter,
)
from arctic_training.checkpoint.background import Staged
from arctic_training.checkpoint.checkpointer import Checkpointer
from arctic_training.checkpoint.export import dry_run_weights, save_weights, stage_weights
from arctic_training.checkpoint.folder import disk_errors, list_files, step_folder
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.config.sections.types import HumanInt
from arctic_training.distributed import process_group
from arctic_training.engine.engine import Engine
from arctic_training.errors.types import RecipeError
from arctic_training.state import RunState

T = TypeVar("T")


class HFCheckpointConfig(CheckpointConfig):
    """``checkpoint: {type: huggingface}``."""

    type: str = "huggingface"
    merge_adapter: bool = False
    """Save a LoRA model as one whole model, its adapter added to the weights, and not as the adapter alone."""
    max_shard_size: HumanInt = Field(default=5_000_000_000, ge=1)
    """Bytes of weights in one file. Under ZeRO stage 3 no process holds more than that for saving."""


class HFCheckpointEngine(Checkpointer[HFCheckpointConfig]):
    """Saves weights in their training dtype, config, generation config, tokenizer and chat template.

    The model of the role ``model`` is in the folder itself, other trained models in a subfolder by their role's name.
    """

    name = "huggingface"

    def __call__(self) -> Self:
        self.dry_run({role: engine.module for role, engine in self.trainer.engines.items()})
        return super().__call__()

    def dry_run(self, models: Mapping[str, torch.nn.Module]) -> None:
        for role, model in models.items():
            if not hasattr(model, "save_pretrained"):
                raise RecipeError(
                    f"checkpoint.type: huggingface cannot save {role}, a {type(model).__name__}, which transformers "
                    "does not know; use type deepspeed"
                )
            if not hasattr(model, "peft_config"):
                dry_run_weights(model)
            elif self.config.merge_adapter:
                require_mergeable(model)
                dry_run_weights(plain_base(model), base_weights(model, merged=True))
            else:
                dry_run_adapter(model)

    def write(self, folder: Path, engines: Mapping[str, Engine], state: RunState) -> Mapping[str, Any]:
        self.export(folder, engines, step_folder(self.output_dir, self.trainer.progress.step))
        return self._role_entries(engines)

    def export(self, folder: Path, engines: Mapping[str, Engine], final: Path) -> None:
        """Writes the models of ``engines``, by role, and the tokenizer into ``folder``, to be renamed to ``final``.

        Raises OSError only after everything was gathered.
        """
        self._save_each(folder, engines, final, save_weights)

    def stage(self, folder: Path, engines: Mapping[str, Engine], state: RunState) -> Staged:
        """Copies the weights to the memory of rank 0. What is small, such as an adapter and the tokenizer, is written
        at once: the tokenizer may be in use meanwhile."""
        final = step_folder(self.output_dir, self.trainer.progress.step)
        writers = self._save_each(folder, engines, final, stage_weights)

        def write() -> list[str]:
            for writer in writers:
                writer()
            return list_files(folder) if process_group.is_main() else []

        return Staged(write, self._role_entries(engines))

    def _save_each(
        self, folder: Path, engines: Mapping[str, Engine], final: Path, save: Callable[..., T | None]
    ) -> list[T]:
        """Passes the model of each role to ``save``, `save_weights` or `stage_weights`, and writes the other files.

        Returns what ``save`` returned. Raises OSError only after everything was gathered.
        """
        failure: OSError | None = None
        limit, results = self.config.max_shard_size, list[T | None]()
        for role, engine in engines.items():
            model, part = engine.module, "" if role == "model" else role
            try:
                with self.trainer.averaged(role, purpose="export"):
                    if not hasattr(model, "peft_config"):
                        results.append(save(model, folder / part, limit))
                    elif self.config.merge_adapter:
                        results.append(save(plain_base(model), folder / part, limit, base_weights(model, merged=True)))
                    else:
                        results.append(save_adapter(model, folder / part, limit, final=final / part, save=save))
            except OSError as error:
                failure = failure or error  # all ranks must gather the other models' weights too
        if failure:
            raise failure
        if process_group.is_main():
            with disk_errors():
                self._write_files(folder)
        return [one for one in results if one is not None]

    def _role_entries(self, engines: Mapping[str, Engine]) -> dict[str, Any]:
        return {"roles": sorted(engines), "progress": self.trainer.progress.state_dict()}

    def _write_files(self, folder: Path) -> None:
        tokenizer = self.trainer.tokenizer
        if tokenizer is not None and hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(folder)
        for name, text in self.trainer.export_files().items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
