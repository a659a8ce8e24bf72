"""Rollouts: prompts with sampled completions, as training batches, as input of rewards, and as metrics."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arctic_training.data.batching.collate import pack, pad
from arctic_training.generation.prompts import Prompt
from arctic_training.generation.special_tokens import decode_completion
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.reward.reward import Answer


def collate_completions(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    pad_token: int,
    packs: bool,
    multiple: int,
    positions: int | None = None,
) -> dict[str, Any]:
    """Returns a language model's batch of prompts with their completions, whose tokens are the labels.

    They are documents of one row with ``packs``, else padded rows, whose positions are below ``positions``. The length
    of a row is a multiple of ``multiple``. Prompts and completions are token ids; tensors are int64 ``[rows, length]``.
    """
    samples: list[dict[str, Any]] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = np.array([*prompt, *completion], np.int32)
        labels = ids.copy()
        labels[: len(prompt)] = IGNORE_INDEX
        samples.append({"input_ids": ids, "labels": labels})
    collate = pack if packs else partial(pad, positions=positions)
    batch = collate(samples, pad_token=pad_token, multiple=multiple)
    return {**batch, "num_targets": sum(map(len, completions))}


def decode_answers(
    tokenizer: Any, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], eos_token_ids: Collection[int]
) -> list[Answer]:
    """Returns what rewards receive: ``len(completions) / len(prompts)`` consecutive completions of each prompt, as
    texts."""
    problems = tokenizer.batch_decode([prompt.prompt_ids for prompt in prompts])
    references = [decode_completion(tokenizer, prompt.reference_ids, eos_token_ids) for prompt in prompts]
    group_size = len(completions) // len(prompts)
    return [
        Answer(
            problems[n // group_size],
            decode_completion(tokenizer, completion, eos_token_ids),
            references[n // group_size],
            len(completion),
            completion[-1] in eos_token_ids,
        )
        for n, completion in enumerate(completions)
    ]


def judged_advantages(rewards: Tensor, advantages: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns ``advantages`` of the rewards, ``[groups, completions]``, computed without those that are NaN: no reward
    judged their completions, and they get 0."""
    judged = ~rewards.isnan()
    if judged.all():
        return advantages(rewards)
    result = torch.zeros_like(rewards)
    for group, of_group in enumerate(judged):
        if of_group.any():
            result[group, of_group] = advantages(rewards[group, of_group][None])[0].to(result.dtype)
    return result


def rollout_metrics(
    rewards: Sequence[float],
    by_reward: Mapping[str, Sequence[float]],
    completions: Sequence[Sequence[int]],
    eos_token_ids: Collection[int],
    *,
    group_size: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Returns numbers about completions by name, float32 ``[completions]`` each. Rewards are NaN where none judged."""
    columns: dict[str, Sequence[float]] = {f"reward/{name}": values for name, values in by_reward.items()}
    columns |= {f"abstained/{name}": [float(math.isnan(v)) for v in values] for name, values in by_reward.items()}
    columns |= {
        "reward": rewards,
        "tokens": [float(len(completion)) for completion in completions],
        "ended": [float(completion[-1] in eos_token_ids) for completion in completions],
    }
    groups = torch.tensor(rewards, dtype=torch.float64).reshape(-1, group_size)
    deviation = (groups - groups.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()
    metrics = {name: torch.tensor(column, device=device) for name, column in columns.items()}
    return metrics | {"reward_std": deviation.float().repeat_interleave(group_size).to(device)}
