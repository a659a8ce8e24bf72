"""The loss of grpo and of its variants, and its gradient, are those of the papers' formulas on transformers' logits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.objectives.grpo_runs import first_rollout, make_trainer, pairs
from tests.objectives.plain import plain_copy, require_same_loss, token_log_probs
from tests.trainer.weights import moved

BASE: dict[str, Any] = {
    "normalize": "sequence",
    "num_iterations": 2,
    "temperature": 1.5,
    "clip_low": 0.1,
    "clip_high": 0.15,
    "scale_rewards": True,
    "importance_sampling_level": "token",
    "entropy_coefficient": 0.0,
}
CISPO = {"loss_type": "cispo", "clip_low": 0.2, "clip_high": 0.05}  # the default, of which it makes no use
GSPO = {"importance_sampling_level": "sequence", "clip_low": 0.01, "clip_high": 0.02}


def plain_loss(policy: Any, reference: Any, rollout: Any, keys: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """Returns the loss in float64, and how many ratios are above the upper bound."""
    rewards = rollout["metrics"]["reward"].double().reshape(7, 3)
    scales = {True: rewards.std(1, correction=0, keepdim=True), "batch": rewards.std(correction=0)}
    scale = scales.get(keys["scale_rewards"], torch.ones(()))
    worth = ((rewards - rewards.mean(1, keepdim=True)) / scale.clamp(min=1e-6)).flatten()
    low, high, olds = keys["clip_low"], keys["clip_high"], rollout["old_logprobs"]
    sums, tokens, clipped = [], 0, 0
    for n, (prompt, completion) in enumerate(pairs(rollout)):
        new, entropy = token_log_probs(policy, prompt, completion, keys["temperature"])
        with torch.no_grad():
            ref, _ = token_log_probs(reference, prompt, completion, keys["temperature"])
        old = new.detach() if olds is None else olds[tokens : tokens + len(completion)].double()
        log_ratio = new - old
        if keys["importance_sampling_level"] == "sequence":
            log_ratio = log_ratio.mean().expand(len(completion))
        ratio = log_ratio.exp()
        if keys.get("loss_type") == "cispo":
            loss = -ratio.detach().clamp(max=1 + high) * worth[n] * new
        else:
            loss = -torch.minimum(ratio * worth[n], ratio.clamp(1 - low, 1 + high) * worth[n])
        kl = (ref - new).exp() - (ref - new) - 1
        loss = loss + 0.2 * kl - keys["entropy_coefficient"] * entropy
        sums.append(loss.mean() if keys["normalize"] == "sequence" else loss.sum())
        tokens, clipped = tokens + len(completion), clipped + int((ratio > 1 + high).sum())
    count = {"sequence": 21, "token": tokens, "constant": 21 * 5}[keys["normalize"]]
    return torch.stack(sums).sum() / count, clipped


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"normalize": "token"},
        {"normalize": "constant"},
        {"num_iterations": 1},
        pytest.param({"scale_rewards": False, "normalize": "constant"}, id="dr-grpo"),
        {"scale_rewards": "batch", "normalize": "constant"},
        pytest.param(GSPO, id="gspo"),
        pytest.param({**CISPO, "normalize": "token"}, id="cispo"),
        pytest.param({**GSPO, **CISPO, "clip_high": 0.02}, id="gspo-cispo"),
        {"entropy_coefficient": 0.3},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())) or "sequence",
)
def test_the_loss_and_its_gradient_by_another_way(tmp_path: Path, keys: dict[str, Any], packs: bool) -> None:
    """`_compute_loss` in TRL's `grpo_trainer.py`, one completion at a time."""
    keys = {**BASE, **keys}
    trainer = moved(make_trainer(tmp_path, micro_batch_size=7, beta=0.2, data={"pack_samples": packs}, **keys))
    rollout = first_rollout(trainer)
    moved(trainer)  # it has learned since it answered
    policy, reference = (plain_copy(trainer.engines[role].module) for role in ("model", "ref_model"))
    expected, clipped = plain_loss(policy, reference, rollout, keys)
    assert (clipped > 0) == (rollout["old_logprobs"] is not None) == (keys["num_iterations"] > 1)
    require_same_loss(trainer, trainer.loss(rollout), expected, policy)
    trainer.close()
