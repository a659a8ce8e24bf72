"""Token classifiers of encoder-decoders, of which transformers has none: labels for each token that a decoder reads."""

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import TokenClassifierOutput
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

SUFFIX = "ForSeq2SeqTokenClassification"
"""The end of the names of these classes, by which a config names the class of its model."""


@functools.cache
def auto_class() -> type["_BaseAutoModelClass"]:
    """Returns the auto class that makes and loads these models, as those of transformers do theirs."""
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    return type(f"AutoModel{SUFFIX}", (_BaseAutoModelClass,), {"__module__": __name__, "_model_mapping": _Classes()})


@functools.cache
def classifier_class(config_type: type["PreTrainedConfig"]) -> type["PreTrainedModel"]:
    """Returns the token classifier of encoder-decoders with a config of ``config_type``.

    It has a linear head, ``score``, on the last hidden states of the decoder: ``logits`` are ``[rows, T, labels]``.
    """
    from transformers import MODEL_MAPPING, PreTrainedModel
    from transformers.modeling_layers import GenericForTokenClassification

    backbone: type[PreTrainedModel] = MODEL_MAPPING[config_type]
    base = next(one for one in backbone.__mro__[1:] if issubclass(one, PreTrainedModel))
    name = backbone.__name__.removesuffix("Model") + SUFFIX
    return type(name, (GenericForTokenClassification, base), {"__module__": __name__, "forward": _forward})


def _forward(
    self: "PreTrainedModel",
    input_ids: "Tensor | None" = None,
    attention_mask: "Tensor | None" = None,
    decoder_input_ids: "Tensor | None" = None,
    **kwargs: object,
) -> "TokenClassifierOutput":
    """Returns logits of what the decoder reads, ``decoder_input_ids``, int64 ``[rows, T]``; the encoder reads
    ``input_ids``, int64 ``[rows, S]``."""
    from transformers.modeling_outputs import TokenClassifierOutput

    texts = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids, **kwargs}
    # those that an adapter fills in with None are no parameters of every backbone
    backbone = getattr(self, self.base_model_prefix)
    output = backbone(**{name: value for name, value in texts.items() if value is not None})
    dropout, score = self.get_submodule("dropout"), self.get_submodule("score")
    return TokenClassifierOutput(logits=score(dropout(output.last_hidden_state)))


class _Classes(Mapping[type["PreTrainedConfig"], type["PreTrainedModel"]]):
    """The token classifier of each config of an encoder-decoder, made when it is asked for."""

    def __getitem__(self, config_type: type["PreTrainedConfig"]) -> type["PreTrainedModel"]:
        if config_type not in self:
            raise KeyError(config_type)
        return classifier_class(config_type)  # type: ignore[arg-type]  # mypy takes Any for not hashable

    def __contains__(self, config_type: object) -> bool:
        from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_MAPPING

        return config_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING and config_type in MODEL_MAPPING

    def __iter__(self) -> Iterator[type["PreTrainedConfig"]]:
        from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

        return (one for one in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if one in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
