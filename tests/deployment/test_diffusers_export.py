"""A network of diffusers that was trained is loaded by its own class, and computes the same: weights and averages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arctic_training import DiffusionTrainer, get_config, load_network, load_pretrained
from arctic_training.checkpoint.saved_model import find_saved_model
from arctic_training.deployment.export import ExportOptions, export
from arctic_training.errors.types import InputError
from tests.model.test_diffusers_factory import NETWORKS
from tests.processes import share

diffusers = pytest.importorskip("diffusers")
Outputs = dict[str, torch.Tensor]


def pictures() -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * 64).reshape(2, 8, 8)


def train(folder: str, stage: int = 0, class_name: str = "UNet2DModel") -> Outputs:
    """Trains for two steps; returns the outputs of weights and averages for `pictures` at the time 0.25, of label 1."""
    data = Path(folder) / f"rows_{stage}.npz"
    np.savez(data, rows=np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32), labels=np.arange(8) % 3)
    recipe = {
        "type": "diffusion",
        "model": {"type": "diffusers", "class_name": class_name, "config": NETWORKS[class_name], "num_labels": 3},
        "data": {"sources": [str(data)]},
        "optimizer": {"lr": 1e-2},
        "scheduler": {"name": "constant"},
        "deepspeed": {"zero_optimization": {"stage": stage}},
        "callbacks": [{"type": "ema", "decay": 0.5, "export": True}],
        "checkpoint": [{"type": kind, "save_end_of_training": True} for kind in ("deepspeed", "huggingface")],
        "micro_batch_size": 2,
        "train_iters": 2,
        "loss_log_interval": 0,
        "output_dir": f"{folder}/run",
        "logger": {"level": "ERROR"},
    }
    trainer = DiffusionTrainer(get_config(recipe))
    trainer.train()
    trainer.save_model(f"{folder}/saved")
    trainer.model.eval()
    outputs = {"weights": predicted(trainer.model)}
    with trainer.averaged("model"):
        outputs["averages"] = predicted(trainer.model)
    trainer.close()
    return outputs


@torch.no_grad()
def predicted(network: Any) -> torch.Tensor:
    outputs: torch.Tensor = network(pictures(), torch.full([2], 0.25), torch.ones(2, dtype=torch.int64))
    return outputs


@torch.no_grad()
def loaded(folder: Path, class_name: str) -> torch.Tensor:
    """As any user of diffusers does."""
    network = getattr(diffusers, class_name).from_pretrained(folder).eval()
    times, labels = torch.full([2], 250), torch.ones(2, dtype=torch.int64)
    outputs: torch.Tensor = network(pictures()[:, None], times, class_labels=labels).sample
    return outputs[:, 0]


def check(outputs: Outputs, folder: Path, class_name: str = "UNet2DModel") -> None:
    """Compares every way out of a run."""
    averages, weights = outputs["averages"], outputs["weights"]
    assert not torch.allclose(averages, weights, rtol=1e-2)
    close = {"rtol": 1e-4, "atol": 1e-5}
    for saved in (folder / "saved", folder / "run/checkpoints/huggingface/step_2"):
        torch.testing.assert_close(loaded(saved, class_name), averages, **close)
    for averaged, expected in ((False, weights), (True, averages)):
        target = folder / f"exported_{averaged}"
        export(find_saved_model(str(folder / "run/checkpoints/deepspeed")), target, ExportOptions(averaged=averaged))
        torch.testing.assert_close(loaded(target, class_name), expected, **close)
        assert "library_name: diffusers" in (target / "README.md").read_text()
        network = load_network(folder / "run/checkpoints/deepspeed", averaged=averaged, device="cpu")
        torch.testing.assert_close(predicted(network), expected, **close)


@pytest.mark.parametrize("class_name", NETWORKS)
def test_a_run_of_one_process(tmp_path: Path, class_name: str) -> None:
    check(train(str(tmp_path), class_name=class_name), tmp_path, class_name)
    with pytest.raises(InputError, match="a DiffusersNetwork, which transformers does not know; use load_network"):
        load_pretrained(tmp_path / "run/checkpoints/deepspeed")
    with pytest.raises(InputError, match="no checkpoint of type deepspeed"):
        load_network(tmp_path / "saved")


def test_weights_that_processes_share(tmp_path: Path) -> None:
    outputs, _ = share(train, 2, str(tmp_path), 3)
    check(outputs, tmp_path)
