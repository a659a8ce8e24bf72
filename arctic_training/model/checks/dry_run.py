"""What would be wrong with a model, told by one without weights, before the data are prepared for it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from arctic_training.errors.types import ModelError
from arctic_training.logging import logger

_OF_POSITIONS = re.compile(r"(.*\.)?(?!\w*(relative|bias))(wpe|\w*pos\w*)")
"""Names of embeddings with a row for each position; those of distances have few rows for all of them."""


def require_shapes(model: nn.Module, told: Mapping[str, list[int]]) -> None:
    """Raises `ModelError` for weights whose shape in the files, as ``told``, is not that of the model."""
    own = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    wrong = [
        f"{name} is {shape} in the file, {own[name]} by the config"
        for name, shape in sorted(told.items())
        if name in own and shape != own[name]
    ]
    if wrong:
        raise ModelError(misfit(wrong))


def require_modules(model: Any, told: Mapping[str, list[int]], *, new: Sequence[str]) -> None:
    """Raises `ModelError` for modules of which the files, as ``told``, hold nothing; but for ``new`` ones."""
    if not told:
        return
    parts = {part for name in told for part in name.split(".")}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for name, _ in model.named_parameters():
        module = name.split(".")[0]
        if module not in {*parts, *new, model.base_model_prefix} and name not in tied:
            raise ModelError(
                f"the weights do not fit the config: {name} is missing; for a {module} with random weights give "
                f"model.new_weights: [{module}]"
            )


def misfit(wrong: list[str]) -> str:
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"the weights do not fit the config: {'; '.join(wrong[:3])}{more}"


def require_positions(model: nn.Module, longest: int | None, known: int | None) -> None:
    """See that samples of ``longest`` tokens have positions; ``known`` is how many the model's config says.

    Positions that are learned end somewhere, and a lookup beyond is an error in the middle of a run, on a GPU without
    a name: refused. Those that are computed go on, into what the model has never seen: a warning. Raises `ModelError`.
    """
    learned = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and _OF_POSITIONS.fullmatch(name)
    ]
    if longest is None:
        return
    # some models keep a few rows more than there are positions
    most = min([*learned, *([known] if learned and known else [])], default=longest)
    if longest > most:
        raise ModelError(f"data.max_length: {longest} tokens, and the model has learned {most} positions; lower it")
    if known and longest > known:
        logger.warning(f"data.max_length: {longest} tokens are more than the {known} that the model has seen at once")


def rows(model: Any) -> int | None:
    """Rows of the embedding; None for a model without one."""
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if not isinstance(embedding, nn.Embedding):
        return None
    return int(getattr(embedding.weight, "ds_shape", embedding.weight.shape)[0])
