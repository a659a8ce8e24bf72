"""Builds the components of a run from its recipe, in order; read it from top to bottom."""

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from arctic_training.callback.callback import Callback
from arctic_training.checkpoint import disk_space
from arctic_training.checkpoint.checkpointer import Checkpointer
from arctic_training.component import TrainerView
from arctic_training.config.get_config import require_libraries
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.config.sections.component import TrainerComponent
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.factories.base import Loaders
from arctic_training.display.activity import activity
from arctic_training.display.watch import open_display
from arctic_training.distributed import collectives, process_group
from arctic_training.distributed.sequence_parallel import check_world_size
from arctic_training.distributed.watchdog import Watchdog
from arctic_training.engine.engine import Engine
from arctic_training.engine.initialize import freeze, initialize
from arctic_training.errors.types import RecipeError
from arctic_training.evaluation.evaluator import Evaluator
from arctic_training.logging import logger
from arctic_training.model.factory import ModelFactory
from arctic_training.registry import lookup, numbered
from arctic_training.state import Rng, RunState, seed
from arctic_training.trainer.bare import bare
from arctic_training.trainer.callbacks import build_callbacks
from arctic_training.trainer.expected_metrics import check_metrics
from arctic_training.trainer.loss_checks import require_auxiliary_losses, require_scalar, require_whole_attention
from arctic_training.trainer.memory import check_memory
from arctic_training.trainer.named_runs import find_named_runs_together, with_checkpoints
from arctic_training.trainer.resume import resume
from arctic_training.trainer.role import Role, RoleView
from arctic_training.trainer.row_buffer import row_buffers
from arctic_training.trainer.session import Session
from arctic_training.trainer.trackers import build_trackers


def assemble(trainer: Any) -> None:
    """Builds all components of ``trainer`` and resumes from a checkpoint when the recipe requests it."""
    config, generators = trainer.config, Rng().state_dict()  # libraries draw numbers when they are imported
    if process_group.is_main():
        open_display(config.logger.progress)
    with activity("loading libraries"):
        process_group.init_process_group()
    check_world_size(config.sequence_parallel_size, world := process_group.world_size())
    config.mesh.check_processes(world, sequence_parallel_size=config.sequence_parallel_size)
    trainer.session = Session(config, generators)
    trainer.session.acquire_locks()
    try:
        with activity("building the run"):
            build_parts(trainer)
    except BaseException:
        trainer.session.leave(failed=True)
        raise


