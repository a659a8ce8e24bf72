"""Proximal policy optimization on a tiny model: losses by another way, and that no cut changes anything."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.errors.types import InputError
from arctic_training.loss.gae import generalized_advantages
from tests import processes
from tests.objectives.grpo_runs import first_rollout, make_trainer, rewards_while_learning
from tests.trainer.weights import moved, same

KEYS: dict[str, Any] = {"type": "ppo", "critic": {"new_weights": ["score"]}, "num_iterations": 2}


def make(folder: Path, **keys: Any) -> Any:
    return make_trainer(folder, **{**KEYS, "num_generations": 3, **keys})


def train(folder: str, **keys: Any) -> dict[str, torch.Tensor]:
    """Returns the weights of both roles, whole at any ZeRO stage."""
    from arctic_training.engine.zero import full_parameter

    trainer = make(Path(folder), **keys)
    trainer.train()
    weights = {
        f"{role}.{name}": full_parameter(one).detach().clone()
        for role, engine in trainer.trainable_engines.items()
        for name, one in engine.module.named_parameters()
    }
    trainer.close()
    return weights


def rows_of(rollout: Any) -> list[tuple[list[int], int]]:
    """Returns the tokens of each prompt with its completion, and the length of the prompt."""
    inputs = rollout["inputs"]
    sizes, starts = inputs["attention_mask"].sum(1).tolist(), (inputs["labels"] != -100).int().argmax(1).tolist()
    return [(row[:size].tolist(), start) for row, size, start in zip(inputs["input_ids"], sizes, starts, strict=True)]


def test_values_advantages_and_losses_by_another_way(tmp_path: Path) -> None:
    trainer = moved(make(tmp_path, micro_batch_size=7, value_clip=0.05, vf_coefficient=0.7, beta=0.2, gamma=0.9))
    rollout = first_rollout(trainer)
    critic = trainer.engines["critic"].module.eval()
    assert not any(one.training for one in chain(critic.modules(), [critic]))
    lengths, sizes = rollout["lengths"], rollout["lengths"].tolist()
    with torch.no_grad():
        values = torch.cat(
            [critic(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1, 0] for ids, start in rows_of(rollout)]
        )
    assert torch.allclose(rollout["values"], values, atol=1e-5) and values.std() > 1e-3
    penalties = -0.2 * (rollout["old_logprobs"] - rollout["ref_logprobs"])
    rewards = penalties.index_add(0, lengths.cumsum(0) - 1, rollout["metrics"]["reward"])
    advantages = generalized_advantages(rewards.double(), values.double(), lengths, gamma=0.9, gae_lambda=0.95)
    assert torch.allclose(rollout["returns"].double(), advantages + values, atol=1e-5)
    whitened = (advantages - advantages.mean()) / advantages.std(correction=0)
    assert torch.allclose(rollout["advantages"].double(), whitened, atol=1e-4)
    # both have learned since
    moved(trainer)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(0.05 * torch.ones_like(parameter))
        log_probs, new_values = (
            trainer.log_probs(trainer.model, rollout["inputs"]),
            trainer.token_values(rollout["inputs"]),
        )
        ratio = (log_probs - rollout["old_logprobs"]).exp()
        surrogate = torch.minimum(ratio * whitened, ratio.clamp(0.8, 1.2) * whitened)
        # `ppo_trainer.py` of TRL: masked means over all tokens
        assert trainer.loss(rollout).item() == pytest.approx(-surrogate.mean().item(), rel=1e-4)
        clipped = torch.clamp(new_values, values - 0.05, values + 0.05)
        errors = torch.maximum((new_values - rollout["returns"]) ** 2, (clipped - rollout["returns"]) ** 2)
        assert trainer.value_loss(rollout).item() == pytest.approx(0.7 * 0.5 * errors.mean().item(), rel=1e-4)
        assert (clipped != new_values).any() and len(new_values) == sum(sizes)
    trainer.close()


def test_no_cut_changes_anything(tmp_path: Path) -> None:
    """Advantages are whitened over the window, and both roles take a step for each part of it."""
    keys: dict[str, Any] = {"optimizer": {"type": "sgd", "lr": 0.1}, "critic_optimizer": {"type": "sgd", "lr": 0.1}}
    keys |= {"num_minibatches": 2, "train_iters": 2}
    expected = train(str(tmp_path), micro_batch_size=2, gradient_accumulation_steps=2, **keys)
    same(expected, train(str(tmp_path), micro_batch_size=1, gradient_accumulation_steps=4, **keys))
    keys |= {"micro_batch_size": 1, "gradient_accumulation_steps": 2}
    for part in processes.share(train, 2, str(tmp_path), **keys):
        same(expected, part)


def test_both_roles_step_equally_often_by_their_own_schedules(tmp_path: Path) -> None:
    trainer = make(tmp_path, micro_batch_size=4, critic_scheduler={"name": "linear", "warmup_ratio": 0})
    trainer.train()
    assert [engine.global_steps for engine in trainer.trainable_engines.values()] == [6, 6]
    assert trainer.engines["critic"].deepspeed.optimizer.param_groups[0]["lr"] == 0
    trainer.close()


def test_the_policy_learns_what_is_rewarded(tmp_path: Path) -> None:
    critic = {"type": "adamw", "lr": 1e-2, "weight_decay": 0}
    rewards = rewards_while_learning(tmp_path, **KEYS, num_generations=8, critic_optimizer=critic)
    assert rewards[-1] > rewards[0] + 0.2, rewards


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data": {"pack_samples": True}}, "data.pack_samples: the critic of ppo is given padded rows"),
        ({"critic": {"new_weights": ["head"]}}, "critic.new_weights: LlamaForTokenClassification has no head"),
        ({"critic": {}}, "for a score with random weights give critic.new_weights: [score]"),
        (
            {"critic": {"new_weights": ["score"], "num_labels": 2}},
            "critic.num_labels: 2 labels, and the trainer needs 1",
        ),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        make(tmp_path, **keys)
    assert message in str(error.value)
