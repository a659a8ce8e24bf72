"""Base of the trainers that take completions of the model's own in place of the answers of the data, in some steps."""

import functools

from pydantic import Field, model_validator

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.causal import CausalDataFactory
from arctic_training.data.tokenization.closing_tokens import closing_tokens
from arctic_training.errors.types import RecipeError
from arctic_training.generation.generate import require_generate
from arctic_training.generation.special_tokens import find_eos_token_ids
from arctic_training.objectives.language_model import LanguageModelTrainer
from arctic_training.objectives.on_policy import use_own_completions, window_is_chosen


class OnPolicyConfig(TrainerConfig):
    """Keys of trainers whose steps may train on completions of the model's own."""

    on_policy_share: HumanFloat = Field(default=0.0, ge=0, le=1)
    """Share of the steps that train on completions which the student samples of the prompts, in place of the last
    answers of the data (Agarwal et al. 2023). Evaluations measure the answers of the data."""
    max_new_tokens: HumanInt = Field(default=256, ge=1)
    """Maximum length of such a completion in tokens. A row whose prompt leaves no room for it within
    ``data.max_length`` keeps its answer."""

    @model_validator(mode="after")
    def _check_on_policy(self) -> "OnPolicyConfig":
        if self.on_policy_share and self.data.type == CausalDataFactory.name:
            raise ValueError("on_policy_share: texts have no prompts; use data.type: sft")
        if self.on_policy_share and (getattr(self.data, "pack_samples", False) or self.sequence_parallel_size > 1):
            raise ValueError(
                "on_policy_share: an answer is replaced in rows of one sample; set data.pack_samples: false, and leave "
                "sequence_parallel_size out"
            )
        return self


class OnPolicyTrainer(LanguageModelTrainer):
    """Trains in ``on_policy_share`` of the steps on completions that the model samples. A subclass states ``name``, and
    defines `loss`, which receives padded rows as those of `sft`."""

    config: OnPolicyConfig
    _is_on_policy = False
    """True while the current window is trained on completions of the model."""

    def check(self) -> None:
        """Raises `InputError` for what its base refuses, and for a model that cannot generate completions."""
        super().check()
        if self.config.on_policy_share:
            require_generate(self, "on_policy_share: sampling")
            if not self.eos_token_ids:
                raise RecipeError("on_policy_share: neither the tokenizer nor the model has an end token")

    @functools.cached_property
    def eos_token_ids(self) -> list[int]:
        """The tokens that end a completion."""
        closing = closing_tokens(self.tokenizer, getattr(self.config.data, "chat_template_kwargs", {}))
        return find_eos_token_ids(self.tokenizer, self.model.module, [closing])

    def step(self, batch: Batch) -> None:
        """Trains on one micro-batch, with ``on_policy_share`` on the model's own completions."""
        share = self.config.on_policy_share
        if share and self.window.index == 0:
            self._is_on_policy = window_is_chosen(self, share)
            if self._is_on_policy:
                use_own_completions(self, self.eos_token_ids, self.config.max_new_tokens)
        if share:
            self.record("on_policy", float(self._is_on_policy))
        super().step(self.window.batches[self.window.index])
