"""The training loop."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from arctic_training.callback.callback import Callback, RewindTraining
from arctic_training.callback.hook_names import NamedHooks
from arctic_training.callback.hooks import hook
from arctic_training.checkpoint.checkpointer import Checkpointer, save_all
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.batching.loader import Batch, Loader
from arctic_training.data.factories.base import DataFactory
from arctic_training.distributed import collectives, process_group
from arctic_training.engine.engine import Engine
from arctic_training.evaluation.evaluator import Evaluator
from arctic_training.metrics import merge_metrics
from arctic_training.model.factory import ModelFactory
from arctic_training.optimizer.factory import OptimizerFactory
from arctic_training.registry import Registered
from arctic_training.scheduler.factory import SchedulerFactory
from arctic_training.state import RunState, Stateful
from arctic_training.tokenizer.factory import TokenizerFactory
from arctic_training.trainer.assembly import assemble, prepared_data
from arctic_training.trainer.bare import set_up
from arctic_training.trainer.ending import Ending
from arctic_training.trainer.evaluation import measure
from arctic_training.trainer.isolated_run import isolated_run
from arctic_training.trainer.out_of_memory import translate_oom_errors
from arctic_training.trainer.outputs import Outputs
from arctic_training.trainer.passed import pass_objects
from arctic_training.trainer.role import Role, check_roles, check_vocabularies
from arctic_training.trainer.role_sections import add_role_sections
from arctic_training.trainer.schedule import ScheduleMixin
from arctic_training.trainer.session import Session
from arctic_training.trainer.throughput import Throughput
from arctic_training.trainer.window import count_loss_terms, windowed_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Trainer(Registered, NamedHooks, Outputs, ScheduleMixin, Ending, ABC, kind="trainer"):
    """Base class of all trainers. A subclass that states a ``name`` and defines `loss` can be named by a recipe.

    The class attributes list the classes that may serve it; the first of each list is the default.
    """

    config_type: ClassVar[type[TrainerConfig]] = TrainerConfig
    data_factory_type: ClassVar[type[DataFactory[Any]] | Sequence[type[DataFactory[Any]]]]
    model_factory_type: ClassVar[type[ModelFactory[Any]] | Sequence[type[ModelFactory[Any]]]]
    checkpoint_engine_type: ClassVar[type[Checkpointer[Any]] | Sequence[type[Checkpointer[Any]]]]
    optimizer_factory_type: ClassVar[type[OptimizerFactory[Any]] | Sequence[type[OptimizerFactory[Any]]]]
    scheduler_factory_type: ClassVar[type[SchedulerFactory[Any]] | Sequence[type[SchedulerFactory[Any]]]]
    tokenizer_factory_type: ClassVar[type[TokenizerFactory[Any]] | Sequence[type[TokenizerFactory[Any]]]]
    roles: ClassVar[tuple[Role, ...]] = (Role("model"),)
    shares_sequences: ClassVar[bool] = False
    """Whether `loss` is correct on a shard of every sequence; a class with a loss of its own states it again."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        check_roles(cls)
        super().__init_subclass__(**kwargs)
        if issubclass(cls.config_type, TrainerConfig):  # any other type is refused when a recipe names the class
            cls.config_type = add_role_sections(cls.config_type, cls.roles)

    skipped_windows: set[tuple[int, int]]
    """Epoch and first row of windows that are not trained on."""
    throughput: Throughput
    _last_eval_step = -1
    _unlogged_metrics: Mapping[str, float] = {}

    # set by assembly, in this order
    session: Session
    listeners: dict[str, Callback[Any]]
    tokenizer: "PreTrainedTokenizerBase | None" = None
    eval_loaders: Mapping[str, Loader] = {}
    engines: dict[str, Engine]
    checkpointers: list[Checkpointer[Any]]
    evaluators: list[Evaluator[Any]]
    state: RunState

    @classmethod
    def prepare_data(cls, config: TrainerConfig) -> None:
        """Prepares the data of the run, so that they are in the cache; builds nothing else."""
        with prepared_data(cls, config):
            pass

    @hook("init")
    @translate_oom_errors()
    @isolated_run()
    def __init__(self, config: TrainerConfig, **objects: object) -> None:
        """``objects``, such as ``model`` and ``train_dataset``, are those of `pass_objects`. Raises `InputError`."""
        set_up(self, pass_objects(config, type(self), objects))
        assemble(self)
        self._started_at = self.progress.step

    @property
    def train_batches(self) -> Iterator[Any]:
        """The remaining micro-batches of the current epoch, window by window: see `AccumulationWindow`."""
        return windowed_batches(self)

    @hook("train")
    @translate_oom_errors()
    @isolated_run()
    def train(self) -> None:
        """Trains for the rest of the run, saves and evaluates what is due at its end, and closes the session."""
        process_group.init_process_group()  # a run that ended in this process may have destroyed it
        try:
            if self.config.evaluate_first and not self.progress.step:
                self.evaluate()
            self.throughput.start()
            while not self._run_epochs():
                pass
            self._finalize()
        except BaseException as error:
            self._end_by_error(error)
            self.session.close(failed=True)
            raise

    def _run_epochs(self) -> bool:
        """Runs the remaining epochs. Returns False when a callback has rewound the run, so that others remain."""
        try:
            for _ in self.epochs:
                self.epoch()
                if not self.stop_reason or self.epochs_completed >= self.progress.epoch + 1:
                    self.progress.epoch, self.progress.sample_index = self.progress.epoch + 1, 0
                    self._save_if_due()
                if self.stop_reason:
                    break
        except RewindTraining:
            self.stop_reason, self.finished = "", False  # set by a callback after the position that was gone back to
            for engine in self.checkpointers:
                engine.mark_rewound()
            return False
        return True

    @hook("epoch")
    def epoch(self) -> None:
        """Trains on the remaining micro-batches of the current epoch; after each window, `after_update`."""
        assert self.train_loader is not None
        for batch in [] if self.stop_reason else self.train_batches:
            self.is_between_steps = False
            for engine in self.trainable_engines.values():
                if not engine.module.training:
                    engine.train()
            self.step(batch)
            self.progress.sample_index += self.train_loader.stride
            if self.window.is_last_micro_batch:
                self.progress.step += 1
                self.progress.num_target_tokens += self.window.targets
                self.progress.num_tokens += self.window.tokens.tokens
                self.throughput.add(self.window.tokens)
                self.is_between_steps = True
                self.after_update()
                if self.stop_reason:
                    return

    @hook("step")
    def step(self, batch: Batch) -> None:
        """Trains on one micro-batch: calls `update` for the primary role with its `loss`."""
        self.update("model", self.loss(batch))

    @hook("loss")
    @abstractmethod
    def loss(self, batch: Batch) -> torch.Tensor:
        """Returns the loss of one micro-batch: a scalar tensor ``[]`` with a gradient.

        A plain mean is averaged over the window's micro-batches and ranks. A sum over labels divided by
        ``batch["num_items_in_batch"]`` makes the loss of the step the exact mean over all labels of the window.
        """

    def targets(self, batch: Batch) -> int:
        """Returns how many terms the loss of ``batch`` sums: its labels, or its rows where it has no labels."""
        return count_loss_terms(batch)

    @hook("after_update")
    def after_update(self) -> None:
        """Logs, evaluates, saves and stops after an optimizer step, each when it is due."""
        step, config = self.progress.step, self.config
        if config.train_log_iter_interval and step % config.train_log_iter_interval == 0:
            self.log()
        if config.eval_interval and step % config.eval_interval == 0:
            self.evaluate()
        self._save_if_due()
        if self.window.stop:
            self._sync_stop_requests()
        elif not self.stop_reason and self.last_step is not None and step >= self.last_step:
            self.stop_reason = f"step {step} is the last of this run"

    @hook("log")
    def log(self) -> dict[str, float]:
        """Sends the means of what was recorded since the last call to the trackers, and returns them."""
        recorded = self.metrics.compute(collectives.all_reduce)
        own = {} if (norm := self.model.grad_norm) is None else {"grad_norm": norm}
        own |= {"lr": self.model.last_lr, "epoch": self.epochs_completed, **self.throughput.read()}
        own |= self.take_save_seconds()
        values = dict(sorted(merge_metrics(own, recorded).items(), key=lambda item: item[0] in own))
        self.session.log(values, self.progress.step)
        return values

    @hook("evaluate")
    def evaluate(self) -> dict[str, float]:
        """Returns the mean loss over every evaluation set and what the evaluators measure, over all ranks.

        The state of the run is the same afterwards.
        """
        values = measure(self)
        for engine in self.checkpointers:
            engine.record_metrics(values)
        step, interval, every = self.progress.step, self.config.eval_interval, self.config.eval_log_iter_interval
        log = every and (not interval or step % interval or step % (interval * every) == 0)
        self._last_eval_step, self._unlogged_metrics = step, values if every and not log else {}
        if log:
            self.session.log(values, step)
        return values

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Returns what is logged of an evaluation set, given the means of what was recorded; see `Metrics.kept`."""
        return means

    @hook("checkpoint")
    def checkpoint(self, engines: Sequence[Checkpointer[Any]] | None = None) -> None:
        """Saves now, with ``engines`` or with every checkpoint engine of the recipe."""
        save_all(self.checkpointers if engines is None else engines, self.trainable_engines, self.state)

    def extra_state_dict(self) -> dict[str, Stateful]:
        """Returns the state of a subclass that a checkpoint holds beside weights, position and generators, by name."""
        return {}

    def check_models(self, models: Mapping[str, torch.nn.Module | None]) -> None:
        """Called before data are prepared, with the model of each role on the meta device, where it can be built so.

        Raises `ModelError` for models that do not go together.
        """
        check_vocabularies(self.roles, models)

    def close(self, *, failed: bool = False) -> None:
        """Ends worker processes, trackers and engines of the run, and restores what it changed in the process."""
        self.session.close(failed=failed)
        for loader in filter(None, [self.train_loader, *self.eval_loaders.values()]):
            loader.close()
        for engine in self.engines.values():
            engine.destroy()
        self.engines.clear()
        self.session.leave(failed=failed)
