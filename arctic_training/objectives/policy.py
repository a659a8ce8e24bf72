"""What trainers share whose model answers prompts, and learns from what its answers are worth."""

import functools
import math
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, SerializeAsAny, ValidationInfo, ValidatorFunctionWrapHandler, field_validator
from torch import Tensor

from arctic_training.callback.hooks import hook
from arctic_training.config.checks.changes import RESUME_SAFE
from arctic_training.config.checks.problems import Problem, Problems
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.config.sections.component import TrainerComponent
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.numbers import HumanFloat, HumanInt
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.batching.noise import uniform
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.prompt import PromptDataFactory, answered, closing_tokens
from arctic_training.distributed import collectives, process_group
from arctic_training.distributed.sequence_parallel import gather_target_values, shard_batch
from arctic_training.errors.types import ModelError, RecipeError, ScoringError
from arctic_training.generation.prompts import (
    Prompt,
    decode_completion,
    end_tokens,
    generator,
    is_encoder_decoder,
    pad_token,
    stop_tokens,
)
from arctic_training.generation.sampling import Sampling, sample
from arctic_training.model.target_losses import target_losses
from arctic_training.objectives.language_model import LanguageModelTrainer
from arctic_training.objectives.reference import read_reference, require_fit, require_start, without_adapter
from arctic_training.reward.reward import Answer, Rewards, RewardSections
from arctic_training.state import eval_mode
from arctic_training.trainer.role import Role
from arctic_training.trainer.window import to_device

_TRAINED, _EVALUATED = range(2)
"""Streams of noise: for answers that are learned from, and for those of an evaluation."""


