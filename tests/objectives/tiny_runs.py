"""Runs of a trainer on a tiny model and a few rows, and the weights that they train."""

import json
from pathlib import Path
from typing import Any

import torch

from arctic_training import get_config
from arctic_training.registry import lookup
from tests import tiny


def save_files(folder: Path, rows_name: str, rows: list[dict[str, str]]) -> dict[str, Any]:
    """Saves the model and the rows, unless they are there, and returns the sections of a recipe that use them."""
    if not (folder / "model").exists():
        tiny.save_model(folder / "model")
        (folder / rows_name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"name_or_path": str(folder / "model"), "dtype": "fp32"},
        "data": {"sources": [str(folder / rows_name)], "max_length": 128, "cache_dir": str(folder / "cache")},
    }


def make_trainer(folder: Path, sections: dict[str, Any], **keys: Any) -> Any:
    """Returns a trainer of three steps; ``keys`` replace those of the recipe, and are merged into its sections."""
    merged = {name: {**section, **keys.pop(name, {})} for name, section in sections.items()}
    recipe = {
        "optimizer": {"type": "sgd", "lr": 0.5},
        "deepspeed": {"gradient_clipping": 0},
        "scheduler": {"warmup_ratio": 0},
        "train_iters": 3,
        "loss_log_interval": 0,
        "output_dir": str(folder / "run"),
        "logger": {"level": "ERROR"},
        **merged,
        **keys,
    }
    config = get_config(recipe)
    return lookup("trainer", config.type)(config)  # type: ignore[call-arg]


def loss_and_gradients(trainer: Any, batch: Any, *, keep: bool = False) -> tuple[float, list[torch.Tensor]]:
    """Returns the loss of a micro-batch, and its gradient in each trained parameter, through the engine; nothing is
    left of it unless they are to ``keep``. The window has as many micro-batches as the recipe says."""
    from arctic_training.engine.zero import full_gradient

    loss = trainer.loss(batch)
    trainer.backward(loss)
    gradients = []
    for parameter in filter(lambda one: one.requires_grad, trainer.model.module.parameters()):
        gradient = full_gradient(parameter)
        assert gradient is not None
        gradients.append(gradient.clone())
        parameter.grad = parameter.grad if keep else None
    return float(loss.detach()), gradients


def train(trainer: Any) -> dict[str, torch.Tensor]:
    """Trains, closes the trainer, and returns the trained weights, whole at any ZeRO stage."""
    from arctic_training.engine.zero import full_parameter

    trainer.train()
    parameters = trainer.model.module.named_parameters()
    weights = {name: full_parameter(one).detach().clone() for name, one in parameters if one.requires_grad}
    trainer.close()
    return weights


def gradients(trainer: Any, loss: torch.Tensor, role: str = "model") -> dict[str, torch.Tensor | None]:
    """Returns the gradient of ``loss`` by the engine of a role of ``trainer``, for each weight."""
    from arctic_training.engine.zero import full_gradient

    engine = trainer.engines[role]
    engine.set_gradient_accumulation_boundary(True)
    engine.backward(loss)
    return {name: full_gradient(one) for name, one in engine.module.named_parameters()}
