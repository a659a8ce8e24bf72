"""Compares the shapes of the weights in a model's files with those of a model built from its config."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from arctic_training.errors.types import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_weight_shapes(model: nn.Module, file_shapes: Mapping[str, list[int]]) -> None:
    """Compares the shapes of weights that are both in the files and in ``model``, by name. Raises `ModelError`."""
    shapes = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    problems = [
        f"{name} is {shape} in the file, {shapes[name]} by the config"
        for name, shape in sorted(file_shapes.items())
        if name in shapes and shape != shapes[name]
    ]
    if problems:
        raise ModelError(mismatch_message(problems))


def check_modules_in_files(
    model: "PreTrainedModel", file_shapes: Mapping[str, list[int]], *, new: Sequence[str]
) -> None:
    """Compares the modules of ``model`` with those that the files hold weights of; ``new`` ones may be missing.

    Raises `ModelError`.
    """
    if not file_shapes:
        return
    in_files = {part for name in file_shapes for part in name.split(".")}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for name, _ in model.named_parameters():
        module = name.split(".")[0]
        if module not in {*in_files, *new, model.base_model_prefix} and name not in tied:
            raise ModelError(
                f"the weights do not fit the config: {name} is missing; for a {module} with random weights give "
                f"model.new_weights: [{module}]"
            )


def mismatch_message(problems: Sequence[str]) -> str:
    """Returns one sentence of ``problems``, of which it names three."""
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"the weights do not fit the config: {'; '.join(problems[:3])}{more}"
