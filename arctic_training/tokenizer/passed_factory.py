"""The tokenizer that a Python program passes to a trainer."""

import copy
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import Field, model_validator

from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.passed import PASSED
from arctic_training.tokenizer.huggingface_factory import HFTokenizerConfig, HFTokenizerFactory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PassedTokenizerConfig(HFTokenizerConfig):
    """The tokenizer section for a tokenizer that a program passes."""

    tokenizer: Annotated[object, RESUME_SAFE] = Field(default=None, exclude=True, repr=False)
    """The tokenizer: ``SFTTrainer(config, tokenizer=tokenizer)``."""

    @model_validator(mode="after")
    def _check_passed(self) -> "PassedTokenizerConfig":
        if self.tokenizer is None:
            raise ValueError("tokenizer: no recipe can hold it; pass it in Python: Trainer(config, tokenizer=...)")
        if self.name_or_path is not None:
            raise ValueError(f"name_or_path: {self.name_or_path}, and a tokenizer is passed; give one of them")
        return self


class PassedTokenizerFactory(HFTokenizerFactory):
    """Prepares a copy of the tokenizer that a Python program passes, as if it had been loaded."""

    name = PASSED
    config: PassedTokenizerConfig

    def read_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Returns a copy: the template and the pad token of the run are no concern of the program."""
        return copy.deepcopy(cast("PreTrainedTokenizerBase", self.config.tokenizer))
