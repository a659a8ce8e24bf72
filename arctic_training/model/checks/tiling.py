"""Runs MLPs on a few tokens, to see that each token is computed for itself."""

import torch

from arctic_training.engine.engine import Engine
from arctic_training.engine.zero import gathered
from arctic_training.errors.types import ModelError
from arctic_training.model.transforms.tiled_mlp import input_width, tiling_of
from arctic_training.state import eval_mode

_LENGTH = 5


@torch.no_grad()
def check_tiling(engine: Engine, device: torch.device) -> None:
    """Compares the output of an MLP of each type that is tiled on a row with its outputs on two parts of the row.

    All ranks must call it. Raises `ModelError` where they differ by more than rounding.
    """
    by_type = {type(module): module for module in engine.module.modules() if tiling_of(module) is not None}
    for mlp in by_type.values():
        tiling = tiling_of(mlp)
        assert tiling is not None
        with gathered(mlp.parameters()), eval_mode([mlp]):
            weight = next(mlp.parameters())
            generator = torch.Generator().manual_seed(0)
            row = torch.randn(1, _LENGTH, input_width(mlp), generator=generator).to(device, weight.dtype)
            untiled = tiling.forward(mlp, row)
            parts = torch.cat([tiling.forward(mlp, part) for part in torch.split(row, _LENGTH // 2, dim=1)], dim=1)
        tolerance = 32 * torch.finfo(untiled.dtype).eps * float(untiled.abs().max())
        if not float((untiled - parts).abs().max()) <= tolerance:
            raise ModelError(
                f"tiled_mlp_compute: in {type(mlp).__name__} a token depends on the others of its row; remove it"
            )
