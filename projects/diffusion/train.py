"""Handwritten digits as images, and how well generated ones match them: Fréchet distance, coverage, recall."""

import functools
import warnings
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from arctic_training import ComponentConfig, DataSource, DataSourceConfig, Evaluator, HumanInt


@functools.cache
def digits() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the pictures of scikit-learn, 70 % to train on and 30 % held out: ``rows``, float32 ``[N, 8, 8]`` from -1
    to 1, and ``labels``, int64 ``[N]``."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pictures, labels = load_digits(return_X_y=True)
    parts = train_test_split(pictures / 8 - 1, labels, test_size=0.3, random_state=0, stratify=labels)
    rows = [torch.tensor(part, dtype=torch.float32).reshape(-1, 8, 8) for part in parts[:2]]
    classes = [torch.tensor(part) for part in parts[2:]]
    train, held_out = ({"rows": one, "labels": other} for one, other in zip(rows, classes, strict=True))
    return train, held_out


class DigitImages(DataSource):
    """The 1,797 pictures of 8 x 8 pixels that come with scikit-learn, with values from -1 to 1."""

    name = "digit_images"
    config_type = DataSourceConfig

    def load(self, config: DataSourceConfig, split: str) -> dict[str, Tensor]:
        return digits()[split != "train"]


class Classifier:
    """A network of scikit-learn that classifies the digits, always the same one; pictures are compared by its hidden
    layer."""

    def __init__(self) -> None:
        from sklearn.neural_network import MLPClassifier

        train, held_out = digits()
        self.network = MLPClassifier((128,), random_state=0, max_iter=100)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 100 passes are not enough to converge
            self.network.fit(train["rows"].flatten(1).numpy(), train["labels"].numpy())
        self.accuracy = self.network.score(held_out["rows"].flatten(1).numpy(), held_out["labels"].numpy())

    def features(self, rows: Tensor) -> Tensor:
        """Returns the features of pictures, ``[N, 8, 8]``: float64 ``[N, 128]``."""
        weight, bias = (torch.tensor(one[0]).double() for one in (self.network.coefs_, self.network.intercepts_))
        return torch.relu(rows.flatten(1).double().cpu() @ weight + bias)

    def recognised(self, rows: Tensor, labels: Tensor) -> float:
        """Returns the share of pictures, ``[N, 8, 8]``, that are classified as their ``labels``, int64 ``[N]``."""
        return float(self.network.score(rows.flatten(1).cpu().numpy(), labels.cpu().numpy()))


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Returns the squared Fréchet distance of the Gaussians with the means and covariances of two sets of features,
    float64 ``[N, D]`` and ``[M, D]`` (Heusel et al. 2017, arXiv 1706.08500, equation 6)."""
    first, second = one.T.cov(), other.T.cov()
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    gap = (one.mean(0) - other.mean(0)).square().sum()
    return (gap + first.trace() + second.trace() - 2 * cross).item()


def coverage(real: Tensor, generated: Tensor, neighbours: int = 5) -> float:
    """Returns the share of the ``real`` features, ``[N, D]``, with a generated one, of ``[M, D]``, at most as far away
    as their k-th nearest real neighbour (Naeem et al. 2020, arXiv 2002.09797, equation 9; k is 5 there)."""
    return (torch.cdist(real, generated).min(1).values <= _radii(real, neighbours)).double().mean().item()


def recall(real: Tensor, generated: Tensor, neighbours: int = 3) -> float:
    """Returns the share of the ``real`` features, ``[N, D]``, at most as far from a generated one, of ``[M, D]``, as
    that is from its k-th nearest generated neighbour (Kynkäänniemi et al. 2019, arXiv 1904.06991; k is 3 there)."""
    inside = torch.cdist(real, generated) <= _radii(generated, neighbours)
    return inside.any(1).double().mean().item()


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """Returns the distance of each point to its k-th nearest neighbour, itself not counted: ``[N]``."""
    return torch.cdist(features, features).kthvalue(neighbours + 1).values


@functools.cache
def classifier() -> Classifier:
    """Returns the classifier, trained once in a process."""
    return Classifier()


def measure(rows: Tensor) -> dict[str, float]:
    """Returns how well pictures, ``[N, 8, 8]``, match those held out."""
    real, generated = (classifier().features(one) for one in (digits()[1]["rows"], rows))
    return {
        "frechet_distance": frechet_distance(real, generated),
        "coverage": coverage(real, generated),
        "recall": recall(real, generated),
    }


class DigitQualityConfig(ComponentConfig):
    """Keys of the evaluator."""

    count: HumanInt = Field(default=1257, ge=8)
    """Pictures that are generated and measured; by default as many as there are to train on."""


class DigitQuality(Evaluator):
    """Measures generated pictures, as many of each digit: see `measure`, and which share the classifier recognises."""

    name = "digit_quality"
    config_type = DigitQualityConfig

    def __call__(self, trainer: Any) -> dict[str, float]:
        labels = torch.arange(self.config.count, device=trainer.device) % 10
        rows = trainer.sample(self.config.count, labels)
        return {**measure(rows), "recognised": classifier().recognised(rows, labels)}
