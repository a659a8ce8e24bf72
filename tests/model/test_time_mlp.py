"""The feed-forward network of a row and a time: its embedding, labels, shapes, and rows that do not mix."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from arctic_training.model.time_embedding import sinusoids
from arctic_training.model.time_mlp_factory import TimeMLP, TimeMLPConfig, TimeMLPFactory


def network(**keys: Any) -> TimeMLP:
    torch.manual_seed(0)
    section = TimeMLPConfig.model_validate({"type": "time_mlp", "sizes": [6, 16, 16, 6], "time_size": 8, **keys})
    factory = TimeMLPFactory(SimpleNamespace(), section)  # type: ignore[arg-type]
    module = factory.create_model(None)
    assert isinstance(module, TimeMLP)
    return module


def test_the_embedding_of_a_time() -> None:
    positions = np.array([0.0, 0.5, 3.0, 999.0])
    angles = positions[:, None] * 10_000.0 ** (-2 * np.arange(4) / 8)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(sinusoids(torch.tensor(positions), 8).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3)])
def test_each_row_has_its_own_output_of_its_shape(shape: tuple[int, ...]) -> None:
    module = network(num_labels=3).double()
    rows, time, labels = torch.randn(5, *shape).double(), torch.rand(5), torch.tensor([0, 2, -100, 1, 0])
    outputs = module(rows, time, labels)
    assert outputs.shape == rows.shape
    for n in range(5):
        one = slice(n, n + 1)
        torch.testing.assert_close(module(rows[one], time[one], labels[one]), outputs[one])
    assert module(rows[:0], time[:0], labels[:0]).shape == (0, *shape)


def test_another_width_of_the_output() -> None:
    module = network(sizes=[6, 16, 1])
    assert module(torch.randn(4, 2, 3), torch.rand(4)).shape == (4, 1)


def test_time_and_label_matter_and_no_label_is_one_of_its_own() -> None:
    module = network(num_labels=2)
    rows = torch.randn(1, 6).expand(4, 6)
    none = torch.full((4,), -100)
    outputs = module(rows, torch.full((4,), 0.5), torch.tensor([0, 1, -100, 1]))
    assert torch.equal(outputs[1], outputs[3])
    distances = torch.cdist(outputs[:3], outputs[:3]) + torch.eye(3)
    assert distances.min() > 1e-4
    torch.testing.assert_close(module(rows, torch.full((4,), 0.5)), module(rows, torch.full((4,), 0.5), none))
    assert not torch.allclose(module(rows, torch.full((4,), 0.499))[0], outputs[2], atol=1e-6)


def test_its_derivatives() -> None:
    module = network().double()
    rows = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module(x, torch.tensor([0.0, 0.3, 1.0])), (rows,))


def test_every_weight_has_a_gradient() -> None:
    module = network(num_labels=2)
    module(torch.randn(3, 6), torch.rand(3), torch.tensor([0, 1, -100])).square().sum().backward()
    assert [name for name, one in module.named_parameters() if one.grad is None or not one.grad.any()] == []


def test_the_check_builds_it_without_weights() -> None:
    section = TimeMLPConfig.model_validate({"type": "time_mlp", "sizes": [2, 4, 2], "num_labels": 5})
    factory = TimeMLPFactory(SimpleNamespace(), section)  # type: ignore[arg-type]
    factory.check()
    model = factory.meta_model
    assert isinstance(model, TimeMLP)
    assert model.num_labels == 5 and all(one.is_meta for one in model.parameters())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sizes": [2, 2]}, "at least 3 items"),
        ({"time_size": 7}, "multiple of 2"),
        ({"time_scale": 0}, "greater than 0"),
        ({"activation": "swish"}, "'relu', 'leaky_relu', 'gelu', 'silu' or 'tanh'"),
    ],
)
def test_refusals(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        network(**keys)
