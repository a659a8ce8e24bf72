"""Base of trainers that sample completions of their prompts, and learn from the rewards of these."""

import functools
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from arctic_training.callback.hooks import hook
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.batching.noise import uniform
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.prompt import PromptDataFactory, closing_tokens
from arctic_training.distributed import collectives, process_group
from arctic_training.distributed.sequence_parallel import gather_target_values, shard_batch
from arctic_training.errors.types import ModelError, RecipeError
from arctic_training.generation.generate import generate, require_generate
from arctic_training.generation.prompts import Prompt, is_encoder_decoder
from arctic_training.generation.sampling import SamplingParams
from arctic_training.generation.scoring import raise_on_all_ranks
from arctic_training.generation.special_tokens import find_eos_token_ids, find_stop_token_ids, get_pad_token_id
from arctic_training.model.target_losses import target_losses
from arctic_training.objectives.language_model import LanguageModelTrainer
from arctic_training.objectives.policy_config import PolicyConfig
from arctic_training.objectives.reference import check_reference_is_policy, without_adapter
from arctic_training.objectives.reference_config import REFERENCE
from arctic_training.objectives.rollout import collate_completions, decode_answers, judged_advantages, rollout_metrics
from arctic_training.objectives.sampling_check import check_sampled_log_probs
from arctic_training.reward.reward import Answer
from arctic_training.reward.weighted_sum import WeightedRewards
from arctic_training.state import eval_mode
from arctic_training.trainer.role import Role
from arctic_training.trainer.window import to_device

_TRAINING, _EVALUATION = range(2)
"""Streams of random numbers: for completions that are trained on, and for those of an evaluation."""


