"""However a global batch is cut into micro-batches, accumulation steps and ranks, the gradient is the same."""

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from arctic_training import get_config
from arctic_training.distributed import process_group
from arctic_training.registry import lookup
from tests import processes
from tests.contract.cases import CASES, recipe
from tests.covering import covering, pairs


def gradients(settings: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Returns the full gradient of each step of every role, before clipping, as every rank sees it."""
    from arctic_training.engine.zero import full_gradient

    config = get_config(settings)
    trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    seen: list[dict[str, torch.Tensor]] = []

    def watch(role: str, engine: Any) -> None:
        step = engine.step

        def watched() -> None:
            if trainer.window.is_last_micro_batch:
                parameters = {n: one for n, one in engine.module.named_parameters() if one.requires_grad}
                full = {f"{role}.{name}": full_gradient(one) for name, one in parameters.items()}
                seen.append({name: gradient.clone() for name, gradient in full.items() if gradient is not None})
            step()

        engine.step = watched

    for role, engine in trainer.trainable_engines.items():
        watch(role, engine)
        for part in engine.module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0  # it is drawn batch by batch
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
    if "hf_config_kwargs" in settings["model"]:
        settings["model"]["hf_config_kwargs"] = {}
    settings["data"] = {**settings["data"], **more}
    for key in {"optimizer", "discriminator_optimizer", "critic_optimizer"} & settings.keys():
        settings[key] = {"type": "sgd", "lr": 0.1, "weight_decay": 0}  # as sensitive as it gets: no normalisation
    return gradients(settings)


DIFFERENCES = {"reward": 5e-6}
"""How near the gradient is, of trainers for which it is the difference of two gradients that are ten times as large."""


def require_same(name: str, expected: list[dict[str, torch.Tensor]], mine: list[dict[str, torch.Tensor]]) -> None:
    for update, (want, got) in enumerate(zip(expected, mine, strict=True)):
        assert want.keys() == got.keys()
        scale = max(float(gradient.norm()) for gradient in want.values())
        assert scale > 0
        for key, gradient in want.items():
            error = float((got[key].reshape(gradient.shape) - gradient).norm()) / scale
            assert error < DIFFERENCES.get(name, 1e-6), f"step {update}, {key}: {error}"


Layout = tuple[str, tuple[int, int, int], int]
"""The trainer, micro_batch_size, gradient_accumulation_steps and processes, and the ZeRO stage."""
LAYOUTS: list[Layout] = list(product(CASES, ((2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)), range(4)))
TENSORS = ("diffusion", "energy", "flow", "gan", "tensor_classifier", "vae")
"""Trainers whose networks take a moment."""


def shown(one: Layout) -> set[Any]:
    """Returns every two settings; of a language model, only whether there are two processes, and sharded weights."""
    name, layout, stage = one
    few = (name, layout[2], "sharded" if stage == 3 else "full")
    return pairs(one if name in TENSORS else few) | pairs(one[1:])


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def gradients_of(name: str, size: int) -> Any:
        (values,) = processes.share(cut, 1, name, str(tmp_path_factory.mktemp(name)), size, 1, 0, 1, {})
        return values

    return gradients_of


@pytest.mark.parametrize(
    ("name", "layout", "stage"),
    [
        pytest.param(*one, marks=[pytest.mark.fault(16, 17), *([] if one in chosen else [pytest.mark.nightly])])
        for chosen in [covering(LAYOUTS, shown)]
        for one in LAYOUTS
    ],
)
def test_the_gradient_does_not_depend_on_the_cut(
    name: str, layout: tuple[int, int, int], stage: int, uncut: Any, tmp_path: Path
) -> None:
    """Of whole windows and one that is short."""
    micro, accumulate, world = layout
    times = 2 if "type" in CASES[name](tmp_path)["model"] else 1  # there are twice as many rows of tensors
    expected = uncut(name, 4 * times)
    assert len(expected) >= 3
    for mine in processes.share(cut, world, name, str(tmp_path), micro * times, accumulate, stage, 1, {}):
        require_same(name, expected, mine)


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
        require_same(name, expected, mine)
