"""However a global batch is cut into micro-batches, accumulation steps and ranks, the gradient is the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import distributed, get_config
from arctic_training.registry import lookup
from tests import processes
from tests.contract.cases import recipe


def gradients(told: dict[str, Any], updates: int) -> list[dict[str, torch.Tensor]]:
    """The whole gradient of each update, before clipping, as every rank sees it."""
    from arctic_training.engine.zero import full_gradient

    config = get_config(told)
    trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    seen: list[dict[str, torch.Tensor]] = []

    def look(self: Any) -> None:
        if self.window.closes:
            found = {name: full_gradient(p) for name, p in self.model.module.named_parameters() if p.requires_grad}
            seen.append({name: gradient.clone() for name, gradient in found.items() if gradient is not None})

    trainer.listen("post-backward", look)
    trainer.train()
    trainer.close()
    assert len(seen) == updates, f"{len(seen)} updates"
    return seen


def cut(name: str, root: str, micro: int, accumulate: int, stage: int, more: dict[str, Any]) -> Any:
    distributed.init()
    files = Path(root) / "files"
    if distributed.is_main():
        recipe(name, files)
    distributed.barrier()
    told = recipe(
        name,
        files,
        output_dir=str(Path(root) / f"run_{micro}_{accumulate}_{distributed.world_size()}"),
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        epochs=1,
        deepspeed={"zero_optimization": {"stage": stage}},
    )
    told["model"]["hf_config_kwargs"] = {}  # dropout is drawn batch by batch
    told["data"] = {**told["data"], **more}
    told["optimizer"] = {"type": "sgd", "lr": 0.1, "weight_decay": 0}  # as sensitive as it gets: no normalisation
    return gradients(told, updates=3)  # 10 rows by 4: two whole windows and one of 2 rows


@pytest.mark.fault(16, 17)
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_the_gradient_does_not_depend_on_the_cut(name: str, tmp_path: Path) -> None:
    (whole,) = processes.share(cut, 1, name, str(tmp_path), 4, 1, 0, {})
    for micro, accumulate, world, stage in [(2, 2, 1, 0), (1, 4, 1, 0), (2, 1, 2, 1), (1, 2, 2, 3)]:
        for mine in processes.share(cut, world, name, str(tmp_path), micro, accumulate, stage, {}):
            for update, (want, got) in enumerate(zip(whole, mine, strict=True)):
                assert want.keys() == got.keys()
                scale = max(float(gradient.norm()) for gradient in want.values())
                for key, gradient in want.items():
                    error = float((got[key].reshape(gradient.shape) - gradient).norm()) / scale
                    assert error < 1e-6, f"{micro} x {accumulate} x {world}, update {update}, {key}: {error}"
