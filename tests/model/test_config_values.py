"""Values of a recipe as other libraries' config classes declare them."""

from typing import Any

import peft
from transformers import LlamaConfig

from arctic_training.model.config_values import coerce_values


def test_the_fields_of_an_adapter_are_numbers_as_people_write_them() -> None:
    written: dict[str, Any] = {
        "r": "2^3",
        "lora_alpha": "1e1",
        "lora_dropout": "10%",
        "rank_pattern": {"q_proj": "2^2"},
        "alpha_pattern": {"q_proj": "1e1"},
        "layers_to_transform": "1",
        "init_lora_weights": "pissa_niter_4",
        "bias": "none",
        "target_modules": ["q_proj", "10"],
        "use_rslora": True,
    }
    read = peft.LoraConfig(**coerce_values(peft.LoraConfig, written))
    assert (read.r, read.lora_alpha, read.lora_dropout, read.layers_to_transform) == (8, 10, 0.1, 1)
    assert (read.rank_pattern, read.alpha_pattern) == ({"q_proj": 4}, {"q_proj": 10})
    assert (read.init_lora_weights, read.bias, read.target_modules) == ("pissa_niter_4", "none", {"q_proj", "10"})
    assert read.use_rslora is True


def test_texts_of_a_config_stay_texts() -> None:
    read = coerce_values(LlamaConfig, {"id2label": {0: "1", 1: "2k"}, "rms_norm_eps": "1e-3", "hidden_act": "silu"})
    assert read == {"id2label": {0: "1", 1: "2k"}, "rms_norm_eps": 0.001, "hidden_act": "silu"}