class PolicyConfig(TrainerConfig):
    rewards: RewardSections = Field(min_length=1)
    """What an answer is worth: rewards and scorers, by name or as sections; their sum by weight."""
    num_generations: int = Field(default=4, ge=2)
    """Answers to each prompt. A process computes ``micro_batch_size`` prompts at once, with so many answers each."""
    num_iterations: int = Field(default=1, ge=1)
    """Optimizer steps on the answers of one window. Lengths of schedules count them all, the run's updates do not."""
    max_new_tokens: HumanInt = Field(default=256, ge=1)
    """Tokens after which an answer is cut off."""
    temperature: HumanFloat = Field(default=1.0, gt=0)
    """What logits are divided by, where answers are drawn and where their probabilities are computed."""
    top_k: HumanInt = Field(default=0, ge=0)
    """Draw from so many of the likeliest tokens; 0: from all. Probabilities stay those among all tokens."""
    top_p: HumanFloat = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability; 1: from all."""
    stop: list[str] = []
    """Tokens of the vocabulary that end an answer, beside the end tokens of model, tokenizer and chat template."""
    generate_together: Annotated[HumanInt, RESUME_SAFE] = Field(default=0, ge=0)
    """Micro-batches of a window whose answers are drawn at the same time; 0: all of it."""
    beta: HumanFloat = Field(default=0.01, ge=0)
    """How strongly the policy is held to the reference; 0: not at all, and there is no reference."""
    ref_model: Annotated[SerializeAsAny[ModelConfig] | None, TrainerComponent("model_factory_type")] = None
    """The reference. When left out, the policy as it was at the start: made by the ``model`` section again, or, where
    that has a ``peft_config``, the policy itself without its adapter."""
    disable_dropout: bool = True
    """Train without dropout; else the policy that is trained is not the one that answers."""
    reference_model_deepspeed: Annotated[dict[str, Any] | None, RESUME_SAFE] = None
    """What takes the place of ``deepspeed`` for the reference; its stage 3 shards it over the processes."""

    @field_validator("checkpoint")
    @classmethod
    def _says_what_is_best(cls, sections: list[CheckpointConfig]) -> list[CheckpointConfig]:
        for section in sections:
            if section.enabled and section.keep_best and section.best_metric is None:
                told = "the least loss is that of a policy that has not moved; give best_metric: reward/eval"
                raise Problems([Problem(("keep_best",), f"{told} and best_mode: max")])
        return sections

    @field_validator("ref_model", mode="wrap")
    @classmethod
    def _reference(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        unwanted = "beta is 0, so that nothing is compared with a reference"
        return read_reference(value, read, info, unwanted="" if info.data.get("beta", 1) else unwanted)

    @field_validator("reference_model_deepspeed")
    @classmethod
    def _block(cls, block: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        return require_fit(block, info)


class PolicyTrainer(LanguageModelTrainer):
    """Before a window is trained on, its prompts are answered by the model as it is. A subclass writes `advantages`
    and `loss`, which is given what `answer` makes of a batch of prompts.

    An answer is a function of weights, recipe and the place of its prompt in the order: neither the cut of the global
    batch nor a resume changes it, but where rounding decides between two tokens.
    """

    config_type = PolicyConfig
    data_factory_type: ClassVar[type[DataFactory[Any]]] = PromptDataFactory
    roles: ClassVar[tuple[Role, ...]] = (
        Role("model", steps_per_update_key="num_iterations"),
        Role("ref_model", frozen=True, deepspeed="reference_model_deepspeed"),
    )

    @functools.cached_property
    def rewards(self) -> Rewards:
        return Rewards(self.config.rewards)

    @functools.cached_property
    def ends(self) -> list[int]:
        """The tokens that end an answer, the same for all. Raises `InputError` for one that there is not."""
        stops = stop_tokens(self.tokenizer, self.config.stop, "stop")
        closing = closing_tokens(self.tokenizer, self.config.data)
        ends = end_tokens(self.tokenizer, self.model.module, [closing])
        if not (every := sorted({*ends, *stops})):
            raise RecipeError("stop: no token ends an answer, neither the tokenizer's nor the model's; give one")
        return every

    def check(self) -> None:
        """Raises `InputError` for what would end the run at its first answers."""
        super().check()
        if self.config.beta and "ref_model" not in self.config.model_fields_set:
            require_start(self)
        module = generator(self.model, f"type: {self.name}")
        if is_encoder_decoder(module):
            told = (
                f"model: {type(module).__name__} is an encoder-decoder; {self.name} trains prompt and answer as one row"
            )
            raise ModelError(f"{told}, for which a causal language model is wanted")
        _ = self.ends
        loaders = filter(None, [self.train_loader, *self.eval_loaders.values()])
        samples: Any = next((one.dataset for one in loaders if len(one.dataset)), [])  # of a stream nothing is read yet
        if len(samples):
            question = Prompt.of(samples[0], "sample 1")
            answer = self._told([question], [question.target])[0]
            self.rewards.dry_run(answer, self.config.num_generations)
            self._require_one_policy([samples[n]["input_ids"].tolist() for n in range(min(len(samples), 32))])

    @torch.no_grad()
    def _require_one_policy(self, prompts: list[list[int]]) -> None:
        """Raises `ModelError` where a token has another probability while it is drawn than while it is trained on.

        So it is in models that count padding among the positions, or take it into a state.
        """
        if self.config.sequence_parallel_size > 1:
            return  # shared attention is there for models only that know padding
        asked = [min(prompts, key=len), max(prompts, key=len)]
        found: list[Tensor] = []
        with eval_mode([self.model.module]):
            uniforms = uniform(torch.arange(2, device=self.device), 3, seed=self.config.seed)
            how, pad = Sampling(3, self.config.temperature), pad_token(self.tokenizer)
            given = sample(self.model, asked, uniforms, how, ends=self.ends, pad=pad, told=found)
            inputs = to_device(self._inputs(asked, given), self.device)
            trained = self.log_probs(self.model, inputs).float()
        drawn = torch.cat([torch.stack(found)[: len(one), n] for n, one in enumerate(given)]).float()
        # in 16 bits the two are rounded apart
        far = (drawn - trained).abs() > (0.02 if self.config.model.dtype == "fp32" else 0.5)
        if far.any():
            which = int(far.nonzero()[0])
            raise ModelError(
                f"model: {type(self.model.module).__name__} draws a token of log-probability {trained[which]:.3f} with "
                f"one of {drawn[which]:.3f} where prompts are padded: it would not learn from its own answers"
            )

    def targets(self, batch: Any) -> int:
        """The answers that count."""
        return int(sum(batch["weights"])) * int(self.config.num_generations)

    def step(self, batch: Any) -> None:
        window = self.window
        if window.index == 0:
            self._answered = self._answer_window()
            for _ in range(self.config.num_iterations - 1):
                for index, answers in enumerate(self._answered):
                    window.index = index
                    super().step(answers)
            window.index = 0
        super().step(self._answered[window.index])

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """How much better than expected each answer is, ``[prompts, num_generations]`` as the rewards are."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The scalar to minimise on ``self.with_answers(batch)``."""

    def with_answers(self, batch: Any) -> Any:
        """What `loss` is computed of: ``batch`` itself, or, of an evaluation's prompts, what `answer` makes of them."""
        if "prompts" not in batch:
            return batch
        keys = [zlib.crc32(prompt.tobytes()) for prompt in batch["prompts"]]
        return self.answer([batch], [keys], _EVALUATED)[0]

    def _answer_window(self) -> list[Any]:
        loader, progress, together = self.train_loader, self.progress, self.config.generate_together
        assert loader is not None
        places = [loader.places(progress.sample_index + index * loader.stride) for index in range(self.window.size)]
        keys = [[(progress.epoch << 40) + place for place in some] for some in places]
        made, batches = [], self.window.batches
        for first in range(0, len(batches), together or len(batches)):
            part = slice(first, first + (together or len(batches)))
            made += self.answer(batches[part], keys[part], _TRAINED)
        tokens = sum(batch["num_tokens_in_batch"] for batch in made)
        tokens = int(collectives.all_reduce(torch.tensor([tokens], dtype=torch.int64)))
        share = max(tokens, 1) / (len(made) * process_group.world_size())
        return [{**batch, "num_tokens_in_batch": share} for batch in made]

    @hook("answer")
    @torch.no_grad()
    def answer(self, batches: Sequence[Any], keys: Sequence[Sequence[int]], stream: int) -> list[Any]:
        """Let the model answer the prompts of ``batches``, and say what the answers are worth.

        ``keys`` are a number for each prompt, which its randomness is made of. Of each batch comes ``inputs``: the
        answers with their prompts as the model takes them, prompt after prompt; as tensors ``[answers]`` their
        ``lengths`` in tokens, ``weights``, ``advantages``, and under ``told`` numbers to be recorded; as tensors
        ``[tokens]`` log-probabilities, ``reference``, and ``old`` when there are several iterations, else None. Sums
        over answers are divided by ``num_items_in_batch``, and sums over their tokens by ``num_tokens_in_batch``.
        """
        count, ends = self.config.num_generations, self.ends
        questions = [
            Prompt.of({"input_ids": prompt, "answer_ids": reference}, "")
            for batch in batches
            for prompt, reference in zip(batch["prompts"], batch["references"], strict=True)
        ]
        numbers = [
            key for batch, some in zip(batches, keys, strict=True) for key in list(some)[: len(batch["prompts"])]
        ]
        asked = [one.prompt for one in questions for _ in range(count)]
        with eval_mode([self.model.module]):
            given = self._drawn(asked, [key * count + n for key in numbers for n in range(count)], stream)
            sums, parts = [0.0] * len(given), {name: [0.0] * len(given) for name in self.rewards.parts}
            if any(any(batch["weights"]) for batch in batches):
                sums, parts = self._judged(self._told(questions, given))
            else:
                self._judged([])
            made, first = [], 0
            for batch in batches:
                some = slice(first * count, (first + len(batch["prompts"])) * count)
                columns = {f"reward/{name}": column[some] for name, column in parts.items()}
                columns |= {f"abstained/{name}": [float(math.isnan(v)) for v in parts[name][some]] for name in parts}
                columns |= {"reward": sums[some], "tokens": [float(len(one)) for one in given[some]]}
                columns |= {"ended": [float(one[-1] in ends) for one in given[some]]}
                made.append(self._made(batch, asked[some], given[some], columns))
                first += len(batch["prompts"])
        return made

    def _judged(self, answers: Sequence[Answer]) -> tuple[list[float], dict[str, list[float]]]:
        """What the answers are worth. Raises `ScoringError` on every rank when one rank cannot tell."""
        worth: tuple[list[float], dict[str, list[float]]] = ([], {})
        failure = ""
        try:
            worth = self.rewards(answers) if answers else worth
        except ScoringError as error:
            failure = str(error)
        if failures := list(filter(None, collectives.all_gather_object(failure))):
            raise ScoringError(failures[0])
        return worth

    def _advantages(self, rewards: Tensor) -> Tensor:
        """`advantages` among the answers that are judged; 0 for the others, whose reward is NaN."""
        judged = ~rewards.isnan()
        if judged.all():
            return self.advantages(rewards)
        found = torch.zeros_like(rewards)
        for row, some in enumerate(judged):
            if some.any():
                found[row, some] = self.advantages(rewards[row, some][None])[0].to(found.dtype)
        return found

    def record_answers(self, name: str, values: Tensor, batch: Any) -> None:
        """Record the mean of ``values``, ``[answers]``, over the answers that count, and of rewards over those of them
        that are judged: the others have NaN."""
        weights, share = batch["weights"], batch["num_items_in_batch"]
        if name.startswith("reward"):
            weights = weights * ~values.isnan()
            values = values.nan_to_num()
        counted = weights.sum()
        self.record(name, (values * weights).sum() / counted.clamp(min=1e-9), counted / share)

    def _drawn(self, prompts: Sequence[Any], keys: Sequence[int], stream: int) -> list[list[int]]:
        """An answer to each prompt; those that share sequences draw a part of the answers each."""
        config, size = self.config, self.config.sequence_parallel_size
        mine = range(process_group.rank() % size, len(prompts), size) or range(1)  # at ZeRO stage 3 all must ask
        numbers = torch.tensor([keys[n] for n in mine], device=self.device)
        given = sample(
            self.model,
            [prompts[n] for n in mine],
            uniform(numbers, config.max_new_tokens, seed=config.seed, stream=stream),
            Sampling(config.max_new_tokens, config.temperature, config.top_k, config.top_p),
            ends=self.ends,
            pad=pad_token(self.tokenizer),
        )
        if size == 1:
            return given
        parts = collectives.all_gather_object(given, group_size=size)
        return [parts[n % size][n // size] for n in range(len(prompts))]

    def _inputs(self, prompts: Sequence[Any], given: Sequence[Any]) -> dict[str, Any]:
        """What the model is trained on: the answers ``given`` to ``prompts``."""
        pad, multiple = pad_token(self.tokenizer), self.config.data.div_length
        told: Any = {"multiple": multiple, "positions": getattr(self.config.data, "max_length", None)}
        return answered(prompts, given, pad_token=pad, packs=self.packs_samples, **told)

    def _made(self, batch: Any, prompts: Sequence[Any], given: Sequence[Any], columns: dict[str, list[float]]) -> Any:
        count, device = self.config.num_generations, self.device
        inputs = self._inputs(prompts, given)
        if (size := self.config.sequence_parallel_size) > 1:
            inputs = shard_batch(inputs, size, process_group.rank() % size)
        inputs = to_device(inputs, device)
        # in doubles, on the CPU: what is worth the same must be seen to be
        rewards = torch.tensor(columns["reward"], dtype=torch.float64).reshape(-1, count)
        told = {name: torch.tensor(column, device=device) for name, column in columns.items()}
        spread = (rewards - rewards.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()
        told["reward_std"] = spread.float().repeat_interleave(count).to(device)
        counted = [float(weight) for weight in batch["weights"] for _ in range(count)]
        return {
            "inputs": inputs,
            "lengths": torch.tensor(list(map(len, given)), device=device),
            "weights": torch.tensor(counted, device=device),
            "advantages": self._advantages(rewards).float().flatten().to(device),
            "told": told,
            "reference": self.reference(inputs),
            "old": self.log_probs(self.model, inputs) if self.config.num_iterations > 1 else None,
            "num_items_in_batch": batch["num_items_in_batch"],
            "num_tokens_in_batch": sum(len(one) for one, weight in zip(given, counted, strict=True) if weight),
        }

    def log_probs(self, engine: Any, inputs: Any, terms: list[Tensor] | None = None) -> Tensor:
        """The log-probabilities of the answers' tokens, answer by answer: ``[tokens]``. What the model adds to its loss
        is appended to ``terms``."""
        return -gather_target_values(
            target_losses(engine, inputs, temperature=self.config.temperature, terms=terms), inputs
        )

    def reference(self, inputs: Any) -> Tensor | None:
        """The same under the reference; None where there is none."""
        if not self.config.beta:
            return None
        if "ref_model" in self.engines:
            return self.log_probs(self.engines["ref_model"], inputs)
        with without_adapter(self.model.module):
            return self.log_probs(self.model, inputs)

    def _told(self, questions: Sequence[Prompt], given: Sequence[Any]) -> list[Answer]:
        count = self.config.num_generations
        problems = self.tokenizer.batch_decode([one.prompt for one in questions])
        references = [decode_completion(self.tokenizer, one.target, self.ends) for one in questions]
        texts = [decode_completion(self.tokenizer, answer, self.ends) for answer in given]
        return [
            Answer(problems[n // count], text, references[n // count], len(answer), answer[-1] in self.ends)
            for n, (text, answer) in enumerate(zip(texts, given, strict=True))
        ]
