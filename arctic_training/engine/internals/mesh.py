"""The groups of a mesh, which DeepSpeed keeps for the whole process."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_GROUPS = ("mpu", "_TENSOR_MODEL_PARALLEL_GROUP", "_MODEL_PARALLEL_GROUP", "_DATA_PARALLEL_GROUP")
"""Their names in ``deepspeed.utils.groups``."""


def end_input_check(deepspeed: "DeepSpeedEngine") -> None:
    """Keeps DeepSpeed from comparing the first batch of the processes that divide a model, by a pickle of all of it."""
    deepspeed.first_dataloader_check.remove()


def end_tensor_parallel() -> None:
    """Makes DeepSpeed forget the groups of a mesh, which it would take for those of the next engine too."""
    vars(importlib.import_module("deepspeed.utils.groups")).update(dict.fromkeys(_GROUPS))
    importlib.import_module("deepspeed.module_inject").set_autotp_mode(training=False)
