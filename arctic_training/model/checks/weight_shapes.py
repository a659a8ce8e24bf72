"""Compares the shapes of the weights in a model's files with those of a model built from its config."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from arctic_training.errors.types import ModelError
from arctic_training.registry import suggest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_weight_shapes(
    model: "PreTrainedModel", file_shapes: Mapping[str, list[int]], *, new: Sequence[str] = ()
) -> None:
    """Compares the shapes of weights that are both in the files and in ``model``, by name.

    Those of ``new`` modules may differ. Raises `ModelError`.
    """
    shapes = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    prefix = getattr(model, "base_model_prefix", "")
    problems = [
        f"{name} is {shape} in the file, {shapes[name]} by the config"
        for name, shape in sorted(file_shapes.items())
        if name in shapes and shape != shapes[name] and not is_named(name, new, prefix)
    ]
    if problems:
        raise ModelError(mismatch_message(problems))


def check_modules_in_files(
    model: "PreTrainedModel", file_shapes: Mapping[str, list[int]], *, new: Sequence[str], converts: bool = False
) -> None:
    """Compares the modules of ``model`` with those that the files hold weights of; ``new`` ones may be missing.

    Both are named as in the backbone of the model, since files may hold it with another head, or none. With
    ``converts``, transformers renames the weights of the files, and only heads beside the backbone are compared, with
    every part of the names in the files. Raises `ModelError`.
    """
    if not file_shapes:
        return
    prefix = f"{model.base_model_prefix}."
    in_files = {path for name in file_shapes for path in _ancestors(name.removeprefix(prefix))}
    if converts:
        in_files |= {part for name in file_shapes for part in name.split(".")}
    absent_by_design = [*(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())]
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    problems, modules = [], list[str]()
    for name in sorted(name for name, _ in model.named_parameters()):
        path = name.removeprefix(prefix)
        if converts and (path != name or path.split(".")[0] in in_files):
            continue
        missing = [module for module in _ancestors(path) if module not in in_files]
        if not missing or name in tied or any(re.search(one, name) for one in absent_by_design):
            continue
        if not is_named(name, new, model.base_model_prefix):
            problems.append(f"{name} is missing")
            modules.append(missing[-1])
    if not problems:
        return
    message, several = mismatch_message(problems), sorted(set(modules))
    if not any(part.isdigit() for module in several for part in module.split(".")):  # a head, and no layers
        what = f"a {several[0]}" if len(several) == 1 else "modules"
        message += f"; for {what} with random weights give model.new_weights: [{', '.join(several)}]"
    raise ModelError(message)


def check_new_weights(model: "PreTrainedModel", new: Sequence[str]) -> None:
    """Raises `ModelError` for a name in ``new`` that is neither a module with weights nor a weight of ``model``."""
    names = [name for name, _ in model.named_parameters()]
    for one in new:
        if not any(is_named(name, [one], model.base_model_prefix) for name in names):
            modules = sorted({path.removeprefix(f"{model.base_model_prefix}.").split(".")[0] for path in names})
            raise ModelError(f"model.new_weights: {type(model).__name__} has no {one}; {suggest(one, modules)}")


def is_named(weight: str, names: Sequence[str], prefix: str = "") -> bool:
    """Returns whether one of ``names`` is the path of ``weight`` or a module around it, with ``prefix`` or without."""
    paths = {weight, weight.removeprefix(f"{prefix}.")}
    return any(path == name or path.startswith(f"{name}.") for path in paths for name in names)


def _ancestors(weight: str) -> list[str]:
    """Returns the paths of the modules around a weight, the innermost first: ``a.b`` and ``a`` for ``a.b.weight``."""
    parts = weight.split(".")
    return [".".join(parts[:size]) for size in range(len(parts) - 1, 0, -1)]


def mismatch_message(problems: Sequence[str]) -> str:
    """Returns one sentence of ``problems``, of which it names three."""
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"the weights do not fit the config: {'; '.join(problems[:3])}{more}"
