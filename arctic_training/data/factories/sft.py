"""Data for supervised fine-tuning: chats and pairs of prompt and completion, of which the answers are targets."""

from collections.abc import Sequence
from typing import Any, ClassVar

from arctic_training.data.factories.config import TokenDataConfig
from arctic_training.data.factories.token import TokenDataFactory
from arctic_training.data.formats import chat
from arctic_training.data.formats.row_error import read_rows
from arctic_training.data.preparation import prepare
from arctic_training.data.tokenization.encoder import SampleEncoder


class SFTDataConfig(TokenDataConfig):
    default_source: ClassVar[str] = "huggingface_instruct"

    mask_inputs: bool = True
    """Only what the assistant says is a target; else every token is."""
    ignore_empty_think: bool = False
    """An empty ``<think></think>`` at the beginning of an answer is no target."""
    chat_template_kwargs: dict[str, Any] = {}
    """Handed to the chat template, such as ``{enable_thinking: false}``."""


class SFTDataFactory(TokenDataFactory[SFTDataConfig]):
    """Rows in any of the shapes of `arctic_training.data.formats.chat` become tokens and labels."""

    name = "sft"
    config_type = SFTDataConfig

    def process(self, dataset: Any) -> Any:
        encode = EncodeRows(list(dataset.column_names), self.encoder(), prompts=self.asks)
        return prepare.map_rows(dataset, encode, processes=self.config.num_proc, folder=self.cache_folder)

    @property
    def asks(self) -> bool:
        return any(section.type == "generate" for section in getattr(self.trainer.config, "evaluators", ()))

    def encoder(self) -> SampleEncoder:
        return SampleEncoder(
            self.tokenizer,
            mask_inputs=self.config.mask_inputs,
            ignore_empty_think=self.config.ignore_empty_think,
            tokenize_arguments=getattr(self.trainer.config.tokenizer, "tokenize_kwargs", None),
            template_arguments=self.config.chat_template_kwargs,
        )


class EncodeRows:
    """Rows to a table of ``input_ids`` and ``labels``, and ``prompt_ids`` where a model is to be asked for answers."""

    def __init__(self, columns: Sequence[str], encoder: SampleEncoder, *, prompts: bool = False) -> None:
        """Raises `DataError` when no shape fits the columns."""
        chat.reader(columns)
        self.columns, self.encoder, self.prompts = columns, encoder, prompts

    def __call__(self, rows: prepare.Rows, first: int) -> Any:
        """Raises `RowError`."""
        samples = read_rows(chat.reader(self.columns), rows, first)
        ids, labels = zip(*self.encoder(samples, first), strict=True)
        prompts = {"prompt_ids": self.encoder.prompts(samples)} if self.prompts else {}
        return prepare.token_table({"input_ids": ids, "labels": labels, **prompts})
