"""The configuration of DeepSpeed, and where a recipe and its ``deepspeed:`` block contradict each other."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.config.sections.deepspeed import _KNOWN, _REFUSED, _ZERO, deepspeed_problems, without_auto
from arctic_training.engine.config import ModelSize, deepspeed_config, frozen_config, zero_stage
from arctic_training.errors.types import RecipeError
from arctic_training.optimizer.deepspeed_factories import MuonConfig
from arctic_training.optimizer.huggingface_factories import AdafactorConfig
from arctic_training.optimizer.lion import LionConfig
from tests.engine import small


def filled_in(world: int = 1, dtype: str = "fp32", steps: int = 1, **block: Any) -> dict[str, Any]:
    return deepspeed_config(small.recipe(steps, dtype, **block), world=world)


def test_what_is_left_out_is_filled_in() -> None:
    config = filled_in(world=4, dtype="bf16", steps=3)
    assert config["train_batch_size"] == 12
    assert config["train_micro_batch_size_per_gpu"] == 1
    assert config["gradient_accumulation_steps"] == 3
    assert config["gradient_clipping"] == 1.0
    assert config["bf16"] == {"enabled": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["zero_optimization"]["stage"] == 1


def test_the_timer_that_waits_for_the_device_runs_only_for_its_report() -> None:
    assert filled_in()["timers"] == {"throughput": {"enabled": False}}
    assert frozen_config({}, dtype="fp32")["timers"] == {"throughput": {"enabled": False}}
    assert filled_in(steps_per_print=10)["timers"] == {"throughput": {"enabled": True}}
    named = {"throughput": {"enabled": True, "synchronized": False}}
    assert filled_in(timers=named)["timers"] == named


@pytest.mark.parametrize(
    ("world", "block", "stage"),
    [
        (1, {}, 0),
        (2, {}, 1),
        (1, {"zero_optimization": {"stage": 3}}, 3),
        (8, {"zero_optimization": {"stage": 0}}, 0),
        (1, {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, 1),
        (1, {"zero_optimization": {"offload_param": {"device": "cpu"}}}, 3),
        (2, {"zero_optimization": {"stage": "2"}}, 2),
    ],
)
def test_the_stage(world: int, block: dict[str, Any], stage: int) -> None:
    assert zero_stage(block, world) == stage
    assert filled_in(world, **block)["zero_optimization"]["stage"] == stage


def test_gradients_of_micro_batches_are_added_in_fp32_on_one_process_too() -> None:
    config = filled_in(dtype="bf16", steps=4)
    assert config["zero_optimization"]["stage"] == 1
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert filled_in(dtype="bf16")["zero_optimization"]["stage"] == 1
    assert filled_in(dtype="bf16", zero_optimization={"stage": 0})["zero_optimization"]["stage"] == 0
    assert filled_in(dtype="fp16")["zero_optimization"]["stage"] == 0
    assert filled_in(dtype="bf16", steps=4, zero_optimization={"stage": 0})["zero_optimization"]["stage"] == 0


@pytest.mark.parametrize(("optimizer", "stage"), [(AdafactorConfig, 0), (MuonConfig, 1), (LionConfig, 1)])
def test_an_optimizer_that_cannot_be_parted_has_the_stage_at_which_it_works(optimizer: Any, stage: int) -> None:
    config: Any = small.recipe(1, "bf16")
    config.critic_optimizer = optimizer()
    assert deepspeed_config(config)["zero_optimization"]["stage"] == stage
    config.gradient_accumulation_steps = 2  # stage 0 would add in bf16; the optimizer's factory refuses the run
    assert deepspeed_config(config)["zero_optimization"]["stage"] == 1


def test_what_the_block_says_stays_and_human_numbers_are_read_at_any_depth() -> None:
    config = filled_in(
        gradient_clipping="0.5",
        zero_optimization={
            "stage": 3,
            "reduce_bucket_size": "5e8",
            "offload_optimizer": {"device": "cpu", "ratio": "1"},
        },
        activation_checkpointing={"number_checkpoints": "4ki"},
        train_batch_size="auto",
    )
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["reduce_bucket_size"] == 500_000_000
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "ratio": 1}
    assert config["activation_checkpointing"]["number_checkpoints"] == 4096
    assert config["train_batch_size"] == 1


def test_the_largest_norm_of_a_gradient_is_a_key_of_the_recipe() -> None:
    for value in (0.3, 0.0):
        config: Any = small.recipe()
        config.max_grad_norm = value
        assert deepspeed_config(config)["gradient_clipping"] == value
        assert deepspeed_config(config) == filled_in(gradient_clipping=value)
        config.deepspeed = {"gradient_clipping": "50%"}
        with pytest.raises(RecipeError, match=r"deepspeed\.gradient_clipping: 0\.5 contradicts"):
            deepspeed_config(config)
    config.max_grad_norm = 0.5
    assert deepspeed_config(config)["gradient_clipping"] == 0.5


def test_buffers_follow_the_model() -> None:
    size = ModelSize(hidden_size=100, parameters=3000)
    zero = deepspeed_config(small.recipe(zero_optimization={"stage": 3}), size=size)["zero_optimization"]
    assert zero["reduce_bucket_size"] == 10_000
    assert zero["stage3_prefetch_bucket_size"] == 9_000
    assert zero["stage3_param_persistence_threshold"] == 1_000
    huge = ModelSize(hidden_size=100, parameters=10**10)
    zero = deepspeed_config(small.recipe(zero_optimization={"stage": 1}), size=huge)["zero_optimization"]
    assert zero == {"stage": 1, "reduce_bucket_size": 5 * 10**7, "allgather_bucket_size": 5 * 10**7}


@given(st.sampled_from([1, 2, 3]), st.integers(1, 20_000), st.one_of(st.none(), st.integers(1, 10**11)))
def test_what_is_gathered_begins_at_an_even_place(stage: int, hidden: int, parameters: int | None) -> None:
    size = ModelSize(hidden_size=hidden, parameters=parameters)
    zero = deepspeed_config(small.recipe(zero_optimization={"stage": stage}), size=size)["zero_optimization"]
    assert zero["allgather_bucket_size"] % 2 == 0
    assert zero["allgather_bucket_size"] >= max(hidden**2, min(parameters or 0, 5 * 10**7))


def test_a_frozen_model_has_no_optimizer() -> None:
    config = frozen_config({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}, dtype="bf16")
    assert config["zero_optimization"] == {"stage": 3}
    assert config["bf16"] == {"enabled": True}


@pytest.mark.parametrize(
    ("block", "path", "says"),
    [
        ({"train_batch_size": 7}, "train_batch_size", "micro_batch_size 2 x gradient_accumulation_steps 3 x 2 .*= 12"),
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu", "recipe's micro_batch_size: 2"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps", "write 3"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "fp16.enabled", "cannot both"),
        ({"fp16": {"enabled": True}}, "fp16.enabled", "write model.dtype: fp16"),
        ({"bfloat16": {"enabled": True}}, "bfloat16.enabled", "write model.dtype: bf16"),
        ({"bf16": True}, "bf16", "should be a mapping"),
        ({"optimizer": {"type": "Adam"}}, "optimizer", "recipe.s `optimizer` section"),
        ({"scheduler": {}}, "scheduler", "recipe.s `scheduler` section"),
        ({"zero_optimization": {"stage": 5}}, "zero_optimization.stage", "should be 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage", "should be 0, 1, 2 or 3"),
        ({"zero_optimization": 2}, "zero_optimization", "should be a mapping"),
        ({"zero_optimization": {"stgae": 2}}, "zero_optimization.stgae", "did you mean .stage"),
        ({"zero_optimisation": {"stage": 2}}, "zero_optimisation", "did you mean .zero_optimization"),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param",
            "stage 3",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "gpu"}}},
            "zero_optimization.offload_optimizer.device",
            "none, cpu",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "zero_optimization.offload_param.nvme_path",
            "missing",
        ),
        (
            {"zero_optimization": {"stage": 2, "allgather_bucket_size": "1_001"}},
            "zero_optimization.allgather_bucket_size",
            "1001 should be even",
        ),
        ({"gradient_clipping": -1}, "gradient_clipping", "at least 0"),
        ({"pipeline": {}}, "pipeline", "not supported"),
        ({"tensorboard": {}}, "tensorboard", "metrics.jsonl"),
    ],
)
def test_a_contradiction_is_told_with_what_would_be_right(block: dict[str, Any], path: str, says: str) -> None:
    problems = deepspeed_problems(block, micro_batch_size=2, gradient_accumulation_steps=3, dtype="fp32", data_world=2)
    assert [".".join(one.path) for one in problems] == [path]
    config: Any = small.recipe(3, "fp32", **block)
    config.micro_batch_size = 2
    with pytest.raises(RecipeError, match=says):
        deepspeed_config(config, world=2)


def test_every_contradiction_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        filled_in(train_batch_size=3, optimizer={}, zero_optimization={"stage": 9})
    assert len(caught.value.problems) == 3


def test_before_the_number_of_processes_is_known_a_multiple_will_do() -> None:
    kinds = {"micro_batch_size": 2, "gradient_accumulation_steps": 3, "dtype": "bf16"}
    assert deepspeed_problems({"train_batch_size": 48}, **kinds) == []
    assert deepspeed_problems({"train_batch_size": 47}, **kinds) != []


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(_KNOWN | set(_REFUSED))) | st.text(max_size=6), json, max_size=4))
def test_whatever_the_block_says_is_read_or_told(block: dict[str, Any]) -> None:
    for problem in deepspeed_problems(block, micro_batch_size=1, gradient_accumulation_steps=1, dtype="bf16"):
        assert problem.path
        assert problem.text
    assert without_auto(without_auto(block)) == without_auto(block)


def test_the_keys_are_those_of_the_installed_deepspeed() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    known = {field.alias or name for name, field in fields.items()} | set(fields)
    assert sorted(_ZERO - known) == []
    assert not _KNOWN & _REFUSED.keys()
