"""Modules whose weights ZeRO stage 3 gathers at once, by attributes of DeepSpeed that are undocumented.

`tests/engine/test_internals.py` names each of them.
"""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from deepspeed.runtime.base_optimizer import DeepSpeedOptimizer


def gather_at_once(module: torch.nn.Module) -> None:
    """Has ZeRO stage 3 gather the parameters of ``module`` and of the modules in it once for a call of ``module``, and
    once for its gradient, instead of for each call of a module in it. To be called before the engine is built.
    """
    from deepspeed.utils import set_z3_leaf_modules

    set_z3_leaf_modules(module, [type(module)])
    module.gathered_at_once = True  # type: ignore[assignment]


def reduce_whole_gradients(optimizer: "DeepSpeedOptimizer") -> None:
    """Has stage 3 reduce the gradients of modules of `gather_at_once` as any others: each when it is whole.

    The gradients of a leaf module are reduced when that of its input is known: too early where the input has none, and
    twice where the module is called twice before the backward pass.
    """
    parameters = [one for group in getattr(optimizer, "fp16_groups", ()) for one in group]
    leaves = [getattr(one, "ds_z3_leaf_module", None) for one in parameters]
    marked = [one for one, leaf in zip(parameters, leaves, strict=True) if getattr(leaf, "gathered_at_once", False)]
    if not marked:
        return
    for hooks in (optimizer._grad_acc_hooks, optimizer._leaf_module_hooks):
        for hook in hooks:
            hook.remove()
        hooks.clear()
    for one in marked:
        del one.ds_z3_leaf_module
    optimizer.create_reduce_and_remove_grad_hooks()
