"""The reward of a reward model: a sequence classifier of transformers with one label, trained by `reward`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from arctic_training.checkpoint.saved_model import CONFIG, unloadable
from arctic_training.config.checks.hub import unavailable
from arctic_training.config.checks.problems import Problem, problems_of_keys
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.model import NAMES_MODEL, DType
from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.config.sections.types import HumanInt
from arctic_training.distributed import process_group
from arctic_training.engine.dtypes import DTYPES
from arctic_training.errors.types import ModelError
from arctic_training.generation.special_tokens import beginning_token_ids, special_token_ids
from arctic_training.reward.reward import Completion, Reward, RewardConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class ModelRewardConfig(RewardConfig):
    """Keys of the reward `model`."""

    name_or_path: Annotated[str, NAMES_MODEL]
    """The folder of the reward model, its name on the hub, or the run that trained it."""
    dtype: DType = "bf16"
    """Dtype of its weights: bf16, fp16 or fp32."""
    batch_size: Annotated[int, RESUME_SAFE] = Field(default=8, ge=1)
    """Completions that it scores at once."""
    max_length: HumanInt | None = Field(default=None, ge=1)
    """Tokens of a prompt with its completion that it sees: those that begin a text, and the last ones; by default its
    context length."""
    trust_remote_code: bool = False
    """Run the Python code in the model's folder."""

    def missing_paths(self) -> list[Problem]:
        return problems_of_keys({"name_or_path": unloadable(self.name_or_path, holds=CONFIG)})


class ModelReward(Reward[ModelRewardConfig]):
    """The score that a reward model gives a completion after its prompt; each rank holds the whole model.

    The model reads the texts with its own tokenizer, as the trainer `reward` does: behind the tokens that begin a text,
    such as ``[CLS]``, unless the prompt is a chat that begins with a special token, and with its own end token behind a
    completion that ended.
    """

    name = "model"

    def check(self) -> None:
        """Raises `ModelError` for a folder of a model that is no reward model, as far as its config shows it."""
        from transformers import AutoConfig

        if os.path.isdir(self._location):
            with self._refusing():
                config = AutoConfig.from_pretrained(self._location, **self._options)
            self._check_config(config)

    def load(self) -> None:
        """Loads the model. Raises `ModelError` for one that cannot be loaded, or has no trained head of one label."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if why := unavailable(self.config.name_or_path):
            raise ModelError(f"{self._label}: {why}")
        with self._refusing():
            self.tokenizer = AutoTokenizer.from_pretrained(self._location, **self._options)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                self._location, dtype=DTYPES[self.config.dtype], output_loading_info=True, **self._options
            )
        if missing := sorted(info["missing_keys"]):
            raise ModelError(f"{self._label}: {missing[0]} is missing: it is no trained sequence classifier")
        self._check_config(model.config)
        text = model.config.get_text_config()
        self.pad_token_id: int = text.pad_token_id
        self.max_length = self.config.max_length or getattr(text, "max_position_embeddings", None)
        self._beginning = beginning_token_ids(self.tokenizer)
        self._special = special_token_ids(self.tokenizer)
        self.model: torch.nn.Module = model.to(process_group.device()).eval()

    def _check_config(self, config: "PreTrainedConfig") -> None:
        if config.num_labels != 1:
            raise ModelError(f"{self._label}: it has {config.num_labels} labels; a reward model has one")
        if config.get_text_config().pad_token_id is None:
            raise ModelError(f"{self._label}: its config has no pad_token_id, so that padding would be scored")

    @property
    def _location(self) -> str:
        path = os.path.expanduser(self.config.name_or_path)
        return path if os.path.isdir(path) else self.config.name_or_path

    @property
    def _options(self) -> dict[str, bool]:
        return {"trust_remote_code": self.config.trust_remote_code}

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Raises `ModelError` for what transformers raises inside."""
        try:
            yield
        except Exception as error:
            raise ModelError(f"{self._label}: {' '.join(str(error).split())[:500]}") from error

    @torch.no_grad()
    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """Returns the scores of the completions; how many are scored at once changes them by rounding only.

        Equal completions of a prompt have equal scores: their rounding would be all that their group is compared by.
        """
        end = self.tokenizer.eos_token or ""
        between = " " if is_lexer(self.tokenizer) else ""  # whose words would join: 3 and 1 are not 31
        texts = [one.problem + between + one.generated + (end if one.ended else "") for one in completions]
        different = list(dict.fromkeys(texts))
        rows = list(map(self._row, self.tokenizer(different, add_special_tokens=False)["input_ids"]))
        by_length = sorted(range(len(rows)), key=lambda n: len(rows[n]))  # less padding
        scores: dict[str, float] = {}
        for first in range(0, len(rows), self.config.batch_size):
            chosen = by_length[first : first + self.config.batch_size]
            scores |= zip((different[n] for n in chosen), self._scores([rows[n] for n in chosen]), strict=True)
        return [scores[text] for text in texts]

    def _row(self, ids: list[int]) -> list[int]:
        """Returns the tokens that the model sees of a text with the tokens ``ids``."""
        beginning = [] if ids and ids[0] in self._special else self._beginning
        first = max(0, len(beginning) + len(ids) - self.max_length) if self.max_length else 0
        return [*beginning, *ids[first:]]

    def _scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        device = process_group.device()
        tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(tensors, batch_first=True, padding_value=self.pad_token_id).to(device)
        mask = pad([torch.ones_like(row) for row in tensors], batch_first=True).to(device)
        scores: list[float] = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        return scores

    @property
    def _label(self) -> str:
        return f"model: {self.config.name_or_path}"
