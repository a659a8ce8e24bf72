"""Rollouts: prompts with sampled completions, their rewards, and what is computed of each token."""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from arctic_training.data.batching.collate import pack, pad, pad_pairs
from arctic_training.data.preview.rows import documents, source_target_rows
from arctic_training.distributed import collectives
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.model.causal_lm import decoder_inputs
from arctic_training.objectives.completion_sampler import Group
from arctic_training.objectives.rollout_config import RolloutConfig
from arctic_training.reward.weighted_sum import WeightedRewards

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Rollout(TypedDict, total=False):
    """Completions of the prompts of one micro-batch, or of a window: A completions, prompt by prompt, with L tokens.

    Tensors are on the device of the rank. Log-probabilities are in nats, those of tokens completion by completion.
    """

    inputs: dict[str, Any]
    """The prompts with their completions as a language model's batch, in which an encoder-decoder has what its decoder
    reads too; only in the rollout of a micro-batch."""
    lengths: Tensor
    """Tokens of each completion: int64 ``[A]``."""
    weights: Tensor
    """1, or 0 for a completion that only fills a batch: float32 ``[A]``."""
    finished: Tensor
    """Whether each completion ended within ``max_new_tokens``: bool ``[A]``."""
    rewards: Tensor
    """The weighted sum of the rewards of each completion, with the penalty of ``kl_in: reward``: float64 ``[A]``. NaN
    where no reward judges it."""
    token_rewards: Tensor
    """The same for each token, the reward being that of the last one of its completion, or 0 where it is NaN: float32
    ``[L]``."""
    old_logprobs: Tensor | None
    """Log-probs under the policy that sampled the tokens: float32 ``[L]``. None where nothing needs them."""
    ref_logprobs: Tensor | None
    """Log-probs under the reference model: float32 ``[L]``. None with ``beta: 0``."""
    values: Tensor
    """What a critic expects at each token, before it is chosen: float32 ``[L]``; only in `ppo`."""
    returns: Tensor
    """What the critic is trained to expect: float32 ``[L]``; only in `ppo`."""
    advantages: Tensor
    """How much better than expected each completion or token is: float32 ``[A]`` or ``[L]``."""
    metrics: dict[str, Tensor]
    """Numbers to record, by name: float32 ``[A]`` each."""
    num_items_in_batch: float
    """What a sum over completions is divided by: completions of the step / (micro-batches x ranks)."""
    num_tokens_in_batch: float
    """The same for a sum over their tokens."""


def collate_completions(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    pad_token: int,
    packs: bool,
    multiple: int,
    longest: int | None = None,
) -> dict[str, Any]:
    """Returns a language model's batch of prompts with their completions, whose tokens are the labels.

    They are documents of one row with ``packs``, else padded rows, whose positions are below ``longest``. The length
    of a row is a multiple of ``multiple``. Prompts and completions are token ids; tensors are int64 ``[rows, length]``.
    """
    samples: list[dict[str, Any]] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = np.array([*prompt, *completion], np.int32)
        labels = ids.copy()
        labels[: len(prompt)] = IGNORE_INDEX
        samples.append({"input_ids": ids, "labels": labels})
    collate = pack if packs else partial(pad, positions=longest)
    batch = collate(samples, pad_token=pad_token, multiple=multiple)
    return {**batch, "num_targets": sum(map(len, completions))}


def collate_decoder_completions(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    pad_token: int,
    multiple: int,
    longest: int | None = None,
) -> dict[str, Any]:
    """Returns the batch of an encoder-decoder that reads prompts, and whose decoder predicts their completions.

    Prompts and completions are token ids. ``input_ids`` and ``attention_mask`` are int64 ``[rows, S]``, S a multiple of
    ``multiple``, but at most ``longest``. ``labels``, ``shift_labels``, which are the same, and ``decoder_input_ids``,
    which begin with the start token of ``model``, are int64 ``[rows, T]``, T that of the longest completion.
    """
    sources, targets = ([np.array(row, np.int32) for row in rows] for rows in (prompts, completions))
    batch = pad_pairs(
        sources,
        targets,
        pad_token=pad_token,
        multiple=multiple,
        longest_source=longest or max(map(len, prompts)),
        longest_target=max(map(len, completions)),
    )
    labels = batch["labels"]
    shifted = {"shift_labels": labels, "decoder_input_ids": decoder_inputs(model, labels)}
    return {**batch, **shifted, "num_targets": sum(map(len, completions))}


