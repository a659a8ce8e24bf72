"""The source `binary_digits`: the handwritten digits of scikit-learn in black and white, 30 % of them held out."""

import torch
from torch import Tensor

from arctic_training import DataSource, DataSourceConfig


class BinaryDigitsSource(DataSource):
    """The 1,797 pictures of 8 x 8 pixels that come with scikit-learn; a pixel is 1 from half its range on."""

    name = "binary_digits"
    config_type = DataSourceConfig

    def load(self, config: DataSourceConfig, split: str) -> dict[str, Tensor]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pictures, labels = load_digits(return_X_y=True)
        train, held_out = train_test_split(pictures >= 8, test_size=0.3, random_state=0, stratify=labels)
        return {"rows": torch.tensor(train if split == "train" else held_out, dtype=torch.float32)}
