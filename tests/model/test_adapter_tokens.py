"""What an adapter makes of a token depends on earlier ones of its sample alone, and a merged one computes the same."""

from typing import Any

import pytest
import torch

from arctic_training.checkpoint.adapter import base_weights, plain_base, unmergeable
from arctic_training.errors.types import ModelError
from arctic_training.model.checks.recipe_fit import check_packing
from arctic_training.model.token_losses import token_losses
from arctic_training.model.transforms.peft import PeftConfig, PeftTransform
from tests.checkpoint.test_adapters import LORA, METHODS, settings
from tests.model.test_token_losses import build, packed, with_padding

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"use_rslora": True, "alpha_pattern": {"q_proj": 32}, "rank_pattern": {"v_proj": 2}},
    "every bias": {"bias": "all"},
    "repeated layers": {"layer_replication": [[0, 2], [1, 2]]},
    "after a token": {"alora_invocation_tokens": [50, 51]},
    "dora": {"use_dora": True},
    "kasa": {"kasa_config": {}},
    "minor components": {"init_lora_weights": "mica"},
    "compressed gradients": {"velora_config": {}},
    "drawn in training": {"monteclora_config": {}},
}
"""Options of LoRA."""
ADAPTERS = {method: settings(method, {}) for method in METHODS}
ADAPTERS |= {f"LORA, {name}": LORA | option for name, option in OPTIONS.items()}


def adapted(transform: PeftTransform) -> Any:
    """A model whose adapter has learned something."""
    model = transform(build("llama")).eval()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model


def rows() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 97, (length,), generator=draw) for length in (7, 12, 9)]
    for row in ids:
        row[2:4] = torch.tensor(OPTIONS["after a token"]["alora_invocation_tokens"])
    return ids


@torch.no_grad()
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_token_depends_on_earlier_ones_of_its_sample(name: str) -> None:
    transform = PeftTransform(PeftConfig(type="peft", config=ADAPTERS[name]))
    model, ids = adapted(transform), rows()
    alone = [model(input_ids=row[None], attention_mask=torch.ones(1, len(row))).logits[0, -len(row) :] for row in ids]
    later = ids[1].clone()
    later[-1] = 4
    both = torch.stack([ids[1], later])
    together = model(input_ids=both, attention_mask=torch.ones(both.shape)).logits[:, -len(later) :]
    for one in together:
        torch.testing.assert_close(one[:-1], alone[1][:-1], rtol=1e-4, atol=1e-5)
    try:
        check_packing(model.get_base_model().config, transform)
    except ModelError:
        assert METHODS.get(name, {}).get("num_virtual_tokens") or name == "LORA, after a token"
        return
    losses = [
        torch.nn.functional.cross_entropy(logits[:-1], row[1:], reduction="none")
        for logits, row in zip(alone, ids, strict=True)
    ]
    torch.testing.assert_close(token_losses(model, with_padding(packed(ids))), torch.cat(losses), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("option", OPTIONS)
def test_a_merged_adapter_computes_the_same_or_is_refused(option: str) -> None:
    model = adapted(PeftTransform(PeftConfig(type="peft", config=ADAPTERS[f"LORA, {option}"])))
    if unmergeable(model):
        assert option in ("after a token", "dora", "kasa")
        return
    merged = plain_base(model).to_empty(device="cpu")
    merged = type(merged)(merged.config).eval()
    merged.load_state_dict({name: source.gather() for name, source in base_weights(model, merged=True).items()})
    ids = torch.stack([row[:7] for row in rows()])
    torch.testing.assert_close(merged(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
