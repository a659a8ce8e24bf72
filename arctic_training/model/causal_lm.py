"""Access to the transformers model inside an engine, an adapter or a compiled module."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from arctic_training.distributed.sequence_parallel import KEY
from arctic_training.engine.engine import Engine
from arctic_training.engine.internals.parameters import full_shape
from arctic_training.errors.types import ModelError
from arctic_training.model.transformers_internals import forward_parameters

_PACKED_ROWS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", KEY)
"""Keys of a batch that attention reads, of which the forward of a model knows nothing."""
_LOSS_KEYS = ("labels", "num_items_in_batch")
"""Parameters of a model's forward for a loss of its own."""

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def causal_model(engine: Engine | nn.Module) -> "PreTrainedModel":
    """Returns the language model of transformers inside ``engine``, an engine or a module.

    Raises `ModelError` for another model.
    """
    model: PreTrainedModel = engine if isinstance(engine, nn.Module) else engine.module
    while not hasattr(model, "get_output_embeddings") or hasattr(model, "peft_config"):
        inner = model.get_base_model() if hasattr(model, "get_base_model") else _wrapped(model)
        if inner is None or inner is model:
            break
        model = inner
    if not hasattr(model, "get_output_embeddings") or not hasattr(model, "config"):
        raise ModelError(f"{type(model).__name__} is no language model of transformers: write a loss of its own")
    return model


def text_config(model: object) -> object:
    """Returns the config of a model of transformers for its text part; None for another model, or None."""
    read = getattr(getattr(model, "config", None), "get_text_config", None)
    return None if read is None else read()


def max_positions(model: object) -> int | None:
    """Returns the number of positions in the config of a model of transformers; None where it says none."""
    text = text_config(model)
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return positions if isinstance(positions, int) else None


def model_inputs(engine: Engine | nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of ``batch`` that the forward of the model takes, without those of its own loss.

    ``engine`` is an engine or a module. Raises `ModelError` for a model that is not one of transformers.
    """
    names = {*forward_parameters(causal_model(engine)), *_PACKED_ROWS}.difference(_LOSS_KEYS)
    return {name: value for name, value in batch.items() if name in names}


def _wrapped(model: nn.Module) -> nn.Module | None:
    return getattr(model, "_orig_mod", None) or getattr(model, "module", None)


def decoder_inputs(model: "PreTrainedModel", labels: Tensor) -> Tensor:
    """Returns what the decoder of an encoder-decoder reads to predict ``labels``, int64 ``[rows, T]`` both: its start
    token, and the labels but the last. Raises `ModelError` for a model of transformers that does not define it."""
    if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
        raise ModelError(
            f"{type(model).__name__} has no prepare_decoder_input_ids_from_labels, by which transformers shifts labels "
            "for a decoder; give the batch decoder_input_ids"
        )
    inputs: Tensor = model.prepare_decoder_input_ids_from_labels(labels=labels)
    return inputs


def has_experts(model: nn.Module) -> bool:
    """Returns whether tokens of a model of transformers are routed to experts: rounding then depends on all tokens."""
    to_dict: Callable[[], Mapping[str, object]] = getattr(text_config(model), "to_dict", dict)
    return any("expert" in key for key in to_dict())


def embedding_rows(model: nn.Module) -> int | None:
    """Returns the number of rows of the input embedding, or None for a model without one."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    if not isinstance(embedding, nn.Embedding):
        return None
    return full_shape(embedding.weight)[0]
