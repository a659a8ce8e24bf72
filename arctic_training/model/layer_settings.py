"""Settings of the layers of a model: their transforms, and what is computed again for the gradient."""

from collections.abc import Callable
from typing import Any, TypeVar

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.model.huggingface_config import HFModelConfig
from arctic_training.model.kept_activations import Recomputation
from arctic_training.model.transforms.activation_checkpointing import (
    ActivationCheckpointing,
    ActivationCheckpointingConfig,
)
from arctic_training.model.transforms.base import ModelTransform
from arctic_training.model.transforms.compile import Compile, CompileConfig
from arctic_training.model.transforms.tiled_mlp import TiledMLP, TiledMLPConfig

C = TypeVar("C", bound=ComponentConfig)


def checkpoints_activations(section: HFModelConfig, recipe: TrainerConfig) -> bool | None:
    """Returns whether the layers are computed again for the gradient; None where their memory decides it."""
    if section.keeps_activations:
        return False
    is_on = section.activation_checkpointing != "auto" or recipe.activation_checkpoint_cpu_offload
    return True if is_on or _listed(section, ActivationCheckpointingConfig) is not None else None


def recomputation_of(section: HFModelConfig, recipe: TrainerConfig, width: Callable[[], int]) -> Recomputation:
    """Returns what is computed again as far as the recipe says it; ``width`` is that of the hidden states."""
    listed, tiled = _listed(section, ActivationCheckpointingConfig), _listed(section, TiledMLPConfig)
    selective = section.activation_checkpointing == "selective" or (listed is not None and listed.selective)
    offloads = recipe.activation_checkpoint_cpu_offload or (listed is not None and listed.offload)
    tile = (tiled.tokens or 0) if tiled is not None else 0
    if not tile and (recipe.tiled_mlp_compute or tiled is not None):
        tile = width()
    return Recomputation(checkpoints_activations(section, recipe) is True, selective, offloads, tile)


def layer_transforms(section: HFModelConfig, again: Recomputation, *, checkpoints: bool) -> list[ModelTransform[Any]]:
    """Returns the transforms that the section lists, and after them those that other keys ask for.

    ``checkpoints``: the layers are computed again, by the recipe or for their memory.
    """
    checkpointing = ActivationCheckpointingConfig(
        type=ActivationCheckpointing.name, selective=again.selective, offload=again.offloads
    )
    transforms: list[ModelTransform[Any]] = []
    for config in section.transforms:
        transform_type: type[ModelTransform[Any]] = ModelTransform.registered(config.type)
        transforms.append(transform_type(checkpointing if config.type == ActivationCheckpointing.name else config))
    named = {transform.name for transform in transforms}
    if again.tile and TiledMLP.name not in named:
        transforms.append(TiledMLP(TiledMLPConfig(type=TiledMLP.name)))
    if checkpoints and ActivationCheckpointing.name not in named:
        transforms.append(ActivationCheckpointing(checkpointing))
    if section.compile and Compile.name not in named:
        transforms.append(Compile(CompileConfig(type=Compile.name)))
    return transforms


def _listed(section: HFModelConfig, config_type: type[C]) -> C | None:
    """Returns the config of a transform that the section lists."""
    return next((one for one in section.transforms if isinstance(one, config_type)), None)
