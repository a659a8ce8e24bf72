"""Data for supervised fine-tuning: chats and pairs of prompt and completion, whose answers have labels."""

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from arctic_training.data.factories.config import TokenDataConfig
from arctic_training.data.factories.token import TokenDataFactory
from arctic_training.data.formats import chat
from arctic_training.data.formats.chat import Sample
from arctic_training.data.preparation.row_encoder import Columns, RowEncoder
from arctic_training.data.tokenization.encoder import SampleEncoder

if TYPE_CHECKING:
    from datasets import Dataset


class SFTDataConfig(TokenDataConfig):
    """The data of the SFT trainer."""

    default_source: ClassVar[str] = "huggingface_instruct"

    mask_inputs: bool = True
    """Only what the assistant says has labels; else every token has."""
    mask_history: bool = False
    """Of each conversation only the last assistant message has labels; those before it are context."""
    ignore_empty_think: bool = False
    """An empty ``<think></think>`` at the beginning of an answer has no labels."""
    chat_template_kwargs: dict[str, Any] = {}
    """Passed to the chat template, such as ``{enable_thinking: false}``."""

    @model_validator(mode="after")
    def _check_masks(self) -> "SFTDataConfig":
        if self.mask_history and not self.mask_inputs:
            raise ValueError("mask_history: mask_inputs: false makes every token a target; remove one of them")
        return self


class SFTDataFactory(TokenDataFactory[SFTDataConfig]):
    """Encodes rows in any of the usual chat formats into token ids and labels."""

    name = "sft"

    def process(self, dataset: "Dataset") -> "Dataset":
        encode = partial(_encode_samples, self.encoder(), self.encodes_prompts)
        return self.map_rows(dataset, RowEncoder(chat.reader(dataset.column_names), encode))

    @property
    def encodes_prompts(self) -> bool:
        return any(section.type == "generate" for section in getattr(self.trainer.config, "evaluators", ()))

    def encoder(self) -> SampleEncoder:
        """Returns the encoder that the section of the recipe describes."""
        return SampleEncoder(
            self.tokenizer,
            mask_inputs=self.config.mask_inputs,
            mask_history=self.config.mask_history,
            ignore_empty_think=self.config.ignore_empty_think,
            tokenize_arguments=self.tokenize_arguments,
            template_arguments=self.config.chat_template_kwargs,
        )


def _encode_samples(encoder: SampleEncoder, with_prompts: bool, samples: list[Sample], first: int) -> Columns:
    """Returns ``input_ids`` and ``labels``, and ``prompt_ids`` for evaluators that generate. Raises `RowError`."""
    ids, labels = zip(*encoder(samples, first), strict=True)
    prompts = {"prompt_ids": encoder.encode_prompts(samples)} if with_prompts else {}
    return {"input_ids": ids, "labels": labels, **prompts}
