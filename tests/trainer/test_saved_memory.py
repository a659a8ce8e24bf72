"""Tiled MLPs, selective checkpointing and offload leave loss and gradient as they are, whatever they go with."""

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
from tests.trainer.test_same_run import records


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
SHARES = ("sft", "dpo", "grpo", "kto", "ppo", "distill")
PACKS = (*SHARES, "autoregressive")
OTHERS = ("seq2seq", "reward", "classifier", "embedding")
REFERENCED = ("dpo", "grpo", "kto", "ppo")
"""Their reference is the model without its adapter, which starts as that."""


def is_possible(one: Setting) -> bool:
    """Whether it is no plain run, and reads the rows of one."""
    packs_same = not one.packs or (one.objective in PACKS and one.sharing != "two")
    return bool(one.tokens or one.again) and packs_same and (one.sharing != "shared" or one.objective in SHARES)


EVERY = [
    Setting(*row)
    for row in product(
        (*PACKS, *OTHERS),
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
    """The losses and the gradients of the first step, and, where it is the first to feed predictions, of the second."""
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
        train_log_iter_interval=1,
        train_iters=2 if setting.objective == "autoregressive" else 1,
        deepspeed={"zero_optimization": {"stage": setting.stage}},
        activation_checkpoint_cpu_offload=setting.again is not False,
    )
    saves = {"activation_checkpointing": setting.again}
    saves |= {"transforms": [{"type": "tiled_mlp", "tokens": setting.tokens}] if setting.tokens else []}
    settings["model"] |= {"hf_config_kwargs": {}, **saves}
    if setting.objective == "ppo":
        settings["critic"] |= saves
    if setting.adapter:
        adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "target_modules": setting.adapter}
        adapter["init_lora_weights"] = setting.objective in REFERENCED
        settings["model"]["peft_config"] = adapter
    settings["data"] |= {"pack_samples": True} if setting.packs else {}
    settings["optimizer"] = {"type": "sgd", "lr": 0.1, "weight_decay": 0}
    seen = gradients(settings)
    process_group.barrier()
    logged = records(Path(root), settings["output_dir"])
    return [{key: value for key, value in one.items() if key.startswith("loss")} for one in logged], seen


def require_equal(setting: Setting, expected: Any, mine: Any) -> None:
    assert len(mine[0]) == len(expected[0]) and all(expected[0])
    for want, got in zip(expected[0], mine[0], strict=True):
        assert got == pytest.approx(want, rel=1e-6, abs=1e-6)
    require_same(setting.objective, expected[1], mine[1])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def step_of(objective: str, adapter: str, packs: bool) -> Any:
        setting = Setting(objective, 0, 0, False, adapter, packs, "one")
        (values,) = processes.share(step, 1, setting, str(tmp_path_factory.mktemp("plain")))
        return values

    return step_of


@pytest.mark.parametrize("setting", covering(EVERY), ids=lambda setting: "-".join(map(str, setting)))
def test_the_step_is_that_of_a_plain_run(setting: Setting, plain: Any, tmp_path: Path) -> None:
    expected = plain(setting.objective, setting.adapter, setting.packs)
    for mine in processes.share(step, CUTS[setting.sharing][2], setting, str(tmp_path)):
        require_equal(setting, expected, mine)


@pytest.mark.parametrize("stage", [1, 3])
def test_an_mlp_whose_input_needs_no_gradient_gets_its_own(stage: int, plain: Any, tmp_path: Path) -> None:
    """The adapter of the first layer's MLP, below which nothing is trained: DeepSpeed's own tiles have none for it."""
    expected = plain("sft", ".*(gate|up|down)_proj", False)
    assert any("layers.0.mlp" in name and value.any() for name, value in expected[1][0].items())
    setting = Setting("sft", stage, 5, False, ".*(gate|up|down)_proj", False, "one")
    (mine,) = processes.share(step, 1, setting, str(tmp_path))
    require_equal(setting, expected, mine)
