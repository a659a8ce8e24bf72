"""Reads a recipe, a file or a mapping, into the config of its trainer, and reports all problems at once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from arctic_training.config.checks.files import file_problems, invalid_path, outside_root
from arctic_training.config.checks.foreign_keys import foreign_name
from arctic_training.config.checks.libraries import library_problems
from arctic_training.config.checks.problems import Problem, problems_of, shown
from arctic_training.config.recipe.interpolation import interpolate
from arctic_training.config.recipe.location import located, place
from arctic_training.config.recipe.node import Node, from_python, to_python
from arctic_training.config.recipe.overrides import apply_override
from arctic_training.config.recipe.recipe_file import read_recipe_file
from arctic_training.config.recipe.user_code import import_file
from arctic_training.config.sections.component import incomplete
from arctic_training.config.sections.misplaced import say_where_keys_belong
from arctic_training.config.sections.passed import with_placeholders
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.types import InputError, MissingDependencyError, RecipeError, ResumeError
from arctic_training.registry import lookup, names, suggest

DEFAULT_TRAINER = "sft"


def get_config(source: str | Path | Mapping[str, object], overrides: Sequence[str] = ()) -> TrainerConfig:
    """Returns the config of ``source``, the path of a recipe or its content, changed by ``overrides`` one after another
    (see `apply_override`): ``key.path=value``, ``+key.path=value``, ``~key.path``.

    Its class is the ``config_type`` of the trainer that ``type`` names. Imports the user's own code and opens nothing
    else. Raises `RecipeError` with every problem of the recipe. A ``source`` that is no file may lack models and data:
    they are to be passed to the trainer, which raises the error if they are not.
    """
    path = None if isinstance(source, Mapping) else Path(source)
    tree = from_python(dict(source)) if isinstance(source, Mapping) else read_recipe_file(Path(source))
    # by name, as a plug-in: the classes above this room are known here by the registry only
    for override in overrides:
        tree = apply_override(tree, override)
    tree, problems = interpolate(tree)
    code = _import_code(tree, path, problems)
    recipe = to_python(tree)
    assert isinstance(recipe, dict)
    if code is not None:
        recipe["code"] = code
    config_type = _config_type(recipe.setdefault("type", DEFAULT_TRAINER), problems)
    config: TrainerConfig | None = None
    if config_type is not None:
        try:
            config = config_type.model_validate(recipe)
        except ValidationError as error:
            more = [one for one in problems_of(error, config_type) if not _is_covered(one.path, problems)]
            more = say_where_keys_belong(more, lookup("trainer", str(recipe["type"])))
            if path is None and not problems:
                with suppress(ValidationError):  # where nothing is missing but what can be passed to the trainer
                    config = config_type.model_validate(with_placeholders(recipe, more))
            if config is None:
                problems += more
            else:
                config._missing_objects = located(more, tree)
    if problems or config is None:
        raise RecipeError(located(problems, tree))
    config._recipe, config._tree = path, tree
    return config


def missing_paths(config: TrainerConfig) -> list[str]:
    """Returns a line for each file or folder that the recipe names and that does not exist or cannot be written to."""
    return located(list(file_problems(config)), config._tree or Node({}))


def require_libraries(config: TrainerConfig) -> None:
    """Raises `MissingDependencyError` with a line for each library that a section needs and that is not installed."""
    if missing := located(list(library_problems(config)), config._tree or Node({})):
        raise MissingDependencyError("\n".join(missing))


@contextmanager
def place_errors(config: TrainerConfig) -> Iterator[None]:
    """Puts file, line and column before an `InputError` or a `ResumeError` that begins with a key of the recipe."""
    try:
        yield
    except (InputError, ResumeError) as error:
        place(error, config._tree, type(config).model_fields)
        raise


def _config_type(name: object, problems: list[Problem]) -> type[TrainerConfig] | None:
    """Returns the config of the trainer called ``name``; None, with a problem more, where there is no such trainer."""
    if isinstance(name, str) and name in names("trainer"):
        trainer = lookup("trainer", name)
        if not (problem := incomplete(trainer)):
            config_type: type[TrainerConfig] = trainer.config_type  # type: ignore[attr-defined]
            return config_type
        problems.append(Problem(("type",), problem))
    elif not _is_covered(("type",), problems):
        hint = "expected a name"
        if isinstance(name, str):
            hint = foreign_name("trainer", name) or suggest(name, names("trainer"))
        problems.append(Problem(("type",), f"no trainer is named {shown(name)}; {hint}"))
    return None


def _import_code(tree: Node, path: Path | None, problems: list[Problem]) -> Path | None:
    """Registers the classes of the user's own file, whose path is returned."""
    folder = path.parent if path is not None else Path.cwd()
    if _is_covered(("code",), problems):
        return None
    code = tree.step("code")
    problem = ""
    if code is None or code.value is None:
        file = folder / "train.py"
        if path is None or not file.is_file():
            return None
    elif not isinstance(code.value, (str, Path)):
        return None  # its type is checked with the other keys
    else:
        file = folder / code.value
        problem = invalid_path(str(code.value)) or ("" if file.is_file() else f"{file}: no such file")
    if problem := problem or outside_root(file):
        problems.append(Problem(("code",), problem))
        return None
    import_file(file)
    return file.resolve()


def _is_covered(path: tuple[str, ...], problems: list[Problem]) -> bool:
    """Returns whether a problem at ``path`` or above is known already, of which another would be an echo."""
    return any(problem.path == path[: len(problem.path)] for problem in problems)
