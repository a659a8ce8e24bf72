"""Losses and gradients by transformers' own model in float64, one sequence at a time, and comparisons with them."""

import copy
from typing import Any

import pytest
import torch

from tests.objectives import tiny_runs


def plain_copy(module: Any) -> Any:
    """Returns a model of transformers with the same weights in float64 and torch's attention, in evaluation mode."""
    config = copy.deepcopy(module.config)
    config._attn_implementation = "sdpa"
    model = type(module)(config).double().eval()
    model.load_state_dict(module.state_dict())
    return model


def token_logits(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Returns the outputs at the token before each of a completion's: ``[tokens, outputs]``."""
    logits: torch.Tensor = model(input_ids=torch.tensor([[*prompt, *completion]])).logits
    return logits[0, len(prompt) - 1 : -1]


def token_log_probs(
    model: Any, prompt: list[int], completion: list[int], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the log-probabilities of a completion's tokens, and the entropies there: ``[tokens]`` each, in nats."""
    table = (token_logits(model, prompt, completion) / temperature).log_softmax(-1)
    log_probs = table.gather(1, torch.tensor(completion)[:, None])[:, 0]
    return log_probs, torch.distributions.Categorical(logits=table).entropy()


def require_same_loss(
    trainer: Any, loss: torch.Tensor, expected: torch.Tensor, model: Any, role: str = "model"
) -> None:
    """Compares a loss of the trainer, and its gradient, with ``expected``, computed by ``model``, a `plain_copy`."""
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    require_same_gradient(trainer, loss, expected, model, role)


def require_same_gradient(
    trainer: Any, loss: torch.Tensor, expected: torch.Tensor, model: Any, role: str = "model"
) -> None:
    """Compares the gradient of a loss of the trainer with that of ``expected``, to 1e-5 of its norm in every weight."""
    computed, weights = tiny_runs.gradients(trainer, loss, role), dict(model.named_parameters())
    assert computed.keys() == weights.keys()
    for name, exact in zip(weights, torch.autograd.grad(expected, [*weights.values()]), strict=True):
        gradient = computed[name]
        assert gradient is not None
        error = float((gradient - exact).norm() / exact.norm())
        assert error <= 1e-5, f"{name}: the gradient differs by {error:.2g} of its norm"