def build_parts(trainer: Any) -> None:
    """Builds the components, resumes, and starts the session."""
    checkpoints = find_named_runs_together(trainer.config)
    for name, folder in checkpoints.items():
        logger.success(f"{name}: the model is that of {folder}")
    config = trainer.config = trainer.session.config = with_checkpoints(trainer.config, checkpoints)
    require_libraries(config)
    trainer.watch = Watchdog(trainer, config.hang_timeout) if config.hang_timeout else None
    trackers = build_trackers(config, trainer.session.run_dir)
    seed(config.seed)
    trainer.listen("post-loss", require_scalar)
    trainer.listen("post-loss", require_auxiliary_losses)
    if config.sequence_parallel_size > 1:
        trainer.listen("post-loss", require_whole_attention)
    for event in ("pre-train", "pre-after_update"):
        trainer.listen(event, lambda it: it.session.show_progress(it.progress.step, it.expected_end))
    trainer.listeners = build_callbacks(trainer, config.callbacks)
    trainer.evaluators = build_evaluators(config.evaluators)
    trainer.listen("post-train", lambda it: it.session.close(failed=False))  # after all other listeners
    check_recipe(trainer)
    with activity("reading the model"):
        trainer.tokenizer = build_tokenizer(trainer)
    with activity("preparing data"):
        build_dataloaders(trainer)
    build_engines(trainer)
    trainer.checkpointers = [checkpointer() for checkpointer in build_checkpointers(trainer)]
    for checkpointer in trainer.checkpointers:
        disk_space.warn_if_low(checkpointer)
    trainer.state = RunState(progress=trainer.progress, rng=Rng(), data=trainer.train_loader, metrics=trainer.metrics)
    trainer.state.add({f"callback.{name}": part for name, part in trainer.listeners.items()})
    trainer.state.add(row_buffers(trainer) | trainer.extra_state_dict())
    for checkpointer in trainer.checkpointers:
        checkpointer.check_state(trainer.state)
    trainer.check()
    for part in (*trainer.evaluators, *trainer.listeners.values()):
        part.check(trainer)
    # ranks start with equal weights; from here their dropout differs, but for those that divide a model
    seed(config.seed + process_group.rank() // config.mesh.model)
    with activity("resuming"):
        resume(trainer)
    if config.mesh.model > 1:  # the checkpoint may be of processes that did not divide it
        rng = trainer.state["rng"]
        rng.load_state_dict(collectives.all_gather_object(rng.state_dict(), group_size=config.mesh.model)[0])
    for checkpointer in trainer.checkpointers:
        checkpointer.warn_about_newer()
    trainer.session.start(trackers, trainer.progress.step)
    trainer.throughput.watch(trainer)


@contextmanager
def prepared_data(trainer_class: Any, config: TrainerConfig) -> Iterator[tuple[Any, Loaders]]:
    """Builds the data of a run only, which fills the cache; yields the data factory and its loaders."""
    generators = Rng().state_dict()
    with activity("loading libraries"):
        process_group.init_process_group()
    config = with_checkpoints(config, find_named_runs_together(config))
    trainer = bare(trainer_class, config, Session(config, generators))
    seed(config.seed)
    with activity("preparing data"):
        trainer.tokenizer = build_component(trainer, "tokenizer")
        factory = build_factory(trainer, config.data, "data_factory_type")
        loaders: Loaders = factory()
    try:
        yield factory, loaders
    finally:
        for loader in filter(None, [loaders.train, *loaders.evaluation.values()]):
            loader.close()
        trainer.session.leave(failed=False)


def build_component(trainer: TrainerView, name: str, *args: Any) -> Any:
    """Builds and calls the factory of the section ``name`` of the recipe."""
    slot = next(mark for mark in type(trainer.config).model_fields[name].metadata if isinstance(mark, TrainerComponent))
    return build_factory(trainer, getattr(trainer.config, name), slot.types)(*args)


def build_factory(trainer: TrainerView, section: ComponentConfig, slot: str) -> Any:
    """Returns the factory that ``section.type`` names, of the kind of ``slot`` (``model_factory_type``)."""
    factory_type: Any = lookup(slot.removesuffix("_type"), section.type)
    return factory_type(trainer, section)


def build_tokenizer(trainer: Any) -> object:
    """Returns the tokenizer, and checks the models, which are built only when the data, which may take long, are."""
    models = check_models(trainer, roles := used_roles(trainer))
    tokenizer = build_component(trainer, "tokenizer")
    check_tokenizer(trainer, roles, models, tokenizer)
    check_memory(trainer, roles, models)
    check_without_data(trainer, [*trainer.evaluators, *trainer.listeners.values()], models)
    return tokenizer


def used_roles(trainer: TrainerView) -> list[Role]:
    """Returns the roles of which the recipe has a model: a frozen one may be left out."""
    roles: Sequence[Role] = trainer.roles  # type: ignore[attr-defined]
    return [role for role in roles if getattr(trainer.config, role.name) is not None]


def precomputing_roles(trainer: TrainerView) -> list[Role]:
    """Returns the roles whose models compute something of the samples before training, and are freed then."""
    return [role for role in used_roles(trainer) if getattr(trainer.config, role.precompute_key or "", False)]


def check_models(trainer: TrainerView, roles: Sequence[Role]) -> dict[str, ModelFactory[ModelConfig]]:
    """Returns the model factories of ``roles`` by name, each of which has checked its model without weights."""
    models = {
        role.name: build_factory(RoleView(trainer, role), getattr(trainer.config, role.name), "model_factory_type")
        for role in roles
    }
    for model in models.values():
        model.check()
    return models


def check_tokenizer(
    trainer: Any, roles: Sequence[Role], models: Mapping[str, ModelFactory[ModelConfig]], tokenizer: object
) -> None:
    """Checks ``models`` with the tokenizer and with one another, and whether they can be saved."""
    trainer.tokenizer = tokenizer
    for model in models.values():
        model.check_tokenizer(tokenizer)
    trainer.check_models({name: model.meta_model for name, model in models.items()})
    trained = {role.name: models[role.name].meta_model for role in roles if not role.frozen}
    meta_models = {name: model for name, model in trained.items() if model is not None}
    for checkpointer in build_checkpointers(trainer):
        checkpointer.dry_run(meta_models)


def check_without_data(
    trainer: TrainerView,
    parts: Iterable[Evaluator[ComponentConfig] | Callback[ComponentConfig]],
    models: Mapping[str, ModelFactory[ModelConfig]],
) -> None:
    """Calls ``check`` of those ``parts`` that need models without weights only, where ``models`` can be built so."""
    modules = {name: model.meta_model for name, model in models.items()}
    if any(one is None for one in modules.values()):
        return
    built = trainer.engines
    vars(trainer)["engines"] = {name: SimpleNamespace(module=one) for name, one in modules.items()}
    try:
        for part in parts:
            if part.checks_without_data:
                part.check(trainer)
    finally:
        vars(trainer)["engines"] = built


def check_recipe(trainer: Any) -> None:
    """Checks trainer, evaluators, callbacks, metrics, optimizers and schedules as far as the recipe shows them."""
    trainer.check_recipe()
    for part in (*trainer.evaluators, *trainer.listeners.values()):
        part.check_recipe(trainer)
    check_metrics(trainer)
    check_optimizers(trainer)


def check_optimizers(trainer: TrainerView) -> None:
    """Checks optimizers and schedules, once the data are there with the length of the run."""
    for role in used_roles(trainer):
        for part in () if role.frozen else ("optimizer", "scheduler"):
            section = getattr(trainer.config, role.section(part))
            build_factory(RoleView(trainer, role), section, f"{part}_factory_type").check()


def build_checkpointers(trainer: TrainerView) -> list[Checkpointer[CheckpointConfig]]:
    """Returns the recipe's checkpoint engines, before they look at their folders."""
    sections = [section for section in trainer.config.checkpoint if section.enabled]
    return [build_factory(trainer, section, "checkpoint_engine_type") for section in sections]


def build_dataloaders(trainer: Any) -> None:
    """Builds the loaders of all sets, and checks what they show. Raises `InputError`, also without training data."""
    loaders = build_component(trainer, "data")
    if loaders.train is None:
        raise RecipeError("data.sources: no training data")
    trainer.train_loader, trainer.eval_loaders = loaders.train, loaders.evaluation
    trainer.check_data()
    check_optimizers(trainer)


def build_engines(trainer: Any) -> None:
    """Builds the engines of all roles; those that only precompute are freed before the others are built."""
    roles, precompute = used_roles(trainer), precomputing_roles(trainer)
    for role in precompute:
        engine = build_engine(trainer, role)
        with activity(f"precomputing {role.name}"):
            trainer.precompute(role.name, engine)
        engine.destroy()
        del engine
        gc.collect()
        torch.cuda.empty_cache()
    for role in roles:
        if role not in precompute:
            trainer.engines[role.name] = build_engine(trainer, role)


def build_engine(trainer: TrainerView, role: Role) -> Engine:
    """Returns the engine of ``role``."""
    config, view = trainer.config, RoleView(trainer, role)
    section = getattr(config, role.name)
    seed(config.seed)  # a reference with random weights equals the policy with random weights
    maker = build_factory(view, section, "model_factory_type")
    with activity(f"loading {role.name.replace('_', ' ')}"):
        model = maker()
        engine: Engine
        if role.frozen:
            engine = freeze(config, model, dtype=section.dtype, block=view.deepspeed_block)
        else:
            optimizer = build_component(view, role.section("optimizer"), model)
            scheduler = build_component(view, role.section("scheduler"), optimizer)
            block = view.deepspeed_block
            engine = initialize(config, model, optimizer, scheduler, dtype=section.dtype, block=block)
        maker.validate_engine(engine)
    # sets the mode of all modules: PEFT sets it on the adapter alone
    return engine.train()


def build_evaluators(sections: list[ComponentConfig]) -> list[Evaluator[ComponentConfig]]:
    """Returns the recipe's evaluators, each with its own folder."""
    evaluators = [Evaluator[ComponentConfig].registered(section.type)(section) for section in sections]
    for evaluator, folder in zip(evaluators, numbered(one.folder for one in evaluators), strict=True):
        evaluator.folder = folder
    return evaluators
