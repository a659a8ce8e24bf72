"""The small U-Net: shapes, rows that do not mix, labels, and every weight in use."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from arctic_training.model.unet_factory import UNet, UNetConfig, UNetFactory


def network(**keys: Any) -> UNet:
    torch.manual_seed(0)
    keys = {"widths": [8, 16], "groups": 4, "time_size": 8, **keys}
    factory = UNetFactory(SimpleNamespace(), UNetConfig.model_validate({"type": "unet", **keys}))  # type: ignore[arg-type]
    module = factory.create_model(None)
    assert isinstance(module, UNet)
    for block in module.modules():  # as after training: new ones add nothing to their input
        if hasattr(block, "second"):
            torch.nn.init.normal_(block.second.weight, std=0.1)
    return module


@pytest.mark.parametrize(
    ("shape", "keys"),
    [
        ((8, 8), {}),
        ((1, 7, 5), {"blocks": 2}),
        ((3, 8, 8), {"channels": 3, "widths": [4, 8, 12]}),
        ((4, 4), {"widths": [8]}),
    ],
)
def test_each_image_has_its_own_output_of_its_shape(shape: tuple[int, ...], keys: dict[str, Any]) -> None:
    module = network(num_labels=3, **keys).double()
    images, time, labels = torch.randn(4, *shape).double(), torch.rand(4), torch.tensor([0, 2, -100, 1])
    outputs = module(images, time, labels)
    assert outputs.shape == images.shape
    for n in range(4):
        one = slice(n, n + 1)
        torch.testing.assert_close(module(images[one], time[one], labels[one]), outputs[one])
    assert module(images[:0], time[:0], labels[:0]).shape == (0, *shape)


def test_time_and_label_matter() -> None:
    module = network(num_labels=2)
    images = torch.randn(1, 8, 8).expand(4, 8, 8)
    outputs = module(images, torch.tensor([0.5, 0.5, 0.5, 0.6]), torch.tensor([0, 1, -100, 0])).flatten(1)
    assert (torch.cdist(outputs, outputs) + torch.eye(4)).min() > 1e-4
    torch.testing.assert_close(module(images, torch.full((4,), 0.5)).flatten(1)[0], outputs[2])


def test_every_weight_has_a_gradient() -> None:
    module = network(num_labels=2, blocks=2)
    module(torch.randn(3, 8, 8), torch.rand(3), torch.tensor([0, 1, -100])).square().sum().backward()
    assert [name for name, one in module.named_parameters() if one.grad is None or not one.grad.any()] == []


def test_a_pixel_reaches_every_other() -> None:
    module = network(widths=[8, 8, 8]).double()
    image = torch.zeros(1, 8, 8, dtype=torch.float64, requires_grad=True)
    module(image, torch.tensor([0.3]))[0, 0, 0].backward()
    assert image.grad is not None and bool(image.grad.ne(0).all())


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"widths": [8, 18]}, "groups: 4 is no divisor of the width 18"), ({"widths": []}, "at least 1 item")],
)
def test_refusals(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        network(**keys)
