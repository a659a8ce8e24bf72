"""Measures the loss on every evaluation set, runs the evaluators, and adds what listeners measure."""

from contextlib import ExitStack
from typing import Any

from arctic_training.callback.hooks import hook
from arctic_training.display.activity import activity
from arctic_training.distributed import collectives
from arctic_training.evaluation.evaluator import as_floats, evaluate_metrics
from arctic_training.generation.scoring import raise_on_all_ranks
from arctic_training.metrics import Metrics, merge_metrics, parent_set
from arctic_training.state import isolated_eval
from arctic_training.trainer.isolated_run import isolated_run
from arctic_training.trainer.window import set_num_items_in_batch, to_device


@isolated_run()
def measure(trainer: Any) -> dict[str, float]:
    """Returns ``<metric>/<set>`` of every evaluation set and what the evaluators measure, over all ranks. Sets such as
    ``eval/a`` and ``eval/b`` are parts of one, ``eval``, whose means are those over both.

    ``trainer`` is a `Trainer`; its metrics, modes of modules and random generators are the same afterwards.
    """
    training, values = trainer.metrics, dict[str, float]()
    with isolated_eval(engine.module for engine in trainer.engines.values()), ExitStack() as averages:
        for role in trainer.trainable_engines:
            averages.enter_context(trainer.averaged(role, purpose="evaluate"))
        try:
            sets, parents = dict[str, Metrics](), dict[str, Metrics]()
            for name, loader in trainer.eval_loaders.items():
                trainer.metrics = sets[name] = Metrics()
                loader.seek(0, 0)
                with activity(f"evaluating {name}", len(loader), aside=True) as one:
                    for one.done, batch in enumerate(loader):
                        trainer.metrics.weight = trainer.targets(batch)
                        num_items = max(trainer.metrics.weight, 1)
                        batch = set_num_items_in_batch(to_device(batch, trainer.device), num_items)
                        trainer.record("loss", trainer.loss(batch))
                if parent := parent_set(name):
                    parents.setdefault(parent, Metrics()).include(sets[name])
            for name, metrics in {**parents, **sets}.items():
                trainer.metrics = metrics
                means = trainer.finalize_eval_metrics(metrics.compute(collectives.all_reduce))
                values = merge_metrics(values, {f"{metric}/{name}": value for metric, value in means.items()})
        finally:
            trainer.metrics = training
        for evaluator in trainer.evaluators:
            with activity(f"evaluating: {evaluator.name}", aside=True):
                values = merge_metrics(values, evaluate_metrics(evaluator, trainer))
        values = trainer.val_metrics(values)
    with raise_on_all_ranks():
        return as_floats(values, "get_val_metrics returned")


class ValidationMetrics:
    """Part of `Trainer`: which metrics its evaluations have, and the event at which listeners add others."""

    @property
    def eval_metrics(self) -> tuple[str, ...] | None:
        """The names of all that an evaluation may record beside the loss, by the recipe: one that names another is
        refused before data are prepared. A class with a `loss`, `finalize_eval_metrics` or `build_rollout` of its own
        states it again, as an attribute or a property; None: only an evaluation shows them."""
        return None

    @hook("val_metrics")
    def val_metrics(self, values: dict[str, float]) -> dict[str, float]:
        """Announces the metrics of an evaluation, and returns them with what `get_val_metrics` of listeners adds: all
        models are in evaluation mode, without gradients. Every rank has to add the same names and values."""
        return values
