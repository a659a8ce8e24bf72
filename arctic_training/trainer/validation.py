"""Checks a run by its recipe and by local files, without device, network or process group."""

import functools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from arctic_training.checkpoint.saved_model import is_adapter
from arctic_training.config.get_config import require_libraries
from arctic_training.config.sections.data import DataConfig
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.factories.config import SourcedDataConfig
from arctic_training.data.factories.sourced import SourcedDataFactory
from arctic_training.data.factories.tensor import TensorDataConfig
from arctic_training.data.preparation.first_rows import check_first_rows
from arctic_training.data.sources.huggingface import HFDataSourceConfig
from arctic_training.errors.types import InputError
from arctic_training.logging import logger
from arctic_training.model.factory import ModelFactory
from arctic_training.model.pretrained_adapter import base_of
from arctic_training.registry import lookup
from arctic_training.tracker.tracker import refuse_run_on_error
from arctic_training.trainer.assembly import (
    build_checkpointers,
    build_component,
    build_dataloaders,
    build_evaluators,
    build_factory,
    check_models,
    check_recipe,
    check_tokenizer,
    check_without_data,
    precomputing_roles,
    used_roles,
)
from arctic_training.trainer.bare import bare
from arctic_training.trainer.callbacks import build_callbacks
from arctic_training.trainer.checked_engines import checked_engines, device_of
from arctic_training.trainer.resume import check_resume, fingerprints
from arctic_training.trainer.session import resolve_run_dir
from arctic_training.trainer.trackers import find_trackers
from arctic_training.trainer.trainer import Trainer

MOST_BYTES, MOST_TENSOR_BYTES = 2**20, 2**28
"""Bytes of local data up to which `check_run` prepares them: of texts, and of tensors, which are only read."""


def check_run(config: TrainerConfig) -> None:
    """Raises the `InputError` that would refuse the run before its weights are loaded, as far as files here show it.

    Models, tokenizers and data on the hub are left out, and of texts in local files of more than `MOST_BYTES` all but
    the first rows. Nothing is written. What depends on the number of processes is checked for one.
    """
    require_libraries(config)
    trainer, recipe = unstarted(config), config
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
    trainer.checkpointers = build_checkpointers(trainer)
    prints: Mapping[str, str] = {}
    if local == roles and is_here(config.tokenizer):
        check_tokenizer(trainer, roles, models, build_component(trainer, "tokenizer"))
        check_without_data(trainer, [*trainer.evaluators, *trainer.listeners.values()], models)
        if data_size(config) <= (MOST_TENSOR_BYTES if isinstance(config.data, TensorDataConfig) else MOST_BYTES):
            prints = check_small_data(trainer)
            check_built(trainer, models)
        elif isinstance(factory := build_factory(trainer, config.data, "data_factory_type"), SourcedDataFactory):
            check_first_rows(factory, factory.sources([*factory.config.sources, *factory.config.eval_sources]))
    check_resume(trainer, config.model_copy(update={"deepspeed": recipe.deepspeed}), prints)


def data_size(config: TrainerConfig) -> float:
    """Returns the bytes of the data of a run; infinite where some are not in local files."""
    sections = [one for key in ("sources", "eval_sources") for one in getattr(config.data, key, [])]
    return sum(section.local_size for section in sections) if sections else math.inf


def check_small_data(trainer: Trainer) -> Mapping[str, str]:
    """Prepares the data as the run would, with the cache in a folder that is removed, and returns their fingerprints.

    There are none where the run adds to its samples what a model computes of them. Raises `InputError`.
    """
    data: DataConfig = trainer.config.data
    with tempfile.TemporaryDirectory(prefix="arctic_training_") as folder, ExitStack() as stack:
        sections = [*getattr(data, "sources", ()), *getattr(data, "eval_sources", ())]
        if isinstance(data, SourcedDataConfig) or any(isinstance(one, HFDataSourceConfig) for one in sections):
            stack.enter_context(cache_of_datasets(Path(folder)))
        if isinstance(data, SourcedDataConfig) and not data.fail_on_missing_cache:
            data = data.model_copy(update={"cache_dir": Path(folder)})
        trainer.config = trainer.config.model_copy(update={"data": data})
        build_dataloaders(trainer)
        prints = {} if precomputing_roles(trainer) else fingerprints(trainer)
        for loader in filter(None, [trainer.train_loader, *trainer.eval_loaders.values()]):
            loader.close()
    return prints


def check_built(trainer: Trainer, models: Mapping[str, ModelFactory[ModelConfig]]) -> None:
    """Calls ``check`` of the trainer and of its parts, as the run does when all are built, with `checked_engines`.

    Raises `InputError`. Any other error says nothing about the run, since more of it may be needed: it is a warning.
    """
    trainer.engines = checked_engines(models)
    if not trainer.engines:
        return
    vars(trainer)["device"] = device_of(trainer.engines)
    checks: list[tuple[object, Callable[[], None]]] = [(trainer, trainer.check)]
    checks += [(one, functools.partial(one.check, trainer)) for one in trainer.evaluators]
    checks += [(one, functools.partial(one.check, trainer)) for one in trainer.listeners.values()]
    for owner, check in checks:
        try:
            check()
        except InputError:
            raise
        except Exception as error:
            logger.warning(f"check() of {type(owner).__name__} needs the run: {type(error).__name__}: {error}")


@contextmanager
def cache_of_datasets(folder: Path) -> Iterator[None]:
    """Has the library `datasets` keep what it reads from files in ``folder``."""
    import datasets

    former, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = former


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
    return not name or os.path.exists(os.path.expanduser(base_of(name) if is_adapter(name) else name))
