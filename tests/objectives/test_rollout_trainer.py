"""What all trainers that learn from their own completions share: steps on parts of a window, prompts that are replaced,
completions that are left out, and where the divergence counts."""

from itertools import islice, pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from arctic_training import RolloutTrainer
from arctic_training.errors.types import RecipeError, ScoringError
from arctic_training.loss.policy import kl_estimates, segment_sums
from tests import processes
from tests.objectives.grpo_runs import first_rollout, make_trainer, save_files, train
from tests.trainer.weights import moved, same


class BestOfGroup(RolloutTrainer):
    """As a user would write it: the best completion of a prompt is worth 1, the others nothing."""

    name = "best_for_tests"
    seen: ClassVar[list[Any]] = []

    def advantages(self, rollout: Any) -> torch.Tensor:
        type(self).seen.append(rollout)
        groups = rollout["rewards"].reshape(-1, self.config.num_generations)
        return (groups == groups.amax(1, keepdim=True)).double().flatten()


def test_a_subclass_states_advantages_alone(tmp_path: Path) -> None:
    """It sees the whole window on this rank, whatever its micro-batches."""
    uncut = train(str(tmp_path), type="best_for_tests", micro_batch_size=4)
    windows = list(BestOfGroup.seen)
    BestOfGroup.seen.clear()
    same(uncut, train(str(tmp_path), type="best_for_tests", gradient_accumulation_steps=4, generation_batch_size=2))
    for one, other in zip(windows, BestOfGroup.seen, strict=True):
        count = min(len(one["rewards"]), len(other["rewards"]))  # the last window of an epoch is filled otherwise
        assert count >= 9 and torch.equal(one["rewards"][:count], other["rewards"][:count])
        assert len(other["token_rewards"]) == int(other["lengths"].sum())


def test_advantages_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, type="best_for_tests")
    monkeypatch.setattr(BestOfGroup, "advantages", lambda self, rollout: rollout["rewards"] / 0)
    with pytest.raises(ScoringError, match=r"^BestOfGroup.advantages returned a number that is not finite"):
        first_rollout(trainer)
    trainer.close()


def steps_of_parts(folder: str, **keys: Any) -> Any:
    """Returns the weights, and the size of the part of each optimizer step."""
    trainer, sizes = make_trainer(Path(folder), **keys), list[int]()
    trainer.listen("post-loss", lambda self, loss: sizes.append(len(self.window.step_indices)))
    trainer.train()
    weights = {name: one.detach().clone() for name, one in trainer.model.module.named_parameters()}
    steps = trainer.model.global_steps
    trainer.close()
    return weights, sizes, steps


def test_minibatches_are_steps_of_the_same_rows_however_the_batch_is_cut(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"num_minibatches": 2, "num_iterations": 2, "normalize": "token", "train_iters": 1}
    expected, sizes, steps = steps_of_parts(str(tmp_path), micro_batch_size=2, gradient_accumulation_steps=2, **keys)
    assert steps == 4 and sizes == [1] * 4
    cut, sizes, steps = steps_of_parts(str(tmp_path), micro_batch_size=1, gradient_accumulation_steps=4, **keys)
    assert steps == 4 and sizes == [2] * 8
    same(expected, cut)
    keys |= {"micro_batch_size": 1, "gradient_accumulation_steps": 2}
    for part, _, _ in processes.share(steps_of_parts, 2, str(tmp_path), **keys):
        same(expected, part)
    one_step, _, _ = steps_of_parts(str(tmp_path), **(keys | {"num_minibatches": 1, "gradient_accumulation_steps": 4}))
    assert any(not torch.equal(one_step[name], weight) for name, weight in expected.items())


def test_a_prompt_that_teaches_nothing_is_replaced(tmp_path: Path) -> None:
    """By the same one in every cut, and as often as the recipe allows."""
    rewards = {"type": "even_for_tests", "threshold": 0.9}  # most groups have only zeros
    keys: dict[str, Any] = {"rewards": rewards, "max_new_tokens": 3, "num_generations": 2}
    trainer = make_trainer(tmp_path, micro_batch_size=7, dynamic_sampling=6, **keys)
    replaced = first_rollout(trainer)
    trainer.close()
    trainer = make_trainer(tmp_path, micro_batch_size=7, **keys)
    plain = first_rollout(trainer)
    trainer.close()
    uniform, still = (one["metrics"]["reward_std"] == 0 for one in (plain, replaced))
    assert 0 < still.sum() < uniform.sum()
    assert torch.equal(replaced["metrics"]["resampled"].bool(), uniform)
    assert torch.equal(replaced["rewards"][~uniform], plain["rewards"][~uniform])
    expected = train(str(tmp_path), micro_batch_size=4, dynamic_sampling=2, **keys)
    cut = train(str(tmp_path), gradient_accumulation_steps=4, dynamic_sampling=2, generation_batch_size=1, **keys)
    same(expected, cut)


