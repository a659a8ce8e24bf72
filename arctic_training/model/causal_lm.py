"""Access to the transformers model inside an engine, an adapter or a compiled module."""

from typing import Any

from torch import Tensor, nn

from arctic_training.errors.types import ModelError


def causal_model(engine: Any) -> Any:
    """Returns the language model of transformers inside ``engine``, an engine or a module.

    Raises `ModelError` for another model.
    """
    model: Any = engine if isinstance(engine, nn.Module) else engine.module
    while not hasattr(model, "get_output_embeddings") or hasattr(model, "peft_config"):
        inner = model.get_base_model() if hasattr(model, "get_base_model") else _wrapped(model)
        if inner is None or inner is model:
            break
        model = inner
    if not hasattr(model, "get_output_embeddings") or not hasattr(model, "config"):
        raise ModelError(f"{type(model).__name__} is no language model of transformers: write a loss of its own")
    return model


def _wrapped(model: nn.Module) -> Any:
    return getattr(model, "_orig_mod", None) or getattr(model, "module", None)


def decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """Returns what the decoder of an encoder-decoder reads to predict ``labels``, int64 ``[rows, T]`` both: its start
    token, and the labels but the last. Raises `ModelError` for a model of transformers that does not define it."""
    if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
        raise ModelError(
            f"{type(model).__name__} has no prepare_decoder_input_ids_from_labels, by which transformers shifts labels "
            "for a decoder; give the batch decoder_input_ids"
        )
    inputs: Tensor = model.prepare_decoder_input_ids_from_labels(labels=labels)
    return inputs


def embedding_rows(model: Any) -> int | None:
    """Returns the number of rows of the input embedding, or None for a model without one."""
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if not isinstance(embedding, nn.Embedding):
        return None
    return int(getattr(embedding.weight, "ds_shape", embedding.weight.shape)[0])
