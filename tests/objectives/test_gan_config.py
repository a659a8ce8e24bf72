"""What a recipe for adversarial training may say."""

from typing import Any

import pytest
from pydantic import ValidationError

from arctic_training.objectives.gan import GANConfig, GANTrainer

NETWORKS = {"model": {"sizes": [4, 8, 2]}, "discriminator": {"sizes": [2, 8, 1]}}


def config(**keys: Any) -> GANConfig:
    data = {"sources": [{"type": "tensor_file", "name_or_path": "rows.npy"}]}
    return GANTrainer.config_type.model_validate({"type": "gan", **NETWORKS, "data": data, **keys})


@pytest.mark.parametrize(
    ("keys", "steps", "weight"),
    [
        ({}, 1, 0),
        ({"loss": "hinge", "gp_weight": 2}, 1, 2),
        ({"loss": "wasserstein"}, 5, 10),
        ({"loss": "wasserstein", "d_steps": 1, "gp_weight": 0}, 1, 0),
    ],
)
def test_defaults_follow_the_loss(keys: dict[str, Any], steps: int, weight: float) -> None:
    gan = config(**keys)
    assert gan.discriminator_steps == steps
    assert gan.gradient_penalty_weight == weight


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing: is for loss: non_saturating or least_squares"),
        ({"r1_weight": 1, "deepspeed": {"zero_optimization": {"stage": 3}}}, "ZeRO stage 3 does not support"),
        ({"loss": "wasserstein", "deepspeed": {"zero_optimization": {"stage": "3"}}}, "ZeRO stage 3 does not support"),
        ({"loss": "vanilla"}, "'non_saturating', 'hinge', 'wasserstein' or 'least_squares'"),
        ({"discriminator": {"type": "mpl", "sizes": [2, 1]}}, "did you mean 'mlp'"),
        ({"d_steps": 0}, "greater than or equal to 1"),
    ],
)
def test_refusals(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**keys)


def test_stage_3_goes_without_penalties() -> None:
    assert config(deepspeed={"zero_optimization": {"stage": 3}}).gradient_penalty_weight == 0
