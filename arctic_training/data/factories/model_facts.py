"""Config, context length and encoder of the model of a run, which is not built yet when data are prepared."""

from typing import TYPE_CHECKING

from arctic_training.component import TrainerView
from arctic_training.registry import lookup

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def model_config(trainer: TrainerView) -> "PreTrainedConfig | None":
    """Returns the config of the model, which is not built yet; None where its factory makes none."""
    factory = lookup("model_factory", trainer.config.model.type)(trainer, trainer.config.model)  # type: ignore[call-arg]
    return factory.create_config() if hasattr(factory, "create_config") else None


def context_length(trainer: TrainerView) -> int | None:
    """Returns the context length of the model, by its config or its tokenizer; None when neither gives it."""
    config = model_config(trainer)
    text_config = getattr(config, "text_config", None) or config
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
        if isinstance(length := getattr(text_config, name, None), int) and length > 0:
            return length
    length = getattr(trainer.tokenizer, "model_max_length", None)
    return int(length) if length is not None and length < 10**9 else None


def has_encoder(trainer: TrainerView) -> bool:
    """Returns whether the model reads a prompt with an encoder, and writes what follows with a decoder."""
    if getattr(trainer.config.model, "task", None) == "causal_lm":
        return False  # of an encoder-decoder the decoder alone
    return bool(getattr(model_config(trainer), "is_encoder_decoder", False))
