"""Tiled MLPs, selective checkpointing and offload leave the gradient as it is, whatever they are combined with."""

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from arctic_training.distributed import process_group
from tests import processes
from tests.contract.cases import recipe
from tests.covering import covering
from tests.trainer.test_cut import gradients, require_same


class Setting(NamedTuple):
    objective: str
    stage: int
    tokens: int
    """Of a tile; 0: MLPs are not tiled."""
    again: bool | str
    """``activation_checkpointing``."""
    adapter: str
    packs: bool
    sharing: str
    """One process, two with rows of their own, or two that share each row."""


CUTS = {"one": (4, 1, 1), "two": (1, 2, 2), "shared": (4, 1, 2)}
"""micro_batch_size, gradient_accumulation_steps and processes: the same global batch."""
PACKS = ("sft", "dpo", "grpo")


def is_possible(one: Setting) -> bool:
    """Whether it is no plain run, and reads the rows of one."""
    reads_same = one.objective in PACKS and not (one.packs and one.sharing == "two")
    return bool(one.tokens or one.again) and (reads_same or not (one.packs or one.sharing == "shared"))


EVERY = [
    Setting(*row)
    for row in product(
        ("sft", "dpo", "grpo", "distill", "embedding"),
        (0, 2, 3),
        (0, 5),
        (False, True, "selective"),
        ("", "all-linear"),
        (False, True),
        CUTS,
    )
    if is_possible(Setting(*row))
]


def step(setting: Setting, root: str) -> Any:
    """The gradients of the first step."""
    process_group.init_process_group()
    files = Path(root) / "files"
    if process_group.is_main():
        recipe(setting.objective, files)
    process_group.barrier()
    micro, accumulate, _ = CUTS[setting.sharing]
    settings = recipe(
        setting.objective,
        files,
        output_dir=str(Path(root) / "_".join(map(str, setting))),
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        sequence_parallel_size=2 if setting.sharing == "shared" else 1,
        train_iters=1,
        deepspeed={"zero_optimization": {"stage": setting.stage}},
        activation_checkpoint_cpu_offload=setting.again is not False,
    )
    settings["model"] |= {"hf_config_kwargs": {}, "activation_checkpointing": setting.again}
    settings["model"]["transforms"] = [{"type": "tiled_mlp", "tokens": setting.tokens}] if setting.tokens else []
    if setting.adapter:
        starts_as_base = setting.objective in ("dpo", "grpo")  # which is their reference
        adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "target_modules": setting.adapter}
        adapter["init_lora_weights"] = starts_as_base
        settings["model"]["peft_config"] = adapter
    settings["data"] |= {"pack_samples": True} if setting.packs else {}
    settings["optimizer"] = {"type": "sgd", "lr": 0.1, "weight_decay": 0}
    return gradients(settings)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def gradients_of(objective: str, adapter: str, packs: bool) -> Any:
        setting = Setting(objective, 0, 0, False, adapter, packs, "one")
        (values,) = processes.share(step, 1, setting, str(tmp_path_factory.mktemp("plain")))
        return values

    return gradients_of


@pytest.mark.parametrize("setting", covering(EVERY), ids=lambda setting: "-".join(map(str, setting)))
def test_the_gradient_is_that_of_a_plain_run(setting: Setting, plain: Any, tmp_path: Path) -> None:
    expected = plain(setting.objective, setting.adapter, setting.packs)
    for mine in processes.share(step, CUTS[setting.sharing][2], setting, str(tmp_path)):
        require_same(expected, mine, str(setting))


@pytest.mark.parametrize("stage", [1, 3])
def test_an_mlp_whose_input_needs_no_gradient_gets_its_own(stage: int, plain: Any, tmp_path: Path) -> None:
    """The adapter of the first layer's MLP, below which nothing is trained: DeepSpeed's own tiles have none for it."""
    expected = plain("sft", ".*(gate|up|down)_proj", False)
    assert any("layers.0.mlp" in name and value.any() for name, value in expected[0].items())
    setting = Setting("sft", stage, 5, False, ".*(gate|up|down)_proj", False, "one")
    (mine,) = processes.share(step, 1, setting, str(tmp_path))
    require_same(expected, mine, str(setting))
