"""Writes completions of prompts of the recipe."""

import torch
from pydantic import Field, field_validator

from arctic_training.callback.sampler import Sampler, SamplerConfig
from arctic_training.component import TrainerView
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.errors.types import InputError
from arctic_training.generation.generate import generate, require_generate
from arctic_training.generation.prompts import is_encoder_decoder
from arctic_training.generation.sampling import SamplingParams
from arctic_training.logging import logger
from arctic_training.tracker.samples import TextSamples

Message = dict[str, str]


class SampleGenerationConfig(SamplerConfig):
    """Options of the callback `sample_generation`."""

    prompts: list[str | list[Message]] = Field(min_length=1)
    """The prompts: plain texts, or chats as lists of messages ``{role: user, content: ...}``."""
    max_new_tokens: HumanInt = Field(default=64, ge=1)
    """Maximum length of a completion in tokens."""
    temperature: HumanFloat = Field(default=0.0, ge=0)
    """Divisor of the logits before sampling; 0: greedy decoding."""
    top_k: HumanInt = Field(default=0, ge=0)
    """Sample from the ``top_k`` most likely tokens; 0: from all."""
    top_p: HumanFloat = Field(default=1.0, gt=0, le=1)
    """Sample from the most likely tokens that together have this probability; 1: from all."""
    stop: list[str] = []
    """Texts that end a completion."""
    seed: int = Field(default=42, ge=0)
    """Seed of the sampling, the same at every step."""

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
    config_type = SampleGenerationConfig

    def check(self, trainer: TrainerView) -> None:
        """Raises `InputError` for a model that cannot generate, or a chat without a chat template."""
        if trainer.tokenizer is None:
            raise InputError("callbacks.sample_generation needs a tokenizer, and this run has none")
        require_generate(trainer.engines["model"], "callbacks.sample_generation")
        self._tokenizer = trainer.tokenizer
        encoder_decoder = is_encoder_decoder(trainer.engines["model"].module)
        self._prompt_ids = [self._encode(prompt, keeps_end=encoder_decoder) for prompt in self.config.prompts]

    def sample(self, trainer: TrainerView) -> TextSamples:
        config = self.config
        generator = torch.Generator().manual_seed(config.seed)
        shape = len(self._prompt_ids), config.max_new_tokens
        params = SamplingParams(
            config.max_new_tokens, config.temperature, config.top_k, config.top_p, tuple(config.stop)
        )
        with trainer.averaged("model", purpose="evaluate"):
            completions = generate(
                trainer.engines["model"],
                self._prompt_ids,
                params,
                tokenizer=self._tokenizer,
                uniforms=torch.rand(shape, generator=generator, dtype=torch.float64),
            )
        prompts = self._tokenizer.batch_decode(self._prompt_ids, skip_special_tokens=False)
        texts = completions.texts(self._tokenizer)
        for text in texts:
            logger.info(f"sample of step {trainer.progress.step}: {text}")
        return TextSamples([{"prompt": p, "completion": c} for p, c in zip(prompts, texts, strict=True)])

    def _encode(self, prompt: str | list[Message], *, keeps_end: bool) -> list[int]:
        """Returns the token ids of a prompt, with the end token of a text only if ``keeps_end``.

        Raises `InputError`.
        """
        tokenizer = self._tokenizer
        if isinstance(prompt, str):
            ids = list(tokenizer(prompt)["input_ids"])
            return ids if keeps_end or ids[-1:] != [tokenizer.eos_token_id] else ids[:-1]
        try:
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates refuse chats in their own way
            where = "callbacks.sample_generation.prompts"
            raise InputError(f"{where}: the chat template refuses a prompt: {error}") from error
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