def split_inputs(inputs: Mapping[str, Any]) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Returns the tokens of each prompt, and of its completion, in the ``inputs`` of a rollout."""
    on_cpu = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    if "decoder_input_ids" in inputs:
        return [(source.ids, target.ids) for source, target in (row.texts for row in source_target_rows(on_cpu))]
    texts = documents({name: value for name, value in on_cpu.items() if name != "num_targets"})
    return [(text.ids[~text.targets], text.ids[text.targets]) for text in texts if text.targets is not None]


def join_rollouts(rollouts: Sequence[Rollout]) -> Rollout:
    """Returns the rollout of a window: the tensors of those of its micro-batches, one after the other."""
    first: Mapping[str, Any] = rollouts[0]
    names = [name for name, value in first.items() if isinstance(value, Tensor)]
    parts: Sequence[Mapping[str, Any]] = rollouts
    joined: dict[str, object] = {name: torch.cat([part[name] for part in parts]) for name in names}
    joined |= {name: None for name, value in first.items() if value is None}
    return cast(Rollout, joined)


def split_rollout(rollout: Rollout, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Returns the rollouts of a window's micro-batches with the tensors that that of the window has in addition."""
    completions = [len(part["lengths"]) for part in rollouts]
    tokens = [len(part["token_rewards"]) for part in rollouts]
    results: list[Any] = [dict(part) for part in rollouts]
    for name, values in rollout.items():
        if isinstance(values, Tensor) and name not in results[0]:
            # where both numbers are equal, every completion is one token
            sizes = tokens if len(values) == sum(tokens) else completions
            for result, part in zip(results, torch.split(values, sizes), strict=True):
                result[name] = part
    return results


def of_tokens(values: Tensor, rollout: Rollout) -> Tensor:
    """Returns ``values``, ``[completions]`` or ``[tokens]``, as one value for each token: ``[tokens]``."""
    count = len(rollout["token_rewards"])
    if len(values) == count:
        return values
    return values.repeat_interleave(rollout["lengths"], output_size=count)


def moments(values: Tensor, weights: Tensor) -> tuple[float, float]:
    """Returns mean and standard deviation of ``values``, ``[n]``, weighted by ``weights``, ``[n]``, over all ranks.

    They must call it together. The deviation is the population's. Values of weight 0 may be NaN; where no value counts,
    both are 0.
    """
    counts = weights.double()
    numbers = values.double().masked_fill(counts == 0, 0)
    sums = torch.stack([counts.sum(), (counts * numbers).sum(), (counts * numbers.square()).sum()]).cpu()
    count, total, squares = collectives.all_reduce(sums).tolist()
    mean = total / max(count, 1)
    return mean, math.sqrt(max(squares / max(count, 1) - mean**2, 0.0))


def group_metrics(groups: Sequence[Group], eos_token_ids: Collection[int]) -> dict[str, Tensor]:
    """Returns numbers about the completions of ``groups`` by name, float32 ``[completions]`` each, on the CPU.

    Rewards are NaN where none judges the completion.
    """
    completions = [completion for group in groups for completion in group.completions]
    columns: dict[str, list[float]] = {}
    for name in groups[0].by_reward:
        values = columns[f"reward/{name}"] = [value for group in groups for value in group.by_reward[name]]
        columns[f"abstained/{name}"] = [float(math.isnan(value)) for value in values]
    columns |= {
        "reward": [reward for group in groups for reward in group.rewards],
        "tokens": [float(len(completion)) for completion in completions],
        "ended": [float(completion[-1] in eos_token_ids) for completion in completions],
    }
    rewards = torch.tensor([group.rewards for group in groups], dtype=torch.float64)
    deviation = (rewards - rewards.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()
    metrics = {name: torch.tensor(column) for name, column in columns.items()}
    return metrics | {"reward_std": deviation.float().repeat_interleave(rewards.shape[1])}


def rollout_metrics(config: RolloutConfig) -> tuple[str, ...]:
    """Returns the names of all that an evaluation measures of completions and of the policy, beside the loss."""
    labels = WeightedRewards(config.rewards).rewards
    of_settings = {
        "clipped": config.needs_old_log_probs,
        "kl": bool(config.beta),
        "resampled": config.dynamic_sampling,
    }
    return (
        *(f"{kind}/{label}" for label in labels for kind in ("reward", "abstained")),
        *("reward", "reward_std", "tokens", "ended", "entropy"),
        *(name for name, is_measured in of_settings.items() if is_measured),
    )
