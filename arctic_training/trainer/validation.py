"""Checks a run by its recipe and by the files of local models, without device, network, data or process group."""

import os
from types import SimpleNamespace

import torch

from arctic_training.checkpoint.saved_model import is_adapter
from arctic_training.config.get_config import require_libraries
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.model.pretrained_adapter import base_of
from arctic_training.registry import lookup
from arctic_training.tracker.tracker import refuse_run_on_error
from arctic_training.trainer.assembly import (
    build_callbacks,
    build_component,
    build_evaluators,
    check_models,
    check_recipe,
    check_tokenizer,
    check_without_data,
    used_roles,
)
from arctic_training.trainer.bare import bare
from arctic_training.trainer.session import resolve_run_dir
from arctic_training.trainer.trackers import find_trackers
from arctic_training.trainer.trainer import Trainer


def check_run(config: TrainerConfig) -> None:
    """Raises the `InputError` that would refuse the run before its data are prepared, as far as files here show it.

    Models and tokenizers on the hub are left out. Nothing is written. What depends on the number of processes is
    checked for one.
    """
    require_libraries(config)
    trainer = unstarted(config)
    config = trainer.config
    for tracker in find_trackers(config, trainer.run_dir):
        with refuse_run_on_error(tracker):
            tracker.check_offline()
    trainer.listeners = build_callbacks(trainer, config.callbacks)
    trainer.evaluators = build_evaluators(config.evaluators)
    check_recipe(trainer)
    roles = used_roles(trainer)
    local = [role for role in roles if is_here(getattr(config, role.name))]
    models = check_models(trainer, local)
    if local == roles and is_here(config.tokenizer):
        check_tokenizer(trainer, roles, models, build_component(trainer, "tokenizer"))
        check_without_data(trainer, [*trainer.evaluators, *trainer.listeners.values()], models)


def unstarted(config: TrainerConfig, processes: int = 1) -> Trainer:
    """Returns a trainer of which no part is built, on the meta device, as the first of so many ``processes``."""
    trainer_type: type[Trainer] = lookup("trainer", config.type)  # type: ignore[assignment]
    members = {"device": torch.device("meta"), "data_rank": 0, "__module__": trainer_type.__module__}
    members["data_world"] = max(1, processes // config.ranks_per_row)
    unstarted_type: type[Trainer] = type(trainer_type.__name__, (trainer_type,), members)
    # of how many processes it is the batch size is not known
    block = {key: value for key, value in config.deepspeed.items() if key != "train_batch_size"}
    config = config.model_copy(update={"deepspeed": block})
    return bare(unstarted_type, config, SimpleNamespace(run_dir=resolve_run_dir(config)))


def is_here(section: object) -> bool:
    """Returns whether the section of a model or tokenizer names nothing on the hub."""
    name = getattr(section, "name_or_path", None)
    return name is None or os.path.exists(os.path.expanduser(base_of(name) if is_adapter(name) else name))
