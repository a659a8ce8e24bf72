"""The data of projects/mnist, and the trivial model that its figures are compared with."""

import pytest

from tests.projects.test_vae import independent_pixels, load


def test_digits_of_mnist() -> None:
    train, held_out = (load("mnist/classifier.yaml", "mnist", split, binary=True) for split in ("train", "eval"))
    assert (train["rows"].shape, held_out["rows"].shape) == ((3500, 1, 28, 28), (1500, 1, 28, 28))
    assert train["labels"].bincount().tolist() == [350] * 10
    assert independent_pixels(train["rows"], held_out["rows"]) == pytest.approx(206.9, abs=0.1)
