"""However a global batch is cut into micro-batches, accumulation steps and ranks, the gradient is the same."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import get_config
from arctic_training.distributed import process_group
from arctic_training.registry import lookup
from tests import processes
from tests.contract.cases import recipe
from tests.covering import covering


def gradients(settings: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Returns the full gradient of each step, before clipping, as every rank sees it."""
    from arctic_training.engine.zero import full_gradient

    config = get_config(settings)
    trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    seen: list[dict[str, torch.Tensor]] = []

    def look(self: Any) -> None:
        if self.window.is_last_micro_batch:
            gradients_of = {
                name: full_gradient(p) for name, p in self.model.module.named_parameters() if p.requires_grad
            }
            seen.append({name: gradient.clone() for name, gradient in gradients_of.items() if gradient is not None})

    trainer.listen("post-backward", look)
    trainer.train()
    trainer.close()
    return seen


def cut(name: str, root: str, micro: int, accumulate: int, stage: int, shared: int, more: dict[str, Any]) -> Any:
    process_group.init_process_group()
    files = Path(root) / "files"
    if process_group.is_main():
        recipe(name, files)
    process_group.barrier()
    settings = recipe(
        name,
        files,
        output_dir=str(Path(root) / f"run_{micro}_{accumulate}_{process_group.world_size()}"),
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        sequence_parallel_size=shared,
        epochs=1,
        deepspeed={"zero_optimization": {"stage": stage}},
    )
    settings["model"]["hf_config_kwargs"] = {}  # dropout is drawn batch by batch
    settings["data"] = {**settings["data"], **more}
    settings["optimizer"] = {"type": "sgd", "lr": 0.1, "weight_decay": 0}  # as sensitive as it gets: no normalisation
    return gradients(settings)


def require_same(expected: list[dict[str, torch.Tensor]], mine: list[dict[str, torch.Tensor]], where: str) -> None:
    for update, (want, got) in enumerate(zip(expected, mine, strict=True)):
        assert want.keys() == got.keys()
        scale = max(float(gradient.norm()) for gradient in want.values())
        for key, gradient in want.items():
            error = float((got[key].reshape(gradient.shape) - gradient).norm()) / scale
            assert error < 1e-6, f"{where}, step {update}, {key}: {error}"


@pytest.mark.fault(16, 17)
@pytest.mark.parametrize("name", ["sft", "dpo", "grpo", "seq2seq", "kto", "embedding"])
def test_the_gradient_does_not_depend_on_the_cut(name: str, tmp_path: Path) -> None:
    (expected,) = processes.share(cut, 1, name, str(tmp_path), 4, 1, 0, 1, {})
    assert len(expected) == 3  # 10 rows by 4: two whole windows and one of 2 rows
    for micro, accumulate, world, stage in [(2, 2, 1, 0), (1, 4, 1, 0), (2, 1, 2, 1), (1, 2, 2, 3)]:
        for mine in processes.share(cut, world, name, str(tmp_path), micro, accumulate, stage, 1, {}):
            require_same(expected, mine, f"{micro} x {accumulate} x {world}")


SHARED = list(product(("causal", "sft", "dpo", "grpo", "kto"), (True, False), ((4, 1, 0), (1, 4, 3))))
"""The trainer, whether it packs, and micro_batch_size, gradient_accumulation_steps and ZeRO stage."""
FEW = covering(SHARED)


@pytest.mark.parametrize(
    ("name", "packs", "layout"),
    [
        pytest.param(*one, marks=[pytest.mark.fault(16), *([] if one in FEW else [pytest.mark.nightly])])
        for one in SHARED
    ],
)
def test_the_gradient_does_not_depend_on_who_shares_a_sequence(
    name: str, packs: bool, layout: tuple[int, int, int], tmp_path: Path
) -> None:
    micro, accumulate, stage = layout
    more: dict[str, Any] = {"pack_samples": packs}
    if packs and name in ("sft", "causal"):
        more["max_length"] = 120  # not all of it in one row
    (expected,) = processes.share(cut, 1, name, str(tmp_path), micro, accumulate, 0, 1, more)
    for mine in processes.share(cut, 2, name, str(tmp_path), micro, accumulate, stage, 2, more):
        require_same(expected, mine, f"{micro} x {accumulate}, stage {stage}")
