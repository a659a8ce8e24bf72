"""Words of other trainers are answered with ours, and every answer names what exists."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from arctic_training import get_config
from arctic_training.cli.main import main
from arctic_training.config.checks import foreign_keys
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.errors.types import RecipeError
from arctic_training.registry import lookup, names
from arctic_training.scheduler.huggingface_factory import HFSchedulerConfig
from tests.bad_inputs.case import sft

SECTIONS = {
    "model": "model_factory",
    "tokenizer": "tokenizer_factory",
    "data": "data_factory",
    "optimizer": "optimizer_factory",
    "scheduler": "scheduler_factory",
    "checkpoint": "checkpoint_engine",
}
"""The kinds of classes that read the sections of a recipe."""
FREE = ("model.peft_config", "deepspeed.zero_optimization", "data.sources.0")
"""Sections that other libraries read, and sources."""
KEY = re.compile(r"\b[a-z][a-z_]*(?:\.\w+)+\b|\b[a-z]+(?:_[a-z]+)+\b")


def configs(kind: str) -> list[Any]:
    """The config types of the classes that are built in; other tests define their own."""
    classes: list[Any] = [lookup(kind, name) for name in names(kind)]
    return [one.config_type for one in classes if one.__module__.startswith("arctic_training.")]


def exists(path: str) -> bool:
    """Whether a recipe of some trainer has the key."""
    first, _, rest = path.partition(".")
    fields = [config.model_fields[first] for config in configs("trainer") if first in config.model_fields]
    if not fields or not rest or any(path.startswith(f"{free}.") or path == free for free in FREE[:2]):
        return bool(fields)
    if path.startswith(FREE[2]):
        return any(path.rpartition(".")[2] in config.model_fields for config in configs("data_source"))
    if first in SECTIONS:
        return any(rest in config.model_fields for config in configs(SECTIONS[first]))
    inner = [one for field in fields for one in (field.annotation, *get_args(field.annotation))]
    return any(rest in one.model_fields for one in inner if isinstance(one, type) and issubclass(one, BaseModel))


def test_every_answer_names_a_key_that_exists() -> None:
    assert not exists("model.no") and not exists("no") and not exists("wandb.no") and not exists("data.sources.0.no")
    for answer in {*foreign_keys._SAME}:
        assert exists(answer.partition(":")[0]), answer
    for answer in foreign_keys._ABSENT:
        paths = KEY.findall(answer)
        assert paths and all(map(exists, paths)), answer


def test_no_word_is_a_key_of_the_top_level_or_stands_twice() -> None:
    rows = [*foreign_keys._SAME.values(), *foreign_keys._ABSENT.values()]
    words = [word for row in rows for word in row.split()]
    assert sorted(words) == sorted(foreign_keys.ANSWERS)
    assert not [word for word in words if any(word in config.model_fields for config in configs("trainer"))]


def test_names_that_are_answered_are_names_here() -> None:
    for kind, table in foreign_keys._NAMES.items():
        for word, name in table.items():
            assert name in names(kind) and word not in names(kind), word
    for name in foreign_keys.SCHEDULES:
        assert name not in names("scheduler_factory")
        assert HFSchedulerConfig(type="huggingface", name=name).name == name


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("num_train_epochs: 3", "num_train_epochs: unknown; here this is epochs"),
        ("per_device_train_batch_size: 4", "per_device_train_batch_size: unknown; here this is micro_batch_size"),
        ("learning_rate: 1e-4", "learning_rate: unknown; here this is optimizer.learning_rate"),
        ("warmup_steps: 10", "warmup_steps: unknown; here this is scheduler.warmup_steps"),
        ("lr_scheduler_type: cosine", "lr_scheduler_type: unknown; here this is scheduler.name"),
        ("bf16: true", "bf16: unknown; here this is model.dtype: bf16"),
        ("report_to: wandb", "report_to: unknown; here this is trackers"),
        ("save_steps: 100", "save_steps: unknown; here this is checkpoint.save_every_n_steps"),
        ("checkpoint: {save_steps: 100}", "checkpoint.save_steps: unknown; here this is checkpoint.save_every_n_steps"),
        ("base_model: some/model", "base_model: unknown; here this is model.name_or_path"),
        ("sample_packing: true", "sample_packing: unknown; here this is data.pack_samples"),
        ("cutoff_len: 2048", "cutoff_len: unknown; here this is data.max_length"),
        ("train_on_last_turn_only: true", "train_on_last_turn_only: unknown; here this is data.mask_history"),
        ("lora_r: 8", "lora_r: unknown; here this is model.peft_config.r"),
        ("load_in_4bit: true", "load_in_4bit: unknown; weights are not quantized here; model.peft_config trains ..."),
        ("reference_free: true", "reference_free: unknown; here this is loss_type: cpo"),
        ("mesh_shape: [2, 2]", "mesh_shape: unknown; here this is mesh"),
        ("val_interval: 10", "val_interval: unknown; here this is eval_interval"),
        ("lr_scheduler_interval: epoch", "lr_scheduler_interval: unknown; here this is scheduler.interval"),
        ("steps_per_epoch: 500", "steps_per_epoch: unknown; here this is epoch_length"),
        ("trainable_only: true", "trainable_only: unknown; here this is checkpoint.trainable_only"),
        ("checkpoint: {metric_monitor: loss}", "metric_monitor: unknown; here this is checkpoint.best_metric"),
        ("scheduler: {type: cosine}", "'cosine' is not accepted here; here this is scheduler.name: cosine"),
        ("optimizer: {type: adamw_torch}", "'adamw_torch' is not accepted here; here this is type: adamw"),
    ],
)
def test_a_word_of_another_trainer_is_answered(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(sft(model="some/model", source="a/b", more=f"{line}\n"))
    assert main(["validate", "recipe.yaml"]) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith("recipe.yaml:3:")
    assert says.removesuffix("...") in printed


def test_min_lr_is_refused_where_it_means_nothing() -> None:
    for name in ("constant", "constant_with_warmup"):
        with pytest.raises(ValidationError, match="does not fall"):
            HFSchedulerConfig(type="huggingface", name=name, min_lr=1e-5)
    for kind, section in (
        ("constant", {}),
        ("wsd", {"min_lr_ratio": 0.1}),
        ("one_cycle", {"final_div_factor": 10}),
        ("huggingface", {"name": "cosine_with_min_lr", "scheduler_specific_kwargs": {"min_lr": 1e-6}}),
    ):
        reader: type[SchedulerConfig] = lookup("scheduler_factory", kind).config_type  # type: ignore[attr-defined]
        with pytest.raises(ValidationError, match="min_lr"):
            reader(type=kind, min_lr=1e-5, **section)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("optimizer: {lr: 1e-4}\nscheduler: {min_lr: 1e-3}\n", "scheduler.min_lr: 0.001 is above the optimizer's"),
        (
            "max_grad_norm: 0.5\ndeepspeed: {gradient_clipping: 1}\n",
            "deepspeed.gradient_clipping: 1 contradicts the recipe's max_grad_norm: 0.5; remove it",
        ),
        ("max_grad_norm: -1\n", "max_grad_norm: -1 should be greater than or equal to 0"),
    ],
)
def test_keys_that_contradict_each_other(more: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(sft(model="some/model", source="a/b", more=more))
    with pytest.raises(RecipeError) as caught:
        get_config(tmp_path / "recipe.yaml")
    assert says in str(caught.value)
