"""Operations of models: those that torch counts while they run."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from arctic_training.loss.tokens import TokenCounts
from arctic_training.model.flops import ModelFlops, count_flops

N = 24
EAGER = {"qwen3_moe": {"experts_implementation": "eager"}}
"""By which torch counts the products of experts."""
SIZES = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 3}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2},
    "qwen3": {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    "qwen3_moe": {
        **SIZES,
        "moe_intermediate_size": 16,
        "intermediate_size": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
    "gpt2": {"vocab_size": 320, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": None, "eos_token_id": 3},
}


def build(kind: str, **more: Any) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**KINDS[kind], **more})
    model: torch.nn.Module = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", **EAGER.get(kind, {})
    )
    return model


def counted(model: torch.nn.Module) -> dict[str, int]:
    """Returns the operations of the products of a training step on one row of N tokens: of weights, and of others."""
    ids = torch.arange(N)[None] + 4
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    counts: dict[str, int] = {"weights": 0, "others": 0}
    for operation, count in counter.get_flop_counts()["Global"].items():
        counts["others" if "bmm" in str(operation) else "weights"] += count
    return counts


def flops_of(model: torch.nn.Module) -> ModelFlops:
    flops = count_flops(model)
    assert flops is not None
    return flops


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_that_torch_counts(kind: str) -> None:
    model = build(kind)
    flops, torchs = flops_of(model), counted(model)
    assert flops.training(TokenCounts(N, -N, N)) == torchs["weights"]
    # torch counts all pairs of tokens, and a little for positions; a causal model needs those before each
    attention = flops.training(TokenCounts(0, N * N + N, 0)) - flops.training(TokenCounts(0, 0, 0))
    assert 2 * attention * N / (N + 1) == pytest.approx(torchs["others"], rel=0.02)
    assert flops.training(TokenCounts(N, N * N, N)) == 3 * flops.inference(TokenCounts(N, N * N, N))


def test_frozen_weights_take_no_gradient() -> None:
    from peft import LoraConfig, get_peft_model

    model = build("llama")
    lora: Any = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2))  # type: ignore[arg-type]
    flops = flops_of(model)
    assert flops.training(TokenCounts(N, -N, N)) == pytest.approx(counted(lora)["weights"], rel=0.05)
    assert flops.training(TokenCounts(N, -N, N)) < 0.75 * flops_of(build("llama")).training(TokenCounts(N, -N, N))


def test_a_window_bounds_the_pairs() -> None:
    layers = {"layer_types": ["full_attention"] + ["sliding_attention"] * 2, "use_sliding_window": True}
    windowed = flops_of(build("qwen3", sliding_window=8, **layers))
    full = flops_of(build("qwen3"))
    assert windowed.attention.keys() == {None, 8}
    for length in (6, 600):
        counts = TokenCounts(length, length * length, 0)
        share = (windowed.inference(counts) - full.inference(counts)) / counts.squares
        assert (share == 0) if length == 6 else (share < 0)


@pytest.mark.parametrize("kind", ["t5", "mamba", "llava", "linear"])
def test_what_is_unknown_has_none(kind: str) -> None:
    from transformers import AutoConfig, AutoModel

    if kind == "linear":
        assert count_flops(torch.nn.Linear(2, 2)) is None
        return
    with torch.device("meta"):
        config: Any = AutoConfig.for_model(kind)
        parts = [config] if kind != "llava" else [config.text_config, config.vision_config]
        for part in parts:
            for name in ("num_layers", "num_hidden_layers"):
                if hasattr(part, name):
                    setattr(part, name, 1)
        assert count_flops(AutoModel.from_config(config)) is None
