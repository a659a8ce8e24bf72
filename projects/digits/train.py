"""The source `digits`: the handwritten digits of scikit-learn, 70 % to train on and 30 % held out."""

import torch
from torch import Tensor

from arctic_training import DataSource, DataSourceConfig


class DigitsSource(DataSource):
    """The 1,797 pictures of 8 x 8 pixels that come with scikit-learn, with values from 0 to 1."""

    name = "digits"
    config_type = DataSourceConfig

    def load(self, config: DataSourceConfig, split: str) -> dict[str, Tensor]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pictures, labels = load_digits(return_X_y=True)
        parts = train_test_split(pictures / 16, labels, test_size=0.3, random_state=0, stratify=labels)
        rows, classes = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
        return {"rows": torch.tensor(rows, dtype=torch.float32), "labels": torch.tensor(classes)}
