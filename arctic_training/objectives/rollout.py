"""Base of trainers that sample completions of their prompts, and learn from the rewards of these."""

import functools
import zlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from arctic_training.callback.hooks import hook
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.model_facts import context_length, has_encoder
from arctic_training.data.factories.prompt import PromptDataFactory
from arctic_training.data.tokenization.closing_tokens import closing_tokens
from arctic_training.distributed import collectives, process_group
from arctic_training.distributed.sequence_parallel import shard_batch
from arctic_training.errors.types import ModelError, RecipeError, ScoringError
from arctic_training.generation.generate import require_generate
from arctic_training.generation.prompts import Prompt, is_encoder_decoder
from arctic_training.generation.special_tokens import find_eos_token_ids, find_stop_token_ids, get_pad_token_id
from arctic_training.loss.policy import segment_sums
from arctic_training.model.causal_lm import causal_model
from arctic_training.model.checks.positions import check_positions
from arctic_training.objectives.completion_sampler import EVALUATION, TRAINING, CompletionSampler, Group
from arctic_training.objectives.policy_loss import PolicyLossTrainer
from arctic_training.objectives.reference import check_reference_is_policy
from arctic_training.objectives.reference_config import REFERENCE
from arctic_training.objectives.rollout_batch import (
    Rollout,
    collate_completions,
    collate_decoder_completions,
    group_metrics,
    join_rollouts,
    moments,
    of_tokens,
    rollout_metrics,
    split_rollout,
)
from arctic_training.objectives.sampling_check import check_sampled_log_probs
from arctic_training.reward.weighted_sum import WeightedRewards
from arctic_training.state import eval_mode
from arctic_training.trainer.role import Role
from arctic_training.trainer.window import to_device


