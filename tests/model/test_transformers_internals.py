"""A contract for each thing that this package reads of transformers without a documented interface, by name."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import masking_utils, modeling_utils
from transformers.models.auto import auto_factory, configuration_auto

from arctic_training.model import transformers_internals as internals


class Attention(nn.Module):
    """A layer that does not forward its keyword arguments."""

    def forward(self, hidden: Any, **kwargs: Any) -> Any:
        return self.self_attn(hidden, past_key_values=None)


def on_meta(kind: str, **fields: Any) -> Any:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.AutoConfig.for_model(kind, **shape, vocab_size=8, **fields)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def class_of(kind: str) -> Any:
    return internals.model_class_of(transformers.AutoModelForCausalLM, transformers.AutoConfig.for_model(kind))


def keys_of_loading_info() -> bool:
    names = {"missing_keys", "unexpected_keys", "mismatched_keys"}
    return names <= set(inspect.signature(modeling_utils.LoadStateDictInfo).parameters)


CONTRACT: dict[str, Callable[[], bool]] = {
    "_model_mapping of an auto class": lambda: class_of("llama") is transformers.LlamaForCausalLM,
    "_supports_sdpa of a model class": lambda: transformers.LlamaForCausalLM._supports_sdpa is True,
    "_supports_flash_attn of a model class": lambda: transformers.LlamaForCausalLM._supports_flash_attn is True,
    "_supports_attention_backend of a model class": lambda: (
        transformers.LlamaForCausalLM._supports_attention_backend is True
    ),
    "source text of self_attn(..., past_key_values, **kwargs)": lambda: (
        internals.forwards_kwargs(class_of("llama"))
        and not internals.forwards_kwargs(class_of("nemotron"))
        and not internals.forwards_kwargs(Attention)
    ),
    "source text of sliding_window=self.": lambda: (
        internals.passes_sliding_window(class_of("mistral"))
        and internals.passes_sliding_window(class_of("qwen3"))
        and not internals.passes_sliding_window(class_of("llama"))
    ),
    "loss_function in the code of forward": lambda: internals.calls_loss_function(on_meta("llama")),
    "_loss_function behind loss_function of a model": lambda: (
        "_loss_function" in inspect.getsource(modeling_utils.PreTrainedModel.loss_function.fget)
    ),
    "logits_to_keep of forward": lambda: internals.accepts(on_meta("llama"), "logits_to_keep"),
    "base_model_prefix of a model": lambda: on_meta("llama").base_model_prefix == "model",
    "_attn_implementation of a config": lambda: on_meta("llama").config._attn_implementation in ("sdpa", "eager"),
    "all_tied_weights_keys of a model": lambda: bool(on_meta("llama", tie_word_embeddings=True).all_tied_weights_keys),
    "get_model_conversion_mapping of a model": lambda: (
        internals.converts_weights(on_meta("mixtral")) and not internals.converts_weights(on_meta("llama"))
    ),
    "rename_source_key of core_model_loading": lambda: (
        internals.renamed_weights(on_meta("gpt_neox"), ["embed_out.weight", "a.b"]) == ["lm_head.weight", "a.b"]
    ),
    "find_packed_sequence_indices, called by its name in masking_utils": lambda: (
        "find_packed_sequence_indices(" in inspect.getsource(masking_utils._preprocess_mask_arguments)
    ),
    "ALL_ATTENTION_FUNCTIONS.register": lambda: callable(modeling_utils.ALL_ATTENTION_FUNCTIONS.register),
    "ALL_MASK_ATTENTION_FUNCTIONS.register": lambda: callable(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS.register),
    "keys of output_loading_info": keys_of_loading_info,
    "the error `has model type`": lambda: "has model type" in inspect.getsource(configuration_auto),
    "the error `Unrecognized configuration class`": lambda: (
        "Unrecognized configuration class" in inspect.getsource(auto_factory)
    ),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_transformers_still_has(name: str) -> None:
    assert CONTRACT[name](), f"transformers {transformers.__version__} has changed {name}"
