"""The source of tensors in files of numpy or safetensors."""

from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch

from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.data.sources.base import DataSource
from arctic_training.errors.types import DataError

SUFFIXES = (".npy", ".npz", ".safetensors")


class TensorFileConfig(DataSourceConfig):
    """A source of a file of tensors."""

    name_or_path: Annotated[Path, RESUME_SAFE]
    """A .npy file with one array, or a .npz or .safetensors file with one for each column."""

    @property
    def local_size(self) -> float:
        return self.name_or_path.stat().st_size


class TensorFileSource(DataSource):
    """A file of tensors, which become the columns of the data."""

    name = "tensor_file"
    config_type: ClassVar[type[DataSourceConfig]] = TensorFileConfig

    def load(self, config: TensorFileConfig, split: str) -> torch.Tensor | dict[str, torch.Tensor]:
        path = config.name_or_path
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                tensors: dict[str, torch.Tensor] = load_file(path)
                return tensors
            if path.suffix in SUFFIXES:
                arrays = np.load(path, allow_pickle=False)
                if path.suffix == ".npy":
                    return torch.from_numpy(arrays)
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except Exception as error:  # three libraries with errors of their own
            raise DataError(f"{path}: cannot be read: {error}") from None
        raise DataError(f"{path}: expected a .npy, .npz or .safetensors file")
