"""Proximal policy optimization on a tiny model: losses by another way, and that no cut changes anything."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.engine.zero import full_gradient
from arctic_training.errors.types import InputError
from tests import processes
from tests.objectives.grpo_runs import first_rollout, make_trainer, pairs, rewards_while_learning
from tests.objectives.plain import plain_copy, require_same_loss, token_log_probs, token_logits
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


def plain_advantages(rewards: torch.Tensor, values: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Schulman et al. 2016, equation 16, for a discount of 0.9 and a lambda of 0.95: the sum of the residuals ahead."""
    advantages = []
    for reward, value in zip(rewards.split(sizes), values.split(sizes), strict=True):
        residuals = reward + 0.9 * torch.cat([value[1:], value.new_zeros(1)]) - value
        powers = (0.9 * 0.95) ** torch.arange(len(value), dtype=torch.float64)
        advantages += [(residuals[n:] * powers[: len(value) - n]).sum() for n in range(len(value))]
    return torch.stack(advantages)


@pytest.mark.parametrize("packs", [True, False])
def test_values_advantages_losses_and_gradients_by_another_way(tmp_path: Path, packs: bool) -> None:
    keys: dict[str, Any] = {"micro_batch_size": 7, "value_clip": 0.05, "vf_coefficient": 0.7, "beta": 0.2, "gamma": 0.9}
    trainer = moved(make(tmp_path, data={"pack_samples": packs}, **keys))
    rollout = first_rollout(trainer)
    assert ("cu_seq_lens_q" in rollout["inputs"]) == packs
    module = trainer.engines["critic"].module
    completions, lengths = pairs(rollout), rollout["lengths"]

    def log_probs_of(model: Any) -> torch.Tensor:
        return torch.cat([token_log_probs(model, *one)[0] for one in completions])

    def values_of(critic: Any) -> torch.Tensor:
        return torch.cat([token_logits(critic, *one)[:, 0] for one in completions])

    with torch.no_grad():
        old, reference = (log_probs_of(plain_copy(trainer.engines[role].module)) for role in ("model", "ref_model"))
        values = values_of(plain_copy(module))
    assert torch.allclose(rollout["old_logprobs"].double(), old, atol=1e-5)
    assert torch.allclose(rollout["values"].double(), values, atol=1e-5) and values.std() > 1e-3
    judged = rollout["metrics"]["reward"].double()
    rewards = (-0.2 * (old - reference)).index_add(0, lengths.cumsum(0) - 1, judged)
    advantages = plain_advantages(rewards, values, lengths.tolist())
    returns = advantages + values
    assert torch.allclose(rollout["returns"].double(), returns, atol=1e-5)
    whitened = (advantages - advantages.mean()) / advantages.std(correction=0)
    assert torch.allclose(rollout["advantages"].double(), whitened, atol=1e-5)
    # both have learned since
    moved(trainer)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    # `ppo_trainer.py` of TRL: masked means over all tokens
    policy, critic = plain_copy(trainer.model.module), plain_copy(module)
    ratio = (log_probs_of(policy) - old).exp()
    surrogate = torch.minimum(ratio * whitened, ratio.clamp(0.8, 1.2) * whitened)
    require_same_loss(trainer, trainer.loss(rollout), -surrogate.mean(), policy)
    new = values_of(critic)
    clipped = torch.clamp(new, values - 0.05, values + 0.05)
    errors = torch.maximum((new - returns) ** 2, (clipped - returns) ** 2)
    require_same_loss(trainer, trainer.value_loss(rollout), 0.7 * 0.5 * errors.mean(), critic, "critic")
    assert (ratio > 1.2).any() and (clipped != new).any() and len(new) == sum(lengths)
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
    keys |= {"micro_batch_size": 2, "sequence_parallel_size": 2}
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


def test_packed_rows_have_the_losses_and_gradients_of_padded_ones(tmp_path: Path) -> None:
    """To a millionth of the largest gradient, for policy and critic."""
    results = []
    for packs in (True, False):
        trainer = moved(make(tmp_path, micro_batch_size=7, data={"pack_samples": packs}))
        rollout = first_rollout(trainer)
        moved(trainer)
        losses, gradients = dict[str, float](), dict[str, dict[str, torch.Tensor]]()
        for role, function in (("model", trainer.loss), ("critic", trainer.value_loss)):
            loss, engine = function(rollout), trainer.engines[role]
            engine.set_gradient_accumulation_boundary(True)
            engine.backward(loss)
            losses[role] = loss.item()
            parts = {name: full_gradient(one) for name, one in engine.module.named_parameters()}
            gradients[role] = {name: part.clone() for name, part in parts.items() if part is not None}
            assert len(gradients[role]) == len(parts)
        results.append((losses, gradients))
        trainer.close()
    (packed, packed_gradients), (padded, padded_gradients) = results
    assert packed == pytest.approx(padded, rel=1e-6)
    for role, gradients in padded_gradients.items():
        scale = max(float(one.norm()) for one in gradients.values())
        for name, gradient in gradients.items():
            assert float((packed_gradients[role][name] - gradient).norm()) <= 1e-6 * scale, (role, name)


def test_a_critic_that_attends_both_ways_is_refused(tmp_path: Path) -> None:
    """The value of a token would know what comes after it, and a packed row would have other values than its parts."""
    from transformers import BertConfig, BertForTokenClassification

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    bert = BertForTokenClassification(BertConfig(vocab_size=320, pad_token_id=0, num_labels=1, **shape))
    bert.save_pretrained(tmp_path / "bert")
    for packs, dtype, message in (
        (False, "fp32", "critic: in BertForTokenClassification the value of a token"),
        (False, "bf16", "critic: in BertForTokenClassification the value of a token"),
        (True, "fp32", "see each other"),
    ):
        critic = {"name_or_path": str(tmp_path / "bert"), "dtype": dtype}
        with pytest.raises(InputError, match=message):
            make(tmp_path, critic=critic, data={"pack_samples": packs})
