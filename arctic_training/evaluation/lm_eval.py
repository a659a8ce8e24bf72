"""The evaluator `lm_eval`: tasks of the lm-evaluation-harness."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanInt
from arctic_training.distributed import process_group
from arctic_training.errors.types import InputError
from arctic_training.evaluation.evaluator import Evaluator
from arctic_training.generation.generate import require_generate
from arctic_training.generation.prompts import has_virtual_tokens
from arctic_training.registry import did_you_mean

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


class LMEvalConfig(ComponentConfig):
    """Keys of the evaluator `lm_eval`."""

    libraries = {"lm_eval": "arctic_training[eval]"}

    tasks: list[str] = Field(min_length=1)
    """Names of tasks or of groups of them."""
    include_path: Path | None = None
    """A folder with YAML files of further tasks."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples before each question; null: as many as the task says."""
    limit: HumanInt = Field(default=0, ge=0)
    """Use the first ``limit`` questions of each task; 0: all."""
    batch_size: int = Field(default=8, ge=1)
    """Questions that are computed at once."""
    apply_chat_template: bool = False
    """Ask by the tokenizer's chat template."""
    seed: int = Field(default=42, ge=0)
    """Seed of the examples that are drawn."""
    save: bool = True
    """Write every question with the model's completions to ``generations/<task>`` of the run folder, as JSON lines."""


class LMEvalEvaluator(Evaluator[LMEvalConfig]):
    """Measures ``<metric>/<task>`` for tasks of the lm-evaluation-harness, with the model as it is in memory.

    A metric that a task measures after several filters is ``<metric>,<filter>/<task>``.
    Every rank computes every task, so that it works at any ZeRO stage.
    """

    name = "lm_eval"
    checks_without_data = True

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `InputError` for a task that the library does not know."""
        known = self._manager.all_tasks
        for task in self.config.tasks:
            if not self._manager.match_tasks([task]):
                hint = did_you_mean(task, known) or "`lm-eval ls tasks` lists all"
                raise InputError(f"evaluators: lm_eval: tasks: no task is named {task!r}; {hint}")

    def check(self, trainer: TrainerView) -> None:
        """Raises `InputError` for a model that cannot generate, and, once the run has its own data, for tasks whose
        data cannot be loaded: those of most tasks are on the hub."""
        if trainer.tokenizer is None:
            raise InputError("evaluators: 'lm_eval' needs a tokenizer, and this run has none")
        require_generate(trainer, "evaluators: 'lm_eval'")
        if not trainer.eval_loaders and trainer.train_loader is None:
            return
        try:
            self._manager.load(self.config.tasks)
        except Exception as error:
            why = " ".join(str(error).split()) or type(error).__name__
            names = ", ".join(self.config.tasks)
            raise InputError(f"evaluators: lm_eval: tasks: the data of {names} cannot be loaded: {why}") from error

    def metrics(self, sets: Sequence[str]) -> list[str] | None:
        """Returns the metrics in the files of the tasks; None where one is a group or has code that measures."""
        names: list[str] = []
        for task in self.config.tasks:
            entry = self._manager.task_index.get(task)
            settings = (entry.cfg if entry is not None else None) or {"class": task}
            if {"class", "group", "process_results"} & settings.keys():
                return None
            listed = settings.get("metric_list")
            metrics = [one.get("metric") for one in listed] if listed else _default_metrics(settings)
            filters = [one["name"] for one in settings.get("filter_list") or [{"name": "none"}]]
            if any(not isinstance(one, str) or os.sep in one for one in metrics):  # a function, by its file
                return None
            names += _names([f"{metric},{one}" for metric in metrics for one in filters], task).values()
        return names

    @cached_property
    def _manager(self) -> "TaskManager":
        from lm_eval.tasks import TaskManager

        folder = self.config.include_path
        if folder is None:
            return TaskManager()
        own = TaskManager(include_path=str(folder.expanduser()), include_defaults=False)
        # reading thousands of files takes seconds
        is_complete = all(own.match_tasks([task]) for task in self.config.tasks)
        return own if is_complete else TaskManager(include_path=str(folder.expanduser()))

    def __call__(self, trainer: TrainerView) -> dict[str, float]:
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        config, seed = self.config, self.config.seed
        module = require_generate(trainer, "evaluators: 'lm_eval'")
        size = 1 if has_virtual_tokens(module) else config.batch_size
        results = lm_eval.simple_evaluate(
            model=HFLM(pretrained=module, tokenizer=trainer.tokenizer, batch_size=size),
            tasks=config.tasks,
            task_manager=self._manager,
            num_fewshot=config.num_fewshot,
            limit=config.limit or None,
            apply_chat_template=config.apply_chat_template,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            log_samples=config.save,
            bootstrap_iters=0,
            verbosity="WARNING",
        )
        if config.save and process_group.is_main():
            self._save(results["samples"], trainer)
        measured: dict[str, float] = {}
        for task, values in results["results"].items():
            numbers = {key: float(value) for key, value in values.items() if isinstance(value, (int, float))}
            keys = [key for key in numbers if "," in key and "_stderr," not in key]
            measured |= {name: numbers[key] for key, name in _names(keys, task).items()}
        return measured

    def _save(self, samples: Mapping[str, Sequence[Mapping[str, object]]], trainer: TrainerView) -> None:
        for task, rows in samples.items():
            folder = trainer.run_dir / self.folder / task
            folder.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            (folder / f"step_{trainer.progress.step}.jsonl").write_text(text, encoding="utf-8")


def _default_metrics(settings: Mapping[str, object]) -> list[str]:
    """Returns the metrics of a task that lists none."""
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    return list(DEFAULT_METRIC_REGISTRY[settings.get("output_type", "generate_until")])


def _names(keys: Sequence[str], task: str) -> dict[str, str]:
    """Returns the name of each metric in ``keys``, which have the form ``<metric>,<filter>``.

    The filter is in the name only where ``task`` has several of the metric, as gsm8k has.
    """
    metrics = {key: key.partition(",")[0] for key in keys}
    count = Counter(metrics.values())
    return {key: f"{metric if count[metric] == 1 else key}/{task}" for key, metric in metrics.items()}
