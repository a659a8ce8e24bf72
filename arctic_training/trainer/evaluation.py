"""Measures the loss on every evaluation set and runs the evaluators."""

from contextlib import ExitStack
from typing import Any

from arctic_training.distributed import collectives
from arctic_training.evaluation.evaluator import evaluate_metrics
from arctic_training.metrics import Metrics, merge_metrics
from arctic_training.state import isolated_eval
from arctic_training.trainer.window import set_num_items_in_batch, to_device


def measure(trainer: Any) -> dict[str, float]:
    """Returns ``<metric>/<set>`` of every evaluation set and what the evaluators measure, over all ranks.

    ``trainer`` is a `Trainer`; its metrics, modes of modules and random generators are the same afterwards.
    """
    training, values = trainer.metrics, dict[str, float]()
    with isolated_eval(engine.module for engine in trainer.engines.values()), ExitStack() as averages:
        for role in trainer.trainable_engines:
            averages.enter_context(trainer.averaged(role, purpose="evaluate"))
        try:
            for name, loader in trainer.eval_loaders.items():
                trainer.metrics = Metrics()
                loader.seek(0, 0)
                for batch in loader:
                    trainer.metrics.weight = trainer.targets(batch)
                    num_items = max(trainer.metrics.weight, 1)
                    batch = set_num_items_in_batch(to_device(batch, trainer.device), num_items)
                    trainer.record("loss", trainer.loss(batch))
                means = trainer.finalize_eval_metrics(trainer.metrics.compute(collectives.all_reduce))
                values = merge_metrics(values, {f"{metric}/{name}": value for metric, value in means.items()})
        finally:
            trainer.metrics = training
        for evaluator in trainer.evaluators:
            values = merge_metrics(values, evaluate_metrics(evaluator, trainer))
    return values
