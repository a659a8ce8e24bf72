"""Base of the trainers of encoders of texts: how a text becomes an embedding, and how two are compared."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.config.sections.types import HumanFloat
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.model_facts import context_length
from arctic_training.data.factories.pair import PairDataFactory
from arctic_training.errors.types import RecipeError
from arctic_training.model.causal_lm import causal_model
from arctic_training.objectives.embedding_export import Pooling, sentence_transformers_files
from arctic_training.objectives.language_model import LanguageModelTrainer
from arctic_training.trainer.role import Role


class TextEncoderConfig(TrainerConfig):
    """Keys of the trainers of encoders of texts."""

    pooling: Pooling = "mean"
    """The embedding of a text: the mean of the hidden states of its tokens, that of the first token, or that of the
    last."""
    normalize: bool = True
    """Compare by cosine; else by dot product."""
    matryoshka_dims: list[int] = []
    """Lengths to which embeddings are truncated, the full one included; the loss is the weighted sum over them."""
    matryoshka_weights: list[HumanFloat] = []
    """A weight for each of ``matryoshka_dims``; by default 1."""
    disable_dropout: bool = False
    """Train without dropout, that of an adapter included."""

    @model_validator(mode="after")
    def _check_matryoshka(self) -> "TextEncoderConfig":
        dims, weights = self.matryoshka_dims, self.matryoshka_weights
        if dims != sorted({*dims}, reverse=True) or any(dim < 1 for dim in dims):
            raise ValueError(f"matryoshka_dims: {dims}; expected lengths from the largest to the smallest")
        if weights and len(weights) != len(dims):
            raise ValueError(f"matryoshka_weights: {len(weights)} weights for {len(dims)} matryoshka_dims")
        return self


class TextEncoderTrainer(LanguageModelTrainer):
    """Trains an encoder of texts on pairs of them. A subclass states ``name``, and defines `loss`."""

    config: TextEncoderConfig
    data_factory_type: ClassVar[type[DataFactory[Any]]] = PairDataFactory
    roles: ClassVar[tuple[Role, ...]] = (Role("model", tasks=("encoder",)),)

    def check_models(self, models: Mapping[str, nn.Module | None]) -> None:
        """Raises `InputError` for what its base refuses, and for ``matryoshka_dims`` beyond the width of the model."""
        super().check_models(models)
        if (model := models["model"]) is not None:
            self._check_dims(_width(model))

    def check(self) -> None:
        """Raises `InputError` for what its base refuses, and for ``matryoshka_dims`` beyond the width of the model."""
        super().check()
        self._check_dims(_width(causal_model(self.model)))

    def _check_dims(self, width: int) -> None:
        if (dims := self.config.matryoshka_dims) and dims[0] > width:
            raise RecipeError(f"matryoshka_dims: {dims[0]}, and the embeddings of the model have {width} numbers")

    def export_files(self) -> dict[str, str]:
        """Returns the files by which sentence-transformers loads the model."""
        config: Any = self.config
        return sentence_transformers_files(
            width=_width(causal_model(self.model)),
            max_length=config.data.max_length or context_length(self),
            pooling=config.pooling,
            normalize=config.normalize,
            anchor_prompt=config.data.anchor_prompt,
            candidate_prompt=config.data.candidate_prompt,
        )

    def embed_texts(self, texts: Mapping[str, Tensor]) -> Tensor:
        """Returns one embedding of each text, float32 ``[texts, width]``, not normalized.

        ``texts`` has ``input_ids`` and ``attention_mask``, int64 ``[texts, T]``, padded on the right.
        """
        mask = texts["attention_mask"]
        hidden: Tensor = self.model(**texts, use_cache=False).last_hidden_state.float()
        if self.config.pooling == "mean":
            return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        place = mask.sum(1) - 1 if self.config.pooling == "last_token" else torch.zeros_like(mask[:, 0])
        return hidden[torch.arange(len(hidden), device=hidden.device), place]

    def similarities(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Returns the cosines of embeddings ``[queries, width]`` and ``[candidates, width]``, or their dot products."""
        if self.config.normalize:
            queries, candidates = F.normalize(queries, dim=1), F.normalize(candidates, dim=1)
        return queries @ candidates.T


def _width(model: nn.Module) -> int:
    """Returns the width of the hidden states of a model of transformers."""
    config: Any = model.config
    return int(config.get_text_config().hidden_size)