def test_completions_that_were_cut_off_are_left_out(tmp_path: Path) -> None:
    for normalize in ("sequence", "token"):
        keys: dict[str, Any] = {"micro_batch_size": 7, "normalize": normalize, "num_iterations": 2}
        trainer = moved(make_trainer(tmp_path, mask_truncated_completions=True, **keys))
        rollout = first_rollout(trainer)
        assert 0 < rollout["finished"].sum() < len(rollout["finished"])
        assert torch.equal(rollout["finished"], rollout["metrics"]["ended"].bool())
        tokens = int((rollout["finished"] * rollout["lengths"]).sum())
        assert rollout["num_tokens_in_batch"] == tokens and rollout["num_items_in_batch"] == 21
        moved(trainer)
        with torch.no_grad():
            masked = trainer.loss(rollout).item()
            trainer.config.mask_truncated_completions = False
            advantages = rollout["advantages"] * rollout["finished"]
            kept = trainer.loss({**rollout, "weights": rollout["weights"] * rollout["finished"]}).item()
        assert masked == pytest.approx(kept, rel=1e-5) and advantages.any()
        trainer.close()


def test_the_divergence_counts_in_the_rewards(tmp_path: Path) -> None:
    trainer = moved(make_trainer(tmp_path, micro_batch_size=7, kl_in="reward", beta=0.3))
    rollout = first_rollout(trainer)
    old, reference, lengths = rollout["old_logprobs"], rollout["ref_logprobs"], rollout["lengths"]
    penalty = 0.3 * segment_sums(old - reference, lengths)
    assert penalty.abs().max() > 1e-3
    raw = rollout["metrics"]["reward"]
    assert torch.allclose(rollout["rewards"].float(), raw - penalty, atol=1e-5)
    assert torch.allclose(segment_sums(rollout["token_rewards"], lengths), raw - penalty, atol=1e-5)
    last = lengths.cumsum(0) - 1
    others = torch.ones(len(old), dtype=torch.bool).index_fill(0, last, False)
    assert torch.allclose(rollout["token_rewards"][others], -0.3 * (old - reference)[others], atol=1e-6)
    # and not in the loss
    with torch.no_grad():
        log_probs = trainer.log_probs(trainer.model, rollout["inputs"])
        losses = trainer.policy_losses(log_probs, log_probs - old, rollout["advantages"].repeat_interleave(lengths))
        expected = (segment_sums(losses, lengths) / lengths).sum() / 21
        assert trainer.loss(rollout).item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
        assert kl_estimates(log_probs, reference).mean() > 0
    trainer.close()


def test_the_entropy_of_the_policy_is_part_of_the_loss(tmp_path: Path) -> None:
    trainer = moved(make_trainer(tmp_path, micro_batch_size=7, entropy_coefficient=0.5, beta=0, temperature=1.3))
    rollout = first_rollout(trainer)
    with torch.no_grad():
        with_entropy = trainer.loss(rollout).item()
        trainer.config.entropy_coefficient = 0.0
        without = trainer.loss(rollout).item()
        module, inputs, entropies = trainer.model.module.eval(), rollout["inputs"], list[torch.Tensor]()
        trainer.log_probs(trainer.model, inputs, [], entropies)
        bounds = inputs["cu_seq_lens_q"].tolist()
        expected = []
        for start, end in islice(pairwise(bounds), 21):
            ids, labels = inputs["input_ids"][:, start:end], inputs["labels"][0, start:end]
            logits = module(input_ids=ids).logits[0, :-1][labels[1:] != -100] / 1.3
            expected.append(torch.distributions.Categorical(logits=logits).entropy())
    assert torch.allclose(entropies[0], torch.cat(expected), atol=1e-5)
    means = torch.stack([one.mean() for one in expected])
    assert with_entropy - without == pytest.approx(-0.5 * means.mean().item(), rel=1e-5)
    trainer.close()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_minibatches": 3, "gradient_accumulation_steps": 4}, "num_minibatches: 3 does not divide"),
        ({"type": "reinforce", "num_generations": 1}, "baseline: leave_one_out compares the completions of a prompt"),
        ({"loss_type": "cispo", "clip_low": 0.1}, "clip_low: the ratio of cispo has an upper bound only"),
        (
            {"type": "reinforce", "baseline": "none", "num_generations": 1, "dynamic_sampling": 1},
            "dynamic_sampling: the rewards of one completion cannot differ",
        ),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    save_files(tmp_path)
    with pytest.raises(RecipeError, match=message):
        make_trainer(tmp_path, **keys)
