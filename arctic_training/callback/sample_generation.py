"""Writes completions of prompts of the recipe."""

from pydantic import Field, field_validator

from arctic_training.callback.sampler import Sampler, SamplerConfig
from arctic_training.component import TrainerView
from arctic_training.errors.types import InputError
from arctic_training.generation.config import GenerationKeys
from arctic_training.generation.generate import generate, require_generate
from arctic_training.generation.prompts import Message, encode_prompt, is_encoder_decoder
from arctic_training.generation.sampling import seeded_uniforms
from arctic_training.logging import logger
from arctic_training.tracker.samples import TextSamples


class SampleGenerationConfig(GenerationKeys, SamplerConfig):
    """Options of the callback `sample_generation`."""

    prompts: list[str | list[Message]] = Field(min_length=1)
    """The prompts: plain texts, or chats as lists of messages ``{role: user, content: ...}``."""

    @field_validator("prompts")
    @classmethod
    def _check_messages(cls, prompts: list[str | list[Message]]) -> list[str | list[Message]]:
        for number, prompt in enumerate(prompts, 1):
            if isinstance(prompt, list) and not all({"role", "content"} <= message.keys() for message in prompt):
                raise ValueError(f"prompt {number}: every message needs a role and a content")
            if not prompt:
                raise ValueError(f"prompt {number} is empty")
        return prompts


class SampleGeneration(Sampler[SampleGenerationConfig]):
    """Writes the model's completions of a few prompts, to see what it has learned.

    They are those of the averaged weights where the callback `ema` has ``evaluate``.
    """

    name = "sample_generation"
    checks_without_data = True

    def check(self, trainer: TrainerView) -> None:
        """Raises `InputError` for a model that cannot generate, or a chat without a chat template."""
        if trainer.tokenizer is None:
            raise InputError("callbacks: sample_generation needs a tokenizer, and this run has none")
        require_generate(trainer, "callbacks: sample_generation")
        self._tokenizer = trainer.tokenizer
        encoder_decoder = is_encoder_decoder(trainer.engines["model"].module)
        where = "callbacks.sample_generation.prompts"
        self._prompt_ids = [
            encode_prompt(trainer.tokenizer, prompt, where, keeps_end=encoder_decoder) for prompt in self.config.prompts
        ]

    def sample(self, trainer: TrainerView) -> TextSamples:
        config = self.config
        with trainer.averaged("model", purpose="evaluate"):
            completions = generate(
                trainer.engines["model"],
                self._prompt_ids,
                config.sampling_params,
                tokenizer=self._tokenizer,
                uniforms=seeded_uniforms([0] * len(self._prompt_ids), config.max_new_tokens, config.seed),
            )
        prompts = self._tokenizer.batch_decode(self._prompt_ids, skip_special_tokens=False)
        texts = completions.texts(self._tokenizer)
        for text in texts:
            logger.info(f"sample of step {trainer.progress.step}: {text}")
        return TextSamples([{"prompt": p, "completion": c} for p, c in zip(prompts, texts, strict=True)])
