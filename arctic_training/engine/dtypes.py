"""The dtypes that a recipe can name."""

from collections.abc import Mapping

import torch

DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
