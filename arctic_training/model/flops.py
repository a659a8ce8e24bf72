"""The floating-point operations of a language model, counted from its layers. A multiply-add is two."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from arctic_training.engine.internals.parameters import full_shape
from arctic_training.generation.prompts import is_encoder_decoder
from arctic_training.loss.tokens import TokenCounts

_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_OTHER_INPUTS = ("vision_config", "audio_config")


@dataclass(frozen=True)
class ModelFlops:
    """The multiply-adds of a forward pass, of which training takes three times as many: once for the outputs, once for
    the gradients of inputs, once for those of weights (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). What is
    computed again for activation checkpointing does not count."""

    trained: float
    """Of each token, with weights that are trained; without the output layer."""
    frozen: float
    """The same with weights that are not."""
    head: float
    """Of each label, in the output layer."""
    head_is_trained: bool
    attention: Mapping[int | None, float]
    """Of each pair of tokens, in the layers with a sliding window of that many tokens; None: without a window."""
    is_causal: bool

    def training(self, counts: TokenCounts) -> float:
        """Returns the operations of a step on tokens, without those of the gradients of frozen weights."""
        body = counts.tokens * (6 * self.trained + 4 * self.frozen)
        return body + counts.labels * self.head * (6 if self.head_is_trained else 4) + 3 * self._of_attention(counts)

    def inference(self, counts: TokenCounts) -> float:
        """Returns the operations of a forward pass on tokens."""
        body = 2 * counts.tokens * (self.trained + self.frozen) + 2 * counts.labels * self.head
        return body + self._of_attention(counts)

    def _of_attention(self, counts: TokenCounts) -> float:
        pairs = (counts.squares + counts.tokens) / 2 if self.is_causal else counts.squares
        per_window = (
            size * (pairs if window is None else min(pairs, counts.tokens * window))
            for window, size in self.attention.items()
        )
        return 2 * sum(per_window)


def count_flops(model: nn.Module) -> ModelFlops | None:
    """Returns the multiply-adds of a model of transformers, decoder or encoder, wherever its weights are.

    None for a model whose operations its linear layers and its attention do not tell: an encoder-decoder, convolutions
    or state-space layers, inputs other than text, experts of unknown number.
    """
    config: object = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config") or is_encoder_decoder(model):
        return None
    if any(getattr(config, name, None) is not None for name in _OTHER_INPUTS):
        return None
    text = config.get_text_config()
    attention = _attention(text)
    if attention is None or any(isinstance(part, nn.modules.conv._ConvNd) for part in model.modules()):
        return None
    output = getattr(model, "get_output_embeddings", lambda: None)()
    of_head = set(output.modules()) if isinstance(output, nn.Module) else set()
    sizes = Counter[str]()
    for part in model.modules():
        size, is_trained = _linear_layer(part)
        sizes["head" if part in of_head else "trained" if is_trained else "frozen"] += size
    routed = _experts(model, text)
    if routed is None:
        return None
    trained, frozen = routed
    return ModelFlops(
        trained=sizes["trained"] + trained,
        frozen=sizes["frozen"] + frozen,
        head=sizes["head"],
        head_is_trained=isinstance(output, nn.Module) and any(one.requires_grad for one in output.parameters()),
        attention=attention,
        is_causal=any(getattr(part, "is_causal", False) is True for part in model.modules()),
    )


def _linear_layer(part: nn.Module) -> tuple[int, bool]:
    """Returns the multiply-adds of a token in ``part`` itself, and whether its weight is trained."""
    weight = part._parameters.get("weight")
    if weight is None or isinstance(part, nn.Embedding):
        return 0, False
    if isinstance(part, nn.Linear):  # its weight may be quantized
        return part.in_features * part.out_features, weight.requires_grad
    shape = full_shape(weight)  # of routers, of the linear layers of GPT-2, and of those that processes divide
    return (int(shape[0] * shape[1]) if len(shape) == 2 else 0), weight.requires_grad


def _attention(text: object) -> Mapping[int | None, float] | None:
    """Returns the multiply-adds of a pair of tokens by sliding window; None for a config that does not give them."""
    heads, width = (getattr(text, name, None) for name in ("num_attention_heads", "hidden_size"))
    layers = getattr(text, "num_hidden_layers", None)
    if not all(isinstance(one, int) and one > 0 for one in (heads, width, layers)):
        return None
    assert isinstance(heads, int) and isinstance(width, int) and isinstance(layers, int)
    head_dim = getattr(text, "head_dim", None) or width // heads
    scores, values = (getattr(text, name, None) or head_dim for name in ("qk_head_dim", "v_head_dim"))
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        has_window = isinstance(window, int) and getattr(text, "use_sliding_window", True)
        kinds = ["sliding_attention" if has_window else "full_attention"] * layers
    if not {*kinds} <= {"sliding_attention", "full_attention"}:
        return None
    counts = Counter(window if kind == "sliding_attention" else None for kind in kinds)
    return {one: count * heads * (scores + values) for one, count in counts.items()}


def _experts(model: nn.Module, text: object) -> tuple[float, float] | None:
    """Returns the multiply-adds of a token in its experts, trained and frozen; None where their number is unknown."""
    number = next((one for name in _NUM_EXPERTS if isinstance(one := getattr(text, name, None), int)), 0)
    chosen = next((one for name in _TOP_K if isinstance(one := getattr(text, name, None), int)), 0)
    shapes = [
        (full_shape(weight), weight.requires_grad)
        for part in model.modules()
        for weight in part.parameters(recurse=False)
        if len(full_shape(weight)) == 3
    ]
    if not shapes:
        return None if number > 1 and chosen else (0.0, 0.0)
    if not number or not chosen or any(shape[0] != number for shape, _ in shapes):
        return None
    sizes = [(shape[1] * shape[2] * chosen, is_trained) for shape, is_trained in shapes]
    return float(sum(size for size, flag in sizes if flag)), float(sum(size for size, flag in sizes if not flag))
