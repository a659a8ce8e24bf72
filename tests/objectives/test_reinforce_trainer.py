"""REINFORCE on a tiny model: its advantages and gradient by TRL's formulas, and that no cut changes anything."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.loss.policy import segment_sums
from tests import processes
from tests.objectives.grpo_runs import first_rollout, make_trainer, pairs, rewards_while_learning, train
from tests.objectives.plain import plain_copy, require_same_gradient, token_log_probs
from tests.trainer.weights import moved, same

KEYS: dict[str, Any] = {"type": "reinforce", "micro_batch_size": 7, "beta": 0.2}


def test_by_default_it_is_rloo_as_in_trl(tmp_path: Path) -> None:
    """`rloo_trainer.py`: rewards less beta times the summed log-ratio, less the mean of the others; the loss is the
    ratio of the probabilities of whole completions times that."""
    trainer = moved(make_trainer(tmp_path, entropy_coefficient=0, **KEYS))
    rollout = first_rollout(trainer)
    lengths = rollout["lengths"]
    kl = segment_sums(rollout["old_logprobs"] - rollout["ref_logprobs"], lengths)
    rewards = (rollout["metrics"]["reward"] - 0.2 * kl).reshape(-1, 3)
    baselines = (rewards.sum(1, keepdim=True) - rewards) / 2
    advantages = (rewards - baselines).flatten()
    assert torch.allclose(rollout["advantages"], advantages, atol=1e-5)
    policy = plain_copy(trainer.model.module)
    sums = torch.stack([token_log_probs(policy, *one)[0].sum() for one in pairs(rollout)])
    theirs = -(torch.exp(sums - sums.detach()) * advantages).mean()
    require_same_gradient(trainer, trainer.loss(rollout), theirs, policy)
    trainer.close()


@pytest.mark.parametrize("baseline", ["none", "mean", "leave_one_out"])
@pytest.mark.parametrize("gamma", [None, 0.9])
def test_advantages_by_another_way(tmp_path: Path, baseline: str, gamma: float | None) -> None:
    for normalizes in (False, True):
        trainer = moved(make_trainer(tmp_path, baseline=baseline, gamma=gamma, normalize_returns=normalizes, **KEYS))
        rollout = first_rollout(trainer)
        lengths = rollout["lengths"].tolist()
        returns = []
        for rewards in rollout["token_rewards"].double().split(lengths):
            if gamma is None:
                returns.append(rewards.sum()[None])
            else:
                powers = torch.tensor([gamma**n for n in range(len(rewards))], dtype=torch.float64)
                returns.append(
                    torch.stack([(rewards[n:] * powers[: len(rewards) - n]).sum() for n in range(len(rewards))])
                )
        means = torch.stack([one.mean() for one in returns]).reshape(-1, 3)
        less = {
            "none": torch.zeros(7, 3),
            "mean": means.mean().expand(7, 3),
            "leave_one_out": (means.sum(1)[:, None] - means) / 2,
        }
        expected = torch.cat([one - b for one, b in zip(returns, less[baseline].flatten(), strict=True)])
        if normalizes:
            expected = (expected - expected.mean()) / expected.std(correction=0)
        assert torch.allclose(rollout["advantages"].double(), expected, atol=1e-5)
        trainer.close()


def test_no_cut_changes_anything(tmp_path: Path) -> None:
    """What is taken over the window is, on two processes too."""
    keys: dict[str, Any] = {"type": "reinforce", "gamma": 0.9, "baseline": "mean", "normalize_returns": True}
    keys |= {"normalize": "token", "optimizer": {"type": "sgd", "lr": 0.1}}
    expected = train(str(tmp_path), micro_batch_size=4, **keys)
    same(expected, train(str(tmp_path), micro_batch_size=1, gradient_accumulation_steps=4, **keys))
    for part in processes.share(train, 2, str(tmp_path), micro_batch_size=2, **keys):
        same(expected, part)


def test_the_policy_learns_what_is_rewarded(tmp_path: Path) -> None:
    rewards = rewards_while_learning(tmp_path, type="reinforce", num_generations=8)
    assert rewards[-1] > rewards[0] + 0.2, rewards
