"""A model without dropout draws nothing at random while it trains, wherever it keeps its rates."""

from typing import Any

import pytest
import torch

from arctic_training.model.dropout import disable_dropout
from tests.model.test_token_losses import KINDS, SHAPE

RATES: dict[str, dict[str, Any]] = {
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "llama": {"attention_dropout": 0.3},
    "falcon": {
        "attention_dropout": 0.3,
        "hidden_dropout": 0.3,
        "new_decoder_architecture": False,
    },  # read by its layers
    "opt": {"dropout": 0.3, "layerdrop": 0.3, "word_embed_proj_dim": 32},
    "mixtral": {"router_jitter_noise": 0.3, "num_local_experts": 4},
}


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("kind", RATES)
def test_training_computes_what_evaluation_does(kind: str, adapter: bool) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {name: value for name, value in SHAPE.items() if name != "head_dim"} | KINDS.get(kind, {})
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape | RATES[kind]))
    if adapter:
        peft = pytest.importorskip("peft")
        lora = peft.LoraConfig(
            task_type="CAUSAL_LM", target_modules=["c_attn", "q_proj", "query_key_value"], lora_dropout=0.3
        )
        model = peft.get_peft_model(model, lora)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
    ids = torch.arange(3, 40)[None]
    expected = model.eval()(ids, use_cache=False).logits
    torch.manual_seed(0)
    assert not torch.equal(model.train()(ids, use_cache=False).logits, expected)
    before = model.config.to_dict()
    disable_dropout(model)
    torch.testing.assert_close(model(ids, use_cache=False).logits, expected)
    assert model.config.to_dict() == before  # what is saved with the model
