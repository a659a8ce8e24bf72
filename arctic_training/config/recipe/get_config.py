"""From a recipe, a file or a mapping, to the config of its trainer. Every problem is told at once."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from arctic_training.config.checks.paths import impossible
from arctic_training.config.checks.problems import Problem, problems_of, shown
from arctic_training.config.checks.sandbox import escapes
from arctic_training.config.recipe.interpolation import interpolate
from arctic_training.config.recipe.node import Node, Origin, from_python, mask, secrets, set_path, to_python
from arctic_training.config.recipe.recipe_file import read_recipe_file
from arctic_training.config.recipe.user_code import import_file
from arctic_training.config.recipe.yaml_reader import read_value
from arctic_training.config.sections.component import incomplete
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.types import RecipeError
from arctic_training.registry import lookup, names, suggest

COMMAND_LINE = "command line"
DEFAULT_TRAINER = "sft"


def get_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainerConfig:
    """The config that ``source``, the path of a recipe or its content, and ``key.path=value`` overrides make.

    Its class is the one that the trainer named by ``type`` states. The user's own code is imported; beside that
    nothing outside is touched. Raises `RecipeError` with all there is to mend.
    """
    path = None if isinstance(source, Mapping) else Path(source)
    written = from_python(dict(source)) if isinstance(source, Mapping) else read_recipe_file(Path(source))
    for override in overrides:
        written = _overridden(written, override)
    tree, problems = interpolate(written)
    code = _import_code(tree, path, problems)
    recipe: dict[Any, Any] = to_python(tree)
    if code is not None:
        recipe["code"] = code
    name = recipe.setdefault("type", DEFAULT_TRAINER)
    known = names("trainer")
    reader: type[TrainerConfig] | None = None
    if isinstance(name, str) and name in known:
        if told := incomplete(lookup("trainer", name)):
            problems.append(Problem(("type",), told))
        else:
            reader = lookup("trainer", name).config_type  # type: ignore[attr-defined]
    elif not _covered(("type",), problems):
        told = suggest(name, known) if isinstance(name, str) else "a name is wanted here"
        problems.append(Problem(("type",), f"no trainer is named {shown(name)}; {told}"))
    config: TrainerConfig | None = None
    if reader is not None:
        try:
            config = reader.model_validate(recipe)
        except ValidationError as error:
            problems += [one for one in problems_of(error, reader) if not _covered(one.path, problems)]
    if problems or config is None:
        raise RecipeError(located(problems, tree))
    config._recipe, config._tree, config._secrets = path, tree, secrets(tree)
    return config


def _overridden(tree: Node, override: str) -> Node:
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")):
        raise RecipeError(f"{COMMAND_LINE}: {override!r}: key.path=value is wanted")
    try:
        return set_path(tree, tuple(name.split(".")), read_value(text, COMMAND_LINE))
    except RecipeError as error:
        raise RecipeError(f"{COMMAND_LINE}: {name}: {str(error).removeprefix(f'{COMMAND_LINE}: ')}") from None
    except ValueError as error:
        raise RecipeError(f"{COMMAND_LINE}: {name}: {error}") from None


def _import_code(tree: Node, path: Path | None, problems: list[Problem]) -> Path | None:
    """Make the names of the built-in classes known, then those of the user's; the file that holds them."""
    # by its name, as a plug-in: what stands above is known here by the shelves it fills, and not otherwise
    import_module("arctic_training.builtin")
    folder = path.parent if path is not None else Path.cwd()
    if _covered(("code",), problems):
        return None
    said = tree.step("code")
    if said is None or said.value is None:
        file = folder / "train.py"
        if path is None or not file.is_file():
            return None
    elif not isinstance(said.value, (str, Path)):
        return None  # its type is told with the others
    elif told := impossible(str(said.value)):
        problems.append(Problem(("code",), told))
        return None
    elif not (file := folder / said.value).is_file():
        problems.append(Problem(("code",), f"{file}: no such file"))
        return None
    if told := escapes(file):
        problems.append(Problem(("code",), told))
        return None
    import_file(file)
    return file.resolve()


def _covered(path: tuple[str, ...], problems: list[Problem]) -> bool:
    """Whether something is known to be wrong there already, of which more would only be an echo."""
    return any(problem.path == path[: len(problem.path)] for problem in problems)


def located(problems: list[Problem], tree: Node) -> list[str]:
    """``file:line:column: key.path: what is wrong``, as far as there is a file, from its top to its end."""
    known = secrets(tree)
    lines = []
    for problem in problems:
        node, path = tree, list(problem.path)
        for number, key in enumerate(problem.path):
            path[number] = node.key_of(key)
            below = node.step(path[number])
            if below is None:
                break
            node = below
        place = node.place(of_key=problem.of_key)
        if node is tree and place is not None:
            place = Origin(place.source)  # a key that is not given, at the top
        text = mask(problem.text, known)
        if node.written and node.value != "":
            text = text.replace(str(node.value), node.written)
        words = [str(place or ""), ".".join(path), text]
        line = ": ".join(word for word in words if word).replace("\n", "\\n")
        lines.append((place.line if place else 0, line))
    return [line for _, line in sorted(lines, key=lambda one: one[0])]
