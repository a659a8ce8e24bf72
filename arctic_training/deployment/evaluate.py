"""Evaluates a saved model by a recipe: the loss on its evaluation sets and what its evaluators measure."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from arctic_training.checkpoint.consolidated import ConsolidatedWeights, load_consolidated
from arctic_training.checkpoint.folder import read_manifest
from arctic_training.checkpoint.saved_model import NO_AVERAGE, SavedModel
from arctic_training.config.get_config import require_libraries
from arctic_training.config.sections.mesh import MeshConfig
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.config.sections.wandb import WandbSection
from arctic_training.deployment.run_recipe import without_weights
from arctic_training.distributed import environment, process_group
from arctic_training.distributed.sequence_parallel import check_world_size
from arctic_training.errors.types import InputError
from arctic_training.registry import lookup
from arctic_training.state import seed
from arctic_training.tokenizer.huggingface_factory import has_tokenizer
from arctic_training.trainer.assembly import build_engines, build_evaluators, build_factory, build_tokenizer
from arctic_training.trainer.bare import bare
from arctic_training.trainer.evaluation import measure
from arctic_training.trainer.named_runs import find_named_runs_together, with_checkpoints
from arctic_training.trainer.session import Session
from arctic_training.trainer.trainer import Trainer

RESULT = "evaluation.json"
"""The file of the results."""


@environment.track_env()
def evaluate(config: TrainerConfig, saved: SavedModel, folder: Path, *, averaged: bool = False) -> dict[str, float]:
    """Returns the metrics of the model ``saved`` by the recipe ``config``, and writes them to ``folder``.

    Nothing is trained: models have no optimizer, the training data are not read where there are evaluation sources,
    and only ``folder`` is locked and written to: the metrics as ``evaluation.json``, and what evaluators save. All
    ranks call it. With ``averaged`` the weights of a checkpoint of type ``deepspeed`` are those of its callback `ema`.
    Raises `InputError` for a recipe without evaluation sets, or that the model does not fit, and `CheckpointError`.
    """
    config = config.model_copy(update=dict[str, object](callbacks=[], checkpoint=[], trackers=[], wandb=WandbSection()))
    require_libraries(config)
    process_group.init_process_group()
    check_world_size(config.sequence_parallel_size, process_group.world_size())
    trainer = _frozen_trainer(config, saved, folder)
    trainer.session.acquire_locks()
    failed = True
    try:
        _build(trainer, saved, averaged=averaged)
        values = measure(trainer)
        if process_group.is_main():
            _write(trainer, saved, folder, values)
        failed = False
    finally:
        trainer.close(failed=failed)
    return values


def _frozen_trainer(config: TrainerConfig, saved: SavedModel, folder: Path) -> Trainer:
    """Returns the trainer of ``config``, with the model ``saved`` and roles that are not trained, without parts."""
    trainer_type: Any = lookup("trainer", config.type)
    roles = tuple(replace(role, frozen=True) for role in trainer_type.roles)
    changes: dict[str, object] = {"output_dir": folder, "resume": None}
    changes["mesh"] = MeshConfig()  # each process has the whole model
    changes |= {role.precompute_key: False for role in roles if role.precompute_key}
    if saved.kind == "deepspeed":
        saved_roles = [
            role for role in read_manifest(Path(saved.name))["roles"] if getattr(config, role, None) is not None
        ]
        changes |= {role: without_weights(getattr(config, role)) for role in saved_roles}
    else:
        changes["model"] = _section_of(config.model, saved)
        tokenizer = config.tokenizer
        if "name_or_path" in type(tokenizer).model_fields and has_tokenizer(Path(saved.name).expanduser()):
            changes["tokenizer"] = tokenizer.model_copy(update={"name_or_path": saved.name})
    config = config.model_copy(update=changes)
    config = with_checkpoints(config, find_named_runs_together(config))
    trainer: Trainer = bare(trainer_type, config, Session(config))
    vars(trainer)["roles"] = roles
    trainer.progress.step = saved.step or 0
    return trainer


def _section_of(section: ModelConfig, saved: SavedModel) -> ModelConfig:
    """Returns the model section that loads a folder of transformers or PEFT. Raises `InputError`."""
    known = type(section).model_fields
    if "name_or_path" not in known:
        raise InputError(f"{saved.name}: the recipe's model is of type {section.type}, which loads no such folder")
    changes: dict[str, object] = {"name_or_path": saved.name, "peft_config": None, "random_weights": False}
    changes |= {"hf_config_kwargs": {}, "new_weights": []}
    return section.model_copy(update={key: value for key, value in changes.items() if key in known})


def _build(trainer: Trainer, saved: SavedModel, *, averaged: bool) -> None:
    """Builds tokenizer, evaluation sets, models and evaluators."""
    config = trainer.config
    seed(config.seed)
    trainer.evaluators = build_evaluators(config.evaluators)
    for evaluator in trainer.evaluators:
        evaluator.check_recipe(trainer)
    trainer.tokenizer = build_tokenizer(trainer)
    factory = build_factory(trainer, config.data, "data_factory_type")
    sets = factory.load_evaluation()
    if not sets:
        raise InputError("data.eval_sources: nothing to evaluate on; give data.eval_sources=[FILE]")
    trainer.eval_loaders = {name: factory.create_loader(samples, train=False) for name, samples in sets.items()}
    build_engines(trainer)
    if saved.kind == "deepspeed":
        for role in read_manifest(Path(saved.name))["roles"]:
            weights = ConsolidatedWeights(Path(saved.name), role, averaged=averaged and role == "model")
            load_consolidated(trainer.engines[role].module, weights)
    elif averaged:
        raise InputError(f"{saved.name}: {NO_AVERAGE}")
    for engine in trainer.engines.values():
        engine.eval()
    for evaluator in trainer.evaluators:
        evaluator.check(trainer)


def _write(trainer: Trainer, saved: SavedModel, folder: Path, values: dict[str, float]) -> None:
    samples = {name: len(loader.dataset) for name, loader in trainer.eval_loaders.items()}
    result = {"checkpoint": saved.name, "step": saved.step, "metrics": values, "samples": samples}
    result["recipe"] = trainer.config.dump()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
