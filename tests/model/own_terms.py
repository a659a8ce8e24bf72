"""Every causal model of transformers that adds to its own loss, made tiny: a config for each."""

from typing import Any

from tests.model import test_token_losses

SHAPE: dict[str, Any] = test_token_losses.SHAPE | {
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.5,
    "aux_loss_coef": 0.5,
    "z_loss_coefficient": 0.5,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
MORE: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "vocab_size": 97,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "hidden_size": 32, "moe_top_k": 2, "moe_loss_weight": 0.5},
        "output_router_logits": True,
    },
    "deepseek_v4": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention"] * 4,
        "mlp_layer_types": ["moe"] * 4,
    },
    "doge": {"is_moe": True, "num_experts": 16},
    "flint": {"num_hidden_layers": 4},
    "granitemoehybrid": MAMBA,
}
KINDS = [
    "bamba",
    "dbrx",
    "deepseek_v4",
    "doge",
    "ernie4_5_moe",
    "flex_olmo",
    "flint",
    "gpt_oss",
    "granitemoe",
    "granitemoe_swa",
    "granitemoehybrid",
    "granitemoeshared",
    "jamba",
    "jetmoe",
    "laguna",
    "mellum",
    "minimax",
    "minimax_m2",
    "minimax_m3_vl_text",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_5_moe_text",
    "qwen3_moe",
    "qwen3_next",
    "qwen4_exp_text",
]
"""By model type; a model type with a text model inside stands for both."""


def config_of(kind: str, **overrides: Any) -> Any:
    from transformers import AutoConfig

    if kind == "dbrx":
        return AutoConfig.for_model(kind, **{**MORE[kind], **overrides})
    known = AutoConfig.for_model(kind)
    shape = {name: value for name, value in SHAPE.items() if hasattr(known, name)}
    return AutoConfig.for_model(kind, **{**shape, **MORE.get(kind, {}), **overrides})


def build(kind: str, **overrides: Any) -> Any:
    """The model in evaluation mode, its experts anything but balanced."""
    import torch
    from transformers import AutoModelForCausalLM

    from arctic_training.model import attention

    attention.register()
    config = config_of(kind, **overrides)
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    fits = attention.supports_document_attention(model_class, config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME if fits else None).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and ("gate.weight" in name or "router" in name):
                weight.mul_(30)
    attention.add_packing_hooks(model)
    return model
