"""The groups of a mesh, which DeepSpeed keeps for the whole process."""

import importlib
from typing import TYPE_CHECKING

from torch import nn
from torch.distributed import ProcessGroup

from arctic_training.distributed import process_group

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_GROUPS = ("mpu", "_TENSOR_MODEL_PARALLEL_GROUP", "_MODEL_PARALLEL_GROUP", "_DATA_PARALLEL_GROUP")
"""Their names in ``deepspeed.utils.groups``."""
_DIVIDED = "ds_autotp_parsed"
"""The attribute of a model by which DeepSpeed's engine knows that its layers are divided already."""


def begin_tensor_parallel(size: int) -> ProcessGroup:
    """Returns the group of ``size`` consecutive ranks that this one divides models with.

    DeepSpeed's layers compute gradients from now on, and its next engines use this mesh. All ranks call it together.
    """
    process_group.init_deepspeed()
    groups = importlib.import_module("deepspeed.utils.groups")
    importlib.import_module("deepspeed.module_inject").set_autotp_mode(training=True)
    groups._init_tp_mesh_device(tensor_model_parallel_size=size)
    group: ProcessGroup = groups.get_tensor_model_parallel_group()
    return group


def set_divided(model: nn.Module) -> None:
    """Has DeepSpeed's engine take the layers of ``model`` as they are."""
    setattr(model, _DIVIDED, True)


def end_input_check(deepspeed: "DeepSpeedEngine") -> None:
    """Keeps DeepSpeed from comparing the first batch of the processes that divide a model, by a pickle of all of it."""
    deepspeed.first_dataloader_check.remove()


def end_tensor_parallel() -> None:
    """Makes DeepSpeed forget the groups of a mesh, which it would take for those of the next engine too."""
    vars(importlib.import_module("deepspeed.utils.groups")).update(dict.fromkeys(_GROUPS))
    importlib.import_module("deepspeed.module_inject").set_autotp_mode(training=False)