class RolloutTrainer(PolicyLossTrainer):
    """Before a window is trained on, the model generates completions of its prompts, and rewards score them.

    A subclass defines `advantages`. The loss is PPO's clipped surrogate, with the entropy of the policy and its
    divergence from the reference; `policy_losses` replaces the surrogate, `loss` all of it.

    A completion is a function of weights, recipe and the position of its prompt in the order of the data: neither the
    split of the global batch nor a resume changes it, except where rounding decides between two tokens. Saves fall
    between windows, so that no rollout is part of a checkpoint.
    """

    data_factory_type: ClassVar[type[DataFactory[Any]]] = PromptDataFactory
    roles: ClassVar[tuple[Role, ...]] = (
        Role("model", steps_per_update_key="steps_per_window", tasks=("causal_lm", "seq2seq_lm")),
        replace(REFERENCE, tasks=("causal_lm", "seq2seq_lm")),
    )

    @property
    def packs_samples(self) -> bool:
        """Returns whether several completions share a row: not those of an encoder-decoder."""
        return super().packs_samples and getattr(self.config.model, "task", None) != "seq2seq_lm"

    @functools.cached_property
    def sampler(self) -> CompletionSampler:
        """The sampler of completions of the policy, which scores them too."""
        return CompletionSampler(
            self.model,
            self.tokenizer,
            self.config,
            self.eos_token_ids,
            WeightedRewards(self.config.rewards),
            self.train_loader.dataset if self.train_loader is not None else [],
            self.device,
        )

    @functools.cached_property
    def eos_token_ids(self) -> list[int]:
        """The tokens that end a completion. Raises `InputError` for an unknown stop token, or without any."""
        stop_ids = find_stop_token_ids(self.tokenizer, self.config.stop, "stop")
        closing = closing_tokens(self.tokenizer, getattr(self.config.data, "chat_template_kwargs", {}))
        eos_ids = find_eos_token_ids(self.tokenizer, self.model.module, [closing])
        if not (ids := sorted({*eos_ids, *stop_ids})):
            raise RecipeError("stop: neither the tokenizer nor the model has an end token; specify one")
        return ids

    @property
    def eval_metrics(self) -> tuple[str, ...]:
        return rollout_metrics(self.config)

    def check_recipe(self) -> None:
        """Raises `InputError` for arguments of rewards that cannot be used."""
        super().check_recipe()
        WeightedRewards(self.config.rewards).check()

    def check_models(self, models: Mapping[str, nn.Module | None]) -> None:
        """Raises `InputError` for models that do not go together, and for an unknown stop token."""
        super().check_models(models)
        if self.tokenizer is not None:
            find_stop_token_ids(self.tokenizer, self.config.stop, "stop")

    def check(self) -> None:
        """Raises `InputError` for what would end the run at its first completions."""
        super().check()
        if self.has_weights and self.config.beta and "ref_model" not in self.config.model_fields_set:
            check_reference_is_policy(self)
        module = require_generate(self, f"type: {self.name}")
        if is_encoder_decoder(module) != has_encoder(self):
            raise ModelError(
                f"model: {type(module).__name__} is {'an' if is_encoder_decoder(module) else 'no'} encoder-decoder, "
                f"unlike model.task: {getattr(self.config.model, 'task', 'causal_lm')}, by which the data were prepared"
            )
        if is_encoder_decoder(module):
            check_positions(module, self.config.max_new_tokens, context_length(self), key="max_new_tokens")
        if self.has_weights:
            self.sampler.rewards.load()
        sampler, loaders = self.sampler, filter(None, [self.train_loader, *self.eval_loaders.values()])
        samples: Any = next((one.dataset for one in loaders if len(one.dataset)), [])  # a stream is not read yet
        if len(samples):
            prompt = Prompt.from_sample(samples[0], "sample 1")
            (completion,) = sampler.reward_inputs([prompt], [prompt.reference_ids])
            sampler.rewards.dry_run(completion, self.config.num_generations, loaded=self.has_weights)
            check_sampled_log_probs(self, [samples[n]["input_ids"].tolist() for n in range(min(len(samples), 32))])

    def targets(self, batch: Batch) -> int:
        """Returns the number of completions that count."""
        return int(sum(batch["weights"])) * self.config.num_generations

    def step(self, batch: Batch) -> None:
        """Generates the rollouts of a window at its first micro-batch, and trains on them: ``num_iterations`` times, in
        ``num_minibatches`` steps each."""
        window, progress, loader = self.window, self.progress, self.train_loader
        if window.index:
            return
        assert loader is not None
        rows = [loader.rank_indices(progress.sample_index + index * loader.stride) for index in range(window.size)]
        keys = [[(progress.epoch << 40) + row for row in of_batch] for of_batch in rows]
        rollouts = self.generate_rollouts(window.batches, keys, TRAINING)
        size = self.config.gradient_accumulation_steps // self.config.num_minibatches
        for _ in range(self.config.num_iterations):
            divisors: Rollout = {}
            for rollout in window.iterate(rollouts, step_size=size):
                if window.index == window.step_indices.start:
                    divisors = self._divisors([rollouts[index] for index in window.step_indices])
                self.train_step({**rollout, **divisors})

    def train_step(self, rollout: Rollout) -> None:
        """Trains on the rollout of a micro-batch; the engine steps with the last one of its step."""
        self.update("model", self.loss(rollout))

    @abstractmethod
    def advantages(self, rollout: Rollout) -> Tensor:
        """Returns how much better than expected each completion or each token is: ``[completions]`` or ``[tokens]``.

        ``rollout`` is that of the whole window on this rank. A completion that no reward judges, whose reward is NaN,
        has an advantage of 0, whatever is returned for it. All ranks call it together.
        """

    def with_rollouts(self, batch: Batch) -> Rollout:
        """Returns what `loss` is computed on: ``batch`` itself, or the rollouts of an evaluation's prompts."""
        if "prompts" not in batch:
            return batch  # type: ignore[no-any-return]
        keys = [zlib.crc32(prompt.tobytes()) for prompt in batch["prompts"]]
        (rollout,) = self.generate_rollouts([batch], [keys], EVALUATION)
        return {**rollout, "num_items_in_batch": batch["num_items_in_batch"]}

    @hook("generate_rollouts")
    @torch.no_grad()
    def generate_rollouts(self, batches: Sequence[Any], keys: Sequence[Sequence[int]], stream: int) -> list[Rollout]:
        """Generates completions of the prompts of ``batches``, scores them, and returns a `Rollout` for each.

        ``keys`` has a number for each prompt of each batch, from which its random numbers are made; ``stream`` tells
        training from evaluation. ``generation_batch_size`` batches are completed at once. All ranks must call it.
        Raises `ScoringError` on all ranks for a reward that fails, and `ScoringError` for advantages that are not
        finite.
        """
        self._stream = stream
        rollouts: list[Rollout] = []
        size = self.config.generation_batch_size or len(batches)
        with eval_mode([engine.module for engine in self.engines.values()]):
            for first in range(0, len(batches), size):
                part = slice(first, first + size)
                rollouts += self._complete(batches[part], keys[part], stream)
        window = join_rollouts(rollouts)
        advantages = self.advantages(window)
        judged = ~window["rewards"].isnan()
        judged = judged if len(advantages) == len(judged) else of_tokens(judged, window)
        window["advantages"] = advantages.float().masked_fill(~judged, 0)
        if not window["advantages"].isfinite().all():
            raise ScoringError(
                f"{type(self).__name__}.advantages returned a number that is not finite for a completion that is judged"
            )
        return split_rollout(window, rollouts)

    def _complete(self, batches: Sequence[Any], keys: Sequence[Sequence[int]], stream: int) -> list[Rollout]:
        """Returns the rollouts of ``batches`` without their advantages."""
        prompts = [
            Prompt(list(map(int, prompt)), list(map(int, reference)))
            for batch in batches
            for prompt, reference in zip(batch["prompts"], batch["references"], strict=True)
        ]
        numbers = [key for batch, some in zip(batches, keys, strict=True) for key in some[: len(batch["prompts"])]]
        counted = [bool(weight) for batch in batches for weight in batch["weights"]]
        groups, replaced = self.sampler(prompts, numbers, counted, stream), [False] * len(prompts)
        if stream == TRAINING and self.config.dynamic_sampling:
            replaced = self.sampler.resample_uniform(groups, numbers, counted)
        rollouts, first = [], 0
        for batch in batches:
            part = slice(first, first + len(batch["prompts"]))
            rollouts.append(self.build_rollout(batch["weights"], groups[part], replaced[part]))
            first = part.stop
        return rollouts

    def build_rollout(self, weights: Sequence[float], groups: Sequence[Group], replaced: Sequence[bool]) -> Rollout:
        """Returns the rollout of a micro-batch without its advantages; ``weights`` are those of its prompts.

        A subclass adds what else it needs of each completion or token, such as the values of a critic.
        """
        config, device, ends = self.config, self.device, set(self.eos_token_ids)
        completions = [completion for group in groups for completion in group.completions]
        inputs = self.model_inputs(
            [group.prompt.prompt_ids for group in groups for _ in group.completions], completions
        )
        if (size := config.sequence_parallel_size) > 1:
            inputs = shard_batch(inputs, size, process_group.rank() % size)
        inputs = to_device(inputs, device)
        lengths = torch.tensor(list(map(len, completions)), device=device)
        # float64, so that equal rewards are found equal
        scores = torch.tensor([reward for group in groups for reward in group.rewards], dtype=torch.float64)
        rewards, reference = scores.to(device), self.reference(inputs)
        old = self.log_probs(self.model, inputs) if config.needs_old_log_probs else None
        token_rewards = torch.zeros(int(lengths.sum()), device=device)
        if config.kl_in == "reward" and reference is not None and old is not None:
            token_rewards = config.beta * (reference - old)
            rewards = rewards + segment_sums(token_rewards, lengths)
        token_rewards[lengths.cumsum(0) - 1] += scores.to(device).nan_to_num(0).float()
        metrics, count = group_metrics(groups, ends), config.num_generations
        if config.dynamic_sampling:
            metrics["resampled"] = torch.tensor([float(one) for one in replaced]).repeat_interleave(
                config.num_generations
            )
        rollout: Rollout = {
            "inputs": inputs,
            "lengths": lengths,
            "weights": torch.tensor(weights, device=device).repeat_interleave(count),
            "finished": torch.tensor([completion[-1] in ends for completion in completions], device=device),
            "rewards": rewards,
            "token_rewards": token_rewards,
            "old_logprobs": old,
            "ref_logprobs": reference,
            "metrics": to_device(metrics, device),
        }
        return rollout | self._divisors([rollout], local=True)

    def _divisors(self, rollouts: Sequence[Rollout], *, local: bool = False) -> Rollout:
        """Returns what sums over the ``rollouts`` of a step are divided by; that of ``local`` ones alone."""
        completions = sum(int(one["weights"].sum()) for one in rollouts)
        tokens = sum(int((self.loss_weights(one) * one["lengths"]).sum()) for one in rollouts)
        counts = torch.tensor([completions, tokens], dtype=torch.int64)
        share = 1 if local else len(rollouts) * process_group.world_size()
        num_items, num_tokens = (counts if local else collectives.all_reduce(counts)).tolist()
        return {"num_items_in_batch": max(num_items, 1) / share, "num_tokens_in_batch": max(num_tokens, 1) / share}

    def moments(self, values: Tensor, rollout: Rollout) -> tuple[float, float]:
        """Returns mean and standard deviation of ``values``, ``[completions]`` or ``[tokens]``, over the window.

        They are over all ranks, which must call it together, and over what counts and is judged. An evaluation, which
        sees one micro-batch at a time, has (0, 1), so that it does not depend on the split of its data.
        """
        if self._stream == EVALUATION:
            return 0.0, 1.0
        weights = rollout["weights"] * ~rollout["rewards"].isnan()
        return moments(values, weights if len(values) == len(weights) else of_tokens(weights, rollout))

    def model_inputs(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Returns a language model's batch of prompts with one completion each: see `collate_completions`, and
        `collate_decoder_completions`."""
        data: Any = self.config.data
        pad_token, longest = get_pad_token_id(self.tokenizer), getattr(data, "max_length", None)
        options = {"pad_token": pad_token, "multiple": data.div_length, "longest": longest}
        if is_encoder_decoder(self.model.module):
            return collate_decoder_completions(causal_model(self.model), prompts, completions, **options)
        return collate_completions(prompts, completions, packs=self.packs_samples, **options)


PolicyTrainer = RolloutTrainer
"""The former name of `RolloutTrainer`."""
