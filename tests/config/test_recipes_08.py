"""Recipes of ArcticTraining 0.8 are read unchanged; what is not built is refused by its name, never ignored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arctic_training import get_config
from arctic_training.config.recipe.node import to_python
from arctic_training.config.recipe.recipe_file import read_recipe_file
from arctic_training.errors.types import RecipeError

RECIPES = sorted((Path(__file__).parent / "recipes_08").glob("*.yaml"))
SMALL: dict[str, Any] = {"model": {"name_or_path": "m"}, "data": {"sources": ["a/b"]}}

# every key of its reference, by section
KEYS = {
    "": "type code skip_validation model data tokenizer optimizer scheduler logger wandb checkpoint deepspeed epochs "
    "train_iters min_iterations exit_iteration exit_iteration_this_run micro_batch_size gradient_accumulation_steps "
    "sequence_parallel_size expert_parallel_size activation_checkpoint_cpu_offload tiled_mlp_compute arctic_moe seed "
    "loss_log_interval train_log_iter_interval train_log_metrics_path eval_interval eval_log_iter_interval "
    "overfit_first_batch mem_profiler mem_profiler_dir mem_profiler_max_entries kill_switch_path "
    "ref_model beta label_smoothing ignore_label_index reference_model_deepspeed",
    "model": "type name_or_path dtype attn_implementation disable_activation_checkpoint peft_config hf_config_kwargs "
    "save_name",
    "tokenizer": "type name_or_path tokenize_kwargs",
    "data": "type sources eval_sources train_eval_split max_length num_proc dl_num_workers seed cache_dir "
    "cache_fs_type fail_on_missing_cache use_data_cache cache_processed_data mask_inputs pack_samples filter_samples "
    "pad_to div_length always_max_length drop_last fuse_positions_prob repeat_to_pack_max_length ignore_empty_think "
    "max_prompt_length dpo_prompt_truncation_mode",
    "data.sources": "type name_or_path split sample_ratio sample_count sample_seed process kwargs split_mapping "
    "role_mapping content_key column",
    "optimizer": "type learning_rate lr betas weight_decay",
    "scheduler": "type name warmup_ratio scheduler_specific_kwargs num_warmup_steps num_decay_steps min_lr_ratio "
    "learning_rate",
    "checkpoint": "type output_dir enabled auto_resume save_every_n_steps save_every_n_epochs save_end_of_training",
    "logger": "output_dir level print_output_ranks file_output_ranks",
    "wandb": "enable entity project name",
}


def sections(recipe: dict[str, Any], path: str) -> Iterator[dict[str, Any]]:
    values: list[Any] = [recipe]
    for key in filter(None, path.split(".")):
        values = [one[key] for one in values if isinstance(one, dict) and key in one]
        values = [item for one in values for item in (one if isinstance(one, list) else [one])]
    return (one for one in values if isinstance(one, dict))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_its_users_is_read(path: Path) -> None:
    config = get_config(path)
    assert get_config(config.dump()).dump() == config.dump()


@pytest.mark.parametrize("section", KEYS)
def test_every_key_is_in_one_of_them(section: str) -> None:
    recipes = [to_python(read_recipe_file(path)) for path in RECIPES]
    used = {key for recipe in recipes for one in sections(recipe, section) for key in one}
    assert set(KEYS[section].split()) <= used


def test_what_they_say_is_understood() -> None:
    sft = get_config(RECIPES[0].with_name("sft.yaml"))
    assert (sft.train_iters, sft.min_iterations, sft.model.dtype) == (1000, 2000, "bf16")
    assert (sft.optimizer.learning_rate, sft.optimizer.weight_decay) == (1e-5, 0.1)
    assert sft.model_dump()["data"]["max_length"] == 8192
    assert [source["type"] for source in sft.model_dump()["data"]["sources"]] == [
        "huggingface_instruct",
        "huggingface_instruct",
        "huggingface",
        "huggingface_instruct",
    ]
    assert sft.model_dump()["data"]["sources"][1]["sample_count"] == 10_000
    causal = get_config(RECIPES[0].with_name("causal.yaml"))
    assert (causal.scheduler.type, causal.exit_iteration) == ("wsd", 1000)
    assert causal.model_dump()["data"]["train_eval_split"] == (0.9, 0.1)
    dpo = get_config(RECIPES[0].with_name("dpo.yaml"))
    assert dpo.scheduler.learning_rate == dpo.optimizer.learning_rate == 5e-7


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ({"expert_parallel_size": 2}, "expert_parallel_size: expert parallelism"),
        ({"arctic_moe": True}, "arctic_moe: the grouped-GEMM MoE layer"),
        ({"arctic_moe": "auto"}, "arctic_moe: the grouped-GEMM MoE layer"),
        ({"model": {"name_or_path": "m", "save_name": "other"}}, "model.save_name: another name for the model"),
        ({"optimizer": {"type": "fused_adam_moe"}}, "optimizer.type: fused_adam_moe: "),
        ({"optimizer": {"type": "cpu_adam_moe"}}, "optimizer.type: cpu_adam_moe: "),
        (
            {"data": {"sources": [{"type": "snowflake", "sql": "select 1"}]}},
            "data.sources.0.type: snowflake: the source that reads from Snowflake",
        ),
    ],
)
def test_what_is_not_built_is_refused_by_name(section: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError) as error:
        get_config(SMALL | section)
    (line,) = error.value.problems
    assert line.startswith(what)
    assert "is not built yet" in line


def test_a_learning_rate_in_the_schedule_is_the_optimizers() -> None:
    assert get_config(SMALL | {"scheduler": {"lr": 1e-3}}).optimizer.learning_rate == 1e-3
    with pytest.raises(RecipeError, match=r"^scheduler.lr: 0.001 contradicts the optimizer's 0.002; remove it here$"):
        get_config(SMALL | {"scheduler": {"lr": 1e-3}, "optimizer": {"lr": 2e-3}})
