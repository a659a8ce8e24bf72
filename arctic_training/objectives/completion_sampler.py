"""Samples completions of prompts with a policy, and scores them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from arctic_training.data.batching.noise import uniform
from arctic_training.distributed import collectives, process_group
from arctic_training.engine.engine import Engine
from arctic_training.generation.generate import generate
from arctic_training.generation.prompts import Prompt
from arctic_training.generation.sampling import SamplingParams
from arctic_training.generation.scoring import raise_on_all_ranks
from arctic_training.generation.special_tokens import decode_completion
from arctic_training.objectives.rollout_config import RolloutConfig
from arctic_training.reward.reward import Completion
from arctic_training.reward.weighted_sum import WeightedRewards

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINING, EVALUATION = range(2)
"""Streams of random numbers: for completions that are trained on, and for those of an evaluation. Further ones are for
prompts that replace others, and for their completions."""


@dataclass
class Group:
    """The completions of one prompt, and their rewards."""

    prompt: Prompt
    completions: list[list[int]]
    rewards: list[float]
    """The weighted sum of the rewards of each completion; NaN where none judges it."""
    by_reward: dict[str, list[float]]
    """The value of each reward before its weight, by its name."""

    @property
    def is_uniform(self) -> bool:
        """Returns whether all completions that are judged have the same reward: nothing can be learned from them."""
        return len({reward for reward in self.rewards if not math.isnan(reward)}) < 2


@dataclass(frozen=True)
class CompletionSampler:
    """Samples ``num_generations`` completions of each prompt with the policy of a run, and scores them."""

    engine: Engine
    tokenizer: "PreTrainedTokenizerBase"
    config: RolloutConfig
    eos_token_ids: Sequence[int]
    rewards: WeightedRewards
    samples: Any
    """The training data, from which `resample_uniform` draws prompts."""
    device: torch.device

    def __call__(
        self, prompts: Sequence[Prompt], keys: Sequence[int], counted: Sequence[bool], stream: int
    ) -> list[Group]:
        """Returns a group for each prompt.

        ``keys`` has a number for each prompt, from which the random numbers of its completions are made, together with
        ``stream``. Prompts that are not ``counted`` only fill a batch; where none is, rewards are not called, and are
        0. All ranks must call it, with equally many prompts. Raises `ScoringError` on all ranks for a reward that
        fails.
        """
        completions = self._complete(prompts, keys, stream)
        count = self.config.num_generations
        rewards, by_reward = [0.0] * len(completions), {name: [0.0] * len(completions) for name in self.rewards.rewards}
        with raise_on_all_ranks():
            if any(counted) and process_group.rank() % self.config.ranks_per_row == 0:
                rewards, by_reward = self.rewards(self.reward_inputs(prompts, completions))
        if (size := self.config.ranks_per_row) > 1:
            rewards, by_reward = collectives.all_gather_object((rewards, by_reward), group_size=size)[0]
        parts = [slice(n * count, (n + 1) * count) for n in range(len(prompts))]
        return [
            Group(prompt, completions[part], rewards[part], {name: values[part] for name, values in by_reward.items()})
            for prompt, part in zip(prompts, parts, strict=True)
        ]

    def resample_uniform(self, groups: list[Group], keys: Sequence[int], counted: Sequence[bool]) -> list[bool]:
        """Replaces groups in which all rewards are equal by groups of other prompts, drawn from the training data.

        What is still such a group is replaced again, up to ``dynamic_sampling`` times: Yu et al. 2025
        (arXiv 2503.14476), section 3.2. The prompts drawn depend on ``keys`` only, so that neither the split of the
        global batch nor a resume changes them. Returns which of the ``groups`` are replaced.
        """
        replaced, size = [False] * len(groups), self.config.ranks_per_row
        if size > 1:  # the first of the ranks that share a prompt counts it
            counted = collectives.all_gather_object(list(counted), group_size=size)[0]
        for attempt in range(1, self.config.dynamic_sampling + 1):
            rows = [n for n, group in enumerate(groups) if counted[n] and group.is_uniform]
            if not int(collectives.all_reduce(torch.tensor([len(rows)]))):
                break
            prompts = [self._draw_prompt(keys[n], 2 * attempt) for n in rows] or [groups[0].prompt]
            some_keys = [keys[n] for n in rows] or [0]
            drawn = self(prompts, some_keys, [process_group.rank() % size == 0] * len(rows), 2 * attempt + 1)
            for row, group in zip(rows, drawn, strict=False):
                groups[row], replaced[row] = group, True
        return replaced

    def reward_inputs(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]]) -> list[Completion]:
        """Returns what rewards receive: ``len(completions) / len(prompts)`` consecutive completions of each prompt, as
        texts."""
        tokenizer, ends = self.tokenizer, self.eos_token_ids
        problems = tokenizer.batch_decode([prompt.prompt_ids for prompt in prompts])
        references = [decode_completion(tokenizer, prompt.reference_ids, ends) for prompt in prompts]
        group_size = len(completions) // len(prompts)
        return [
            Completion(
                problems[n // group_size],
                decode_completion(tokenizer, completion, ends),
                references[n // group_size],
                len(completion),
                completion[-1] in ends,
            )
            for n, completion in enumerate(completions)
        ]

    def _draw_prompt(self, key: int, stream: int) -> Prompt:
        """Returns the prompt of one of the training samples, drawn by ``key`` and ``stream``."""
        share = float(uniform(torch.tensor([key]), 1, seed=self.config.seed, stream=stream))
        sample: Mapping[str, Any] = self.samples[int(share * len(self.samples))]
        return Prompt.from_sample(sample, "a prompt that replaces another")

    def _complete(self, prompts: Sequence[Prompt], keys: Sequence[int], stream: int) -> list[list[int]]:
        """Returns ``num_generations`` completions of each prompt. Ranks that share sequences generate a part each."""
        config, size, count = self.config, self.config.sequence_parallel_size, self.config.num_generations
        local = range(process_group.rank() % size, len(prompts) * count, size)
        if not local:  # at ZeRO stage 3 all ranks must generate
            local = range(1)
        numbers = torch.tensor([keys[n // count] * count + n % count for n in local], device=self.device)
        completions = generate(
            self.engine,
            [prompts[n // count].prompt_ids for n in local],
            SamplingParams(config.max_new_tokens, config.temperature, config.top_k, config.top_p),
            tokenizer=self.tokenizer,
            eos_token_ids=self.eos_token_ids,
            uniforms=uniform(numbers, config.max_new_tokens, seed=config.seed, stream=stream),
        ).token_ids
        if size == 1:
            return completions
        gathered = collectives.all_gather_object(completions, group_size=size)
        return [gathered[n % size][n // size] for n in range(len(prompts) * count)]