class PolicyTrainer(LanguageModelTrainer):
    """Before a window is trained on, the model generates completions of its prompts. A subclass defines `advantages`,
    and `loss` on the batches that `generate_rollouts` returns.

    A completion is a function of weights, recipe and the position of its prompt in the order of the data: neither the
    split of the global batch nor a resume changes it, except where rounding decides between two tokens.
    """

    config_type: ClassVar[type[TrainerConfig]] = PolicyConfig
    config: PolicyConfig
    data_factory_type: ClassVar[type[DataFactory[Any]]] = PromptDataFactory
    roles: ClassVar[tuple[Role, ...]] = (Role("model", steps_per_update_key="num_iterations"), REFERENCE)

    @functools.cached_property
    def rewards(self) -> WeightedRewards:
        """The rewards of the recipe."""
        return WeightedRewards(self.config.rewards)

    @functools.cached_property
    def eos_token_ids(self) -> list[int]:
        """The tokens that end a completion. Raises `InputError` for an unknown stop token, or without any."""
        stop_ids = find_stop_token_ids(self.tokenizer, self.config.stop, "stop")
        eos_ids = find_eos_token_ids(
            self.tokenizer, self.model.module, [closing_tokens(self.tokenizer, self.config.data)]
        )
        if not (ids := sorted({*eos_ids, *stop_ids})):
            raise RecipeError("stop: neither the tokenizer nor the model has an end token; specify one")
        return ids

    def check(self) -> None:
        """Raises `InputError` for what would end the run at its first completions."""
        super().check()
        if self.config.beta and "ref_model" not in self.config.model_fields_set:
            check_reference_is_policy(self)
        module = require_generate(self.model, f"type: {self.name}")
        if is_encoder_decoder(module):
            raise ModelError(
                f"model: {type(module).__name__} is an encoder-decoder; {self.name} trains prompt and completion as "
                "one row, and needs a causal language model"
            )
        _ = self.eos_token_ids
        loaders = filter(None, [self.train_loader, *self.eval_loaders.values()])
        samples: Any = next((one.dataset for one in loaders if len(one.dataset)), [])  # a stream is not read yet
        if len(samples):
            prompt = Prompt.from_sample(samples[0], "sample 1")
            (answer,) = self._reward_inputs([prompt], [prompt.reference_ids])
            self.rewards.dry_run(answer, self.config.num_generations)
            check_sampled_log_probs(self, [samples[n]["input_ids"].tolist() for n in range(min(len(samples), 32))])

    def targets(self, batch: Any) -> int:
        """Returns the number of completions that count."""
        return int(sum(batch["weights"])) * self.config.num_generations

    def step(self, batch: Any) -> None:
        """Generates the rollouts of a window at its first micro-batch, and trains on them ``num_iterations`` times."""
        window = self.window
        if window.index == 0:
            self._rollouts = self._generate_window()
            for _ in range(self.config.num_iterations - 1):
                for index, rollout in enumerate(self._rollouts):
                    window.index = index
                    super().step(rollout)
            window.index = 0
        super().step(self._rollouts[window.index])

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """Returns how much better than expected each completion is: ``[prompts, num_generations]``.

        ``rewards`` is float64 of the same shape, on the CPU.
        """

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Returns the scalar to minimise on ``self.with_rollouts(batch)``, with a gradient."""

    def with_rollouts(self, batch: Any) -> Any:
        """Returns what `loss` is computed on: ``batch`` itself, or the rollouts of an evaluation's prompts."""
        if "prompts" not in batch:
            return batch
        keys = [zlib.crc32(prompt.tobytes()) for prompt in batch["prompts"]]
        return self.generate_rollouts([batch], [keys], _EVALUATION)[0]

    def _generate_window(self) -> list[Any]:
        """Returns the rollouts of each micro-batch of the window, ``generation_batch_size`` of them at a time."""
        loader, progress, batches = self.train_loader, self.progress, self.window.batches
        assert loader is not None
        rows = [loader.rank_indices(progress.sample_index + index * loader.stride) for index in range(self.window.size)]
        keys = [[(progress.epoch << 40) + row for row in of_batch] for of_batch in rows]
        rollouts, size = [], self.config.generation_batch_size or len(batches)
        for first in range(0, len(batches), size):
            part = slice(first, first + size)
            rollouts += self.generate_rollouts(batches[part], keys[part], _TRAINING)
        tokens = torch.tensor([sum(rollout["num_tokens_in_batch"] for rollout in rollouts)], dtype=torch.int64)
        all_tokens = max(int(collectives.all_reduce(tokens)), 1)
        mean_tokens = all_tokens / (len(rollouts) * process_group.world_size())
        return [{**rollout, "num_tokens_in_batch": mean_tokens} for rollout in rollouts]

    @hook("answer")
    @torch.no_grad()
    def generate_rollouts(self, batches: Sequence[Any], keys: Sequence[Sequence[int]], stream: int) -> list[Any]:
        """Generates completions of the prompts of ``batches``, scores them, and returns a training batch for each.

        ``keys`` has a number for each prompt of each batch, from which its random numbers are made; ``stream`` tells
        training from evaluation. The keys of a returned batch, with A completions, prompt by prompt, and L tokens:
        ``inputs``, the completions after their prompts as the model takes them; ``lengths``, int64 ``[A]``;
        ``weights`` and ``advantages``, float32 ``[A]``; ``metrics``, numbers to record by name, float32 ``[A]`` each;
        log-probabilities, float32 ``[L]``: ``ref_logprobs``, None without a reference, and ``old_logprobs``, None
        without several iterations. Sums over completions are divided by ``num_items_in_batch``, sums over their tokens
        by ``num_tokens_in_batch``. Raises `ScoringError` on all ranks for a reward that fails.
        """
        count = self.config.num_generations
        prompts = [
            Prompt(list(map(int, prompt)), list(map(int, reference)))
            for batch in batches
            for prompt, reference in zip(batch["prompts"], batch["references"], strict=True)
        ]
        numbers = [
            key * count + n
            for batch, of_batch in zip(batches, keys, strict=True)
            for key in list(of_batch)[: len(batch["prompts"])]
            for n in range(count)
        ]
        with eval_mode([self.model.module]):
            completions = self._sample_completions(prompts, numbers, stream)
            rewards = [0.0] * len(completions)
            by_reward = {name: [0.0] * len(completions) for name in self.rewards.rewards}
            with raise_on_all_ranks():
                if any(any(batch["weights"]) for batch in batches):
                    rewards, by_reward = self.rewards(self._reward_inputs(prompts, completions))
            rollouts, first = [], 0
            for batch in batches:
                end = first + len(batch["prompts"])
                part = slice(first * count, end * count)
                scores = {name: values[part] for name, values in by_reward.items()}
                rollouts.append(
                    self._build_rollout_batch(batch, prompts[first:end], completions[part], rewards[part], scores)
                )
                first = end
        return rollouts

    def record_completions(self, name: str, values: Tensor, batch: Any) -> None:
        """Records the mean of ``values``, ``[completions]``, over the completions that count; that of a reward over
        those of them that it judges, since it is NaN for the others."""
        weights, share = batch["weights"], batch["num_items_in_batch"]
        if name.startswith("reward"):
            weights = weights * ~values.isnan()
            values = values.nan_to_num()
        total = weights.sum()
        self.record(name, (values * weights).sum() / total.clamp(min=1e-9), total / share)

    def log_probs(self, engine: Any, inputs: Any, auxiliary: list[Tensor] | None = None) -> Tensor:
        """Returns the log-probabilities of the completions' tokens, completion by completion: float32 ``[tokens]``.

        ``inputs`` are those of a rollout. Losses that the model itself adds, scalars, are appended to ``auxiliary``.
        """
        losses = target_losses(engine, inputs, temperature=self.config.temperature, terms=auxiliary)
        return -gather_target_values(losses, inputs)

    def reference(self, inputs: Any) -> Tensor | None:
        """Returns the same under the reference model, float32 ``[tokens]``; None where there is none."""
        if not self.config.beta:
            return None
        if "ref_model" in self.engines:
            return self.log_probs(self.engines["ref_model"], inputs)
        with without_adapter(self.model.module):
            return self.log_probs(self.model, inputs)

    def _sample_completions(self, prompts: Sequence[Prompt], keys: Sequence[int], stream: int) -> list[list[int]]:
        """Returns ``num_generations`` completions of each prompt, with random numbers from a key for each completion.

        Ranks that share sequences generate a part of them each.
        """
        config, size = self.config, self.config.sequence_parallel_size
        # at ZeRO stage 3 all ranks must generate
        local = range(process_group.rank() % size, len(keys), size) or range(1)
        numbers = torch.tensor([keys[n] for n in local], device=self.device)
        completions = generate(
            self.model,
            [prompts[n // config.num_generations].prompt_ids for n in local],
            SamplingParams(config.max_new_tokens, config.temperature, config.top_k, config.top_p),
            tokenizer=self.tokenizer,
            eos_token_ids=self.eos_token_ids,
            uniforms=uniform(numbers, config.max_new_tokens, seed=config.seed, stream=stream),
        ).token_ids
        if size == 1:
            return completions
        gathered = collectives.all_gather_object(completions, group_size=size)
        return [gathered[n % size][n // size] for n in range(len(keys))]

    def _reward_inputs(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]]) -> list[Answer]:
        return decode_answers(self.tokenizer, prompts, completions, self.eos_token_ids)

    def model_inputs(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Returns a language model's batch of prompts with one completion each: see `collate_completions`."""
        data: Any = self.config.data
        return collate_completions(
            prompts,
            completions,
            pad_token=get_pad_token_id(self.tokenizer),
            packs=self.packs_samples,
            multiple=data.div_length,
            positions=getattr(data, "max_length", None),
        )

    def _build_rollout_batch(
        self,
        batch: Any,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[int]],
        rewards: Sequence[float],
        by_reward: dict[str, list[float]],
    ) -> dict[str, Any]:
        count, device, size = self.config.num_generations, self.device, self.config.sequence_parallel_size
        inputs = self.model_inputs([prompt.prompt_ids for prompt in prompts for _ in range(count)], completions)
        if size > 1:
            inputs = shard_batch(inputs, size, process_group.rank() % size)
        inputs = to_device(inputs, device)
        weights = [float(weight) for weight in batch["weights"] for _ in range(count)]
        # float64 on the CPU, so that equal rewards are found equal
        groups = torch.tensor(rewards, dtype=torch.float64).reshape(-1, count)
        return {
            "inputs": inputs,
            "lengths": torch.tensor(list(map(len, completions)), device=device),
            "weights": torch.tensor(weights, device=device),
            "advantages": judged_advantages(groups, self.advantages).float().flatten().to(device),
            "metrics": rollout_metrics(
                rewards, by_reward, completions, self.eos_token_ids, group_size=count, device=device
            ),
            "ref_logprobs": self.reference(inputs),
            "old_logprobs": self.log_probs(self.model, inputs) if self.config.num_iterations > 1 else None,
            "num_items_in_batch": batch["num_items_in_batch"],
            "num_tokens_in_batch": sum(
                len(completion) for completion, weight in zip(completions, weights, strict=True) if weight
            ),
        }
