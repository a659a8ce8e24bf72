"""The figures of a run's evaluations in the form that the hub reads: the ``model-index`` of a model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from arctic_training.config.checks.files import is_hub_name
from arctic_training.data.factories.config import evaluation_names_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

Section = Mapping[str, object]
"""A section of a recipe, or a recipe, with all its defaults."""


class _Dataset(NamedTuple):
    """An evaluation set, by what it was read from."""

    kind: str
    """Its name on the hub, or what it is called here. Figures with the same one are taken for those of one set, unless
    split, configuration or revision differ."""
    name: str
    split: str | None = None
    config: str | None = None
    revision: str | None = None


def evaluation_results(recipe: Section, figures: Mapping[str, float], task: str) -> "list[EvalResult]":
    """Returns those of ``figures``, values by ``<metric>/<set>``, of which the recipe names the set: an evaluation set,
    or a task of the evaluator `lm_eval`.

    ``task`` is what the hub calls the task of the model.
    """
    from huggingface_hub import EvalResult

    results, seen = list[EvalResult](), set[tuple[str | None, ...]]()
    for set_name, dataset in _datasets(recipe).items():
        measured = {
            name.removesuffix(f"/{set_name}"): name for name in sorted(figures) if name.endswith(f"/{set_name}")
        }
        if not measured:
            continue
        identity = (dataset.kind, *dataset[2:])
        kind = set_name if identity in seen else dataset.kind
        seen.add(identity)
        results += [
            EvalResult(
                task_type=task,
                dataset_type=kind,
                dataset_name=dataset.name,
                dataset_config=dataset.config,
                dataset_split=dataset.split,
                dataset_revision=dataset.revision,
                metric_type=metric,
                metric_value=figures[name],
            )
            for metric, name in measured.items()
        ]
    return results


def sections(value: object) -> list[Section]:
    """Returns the sections in a list of a recipe; none where it is no list."""
    rows = value if isinstance(value, list) else []
    return [row for row in rows if isinstance(row, Mapping)]


def could_be_on_hub(name: str) -> bool:
    """Returns whether ``name`` could be one of the hub, and is no file or folder here."""
    return name.count("/") == 1 and is_hub_name(name) and not Path(name).exists()


def _datasets(recipe: Section) -> dict[str, _Dataset]:
    """Returns the sets by their names in metrics."""
    sets = dict[str, _Dataset]()
    for evaluator in sections(recipe.get("evaluators")):
        tasks = evaluator.get("tasks") if evaluator.get("type") == "lm_eval" else None
        sets |= {str(task): _Dataset(str(task), str(task)) for task in (tasks if isinstance(tasks, list) else [])}
    data = recipe.get("data")
    section: Section = data if isinstance(data, Mapping) else {}
    evaluated, trained = sections(section.get("eval_sources")), sections(section.get("sources"))
    if evaluated or len(trained) == 1:
        return sets | _by_name(evaluated or trained)
    # what is held out of several sources is a set, and its parts are
    parts = {f"eval/{name}": dataset for name, dataset in _by_name(trained).items()}
    return sets | {"eval": _Dataset("eval", "eval")} | parts


def _by_name(sources: Sequence[Section]) -> dict[str, _Dataset]:
    """Returns what each source is, by the name of its evaluation set."""
    names = evaluation_names_of([_display_name(one) for one in sources])
    return {name: _dataset(one) for name, one in zip(names, sources, strict=True)}


def _dataset(source: Section) -> _Dataset:
    name = _display_name(source)
    hub_name, _, split = name.partition(":")
    if not could_be_on_hub(hub_name):
        return _Dataset(Path(name).name, Path(name).name)
    options = source.get("kwargs")
    kwargs: Section = options if isinstance(options, Mapping) else {}
    config, revision = (str(kwargs[key]) if kwargs.get(key) else None for key in ("name", "revision"))
    return _Dataset(hub_name, Path(hub_name).name, str(source.get("split") or split) or None, config, revision)


def _display_name(source: Section) -> str:
    """Returns the ``display_name`` of a source."""
    task = source.get("task")
    kind = task.get("type") if isinstance(task, Mapping) else source.get("type")
    return str(source.get("name_or_path") or kind)
