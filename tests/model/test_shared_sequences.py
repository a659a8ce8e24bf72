"""Models whose sequences two processes share have the loss and the gradient that they have alone."""

from typing import Any

import pytest
import torch

from arctic_training.distributed import collectives, process_group, sequence_parallel
from arctic_training.errors.types import ModelError
from arctic_training.model import attention
from arctic_training.model.token_losses import token_losses
from arctic_training.model.transforms.activation_checkpointing import (
    ActivationCheckpointing,
    ActivationCheckpointingConfig,
)
from arctic_training.model.transforms.peft import PeftConfig, PeftTransform
from tests import processes
from tests.model.test_huggingface_factory import factory, kept_for_the_gradient
from tests.model.test_token_losses import build, gradients, packed, padded, samples

KINDS = {
    "llama": {},
    "qwen3": {},
    "mistral": {},  # a window that is narrower than a part
    "granite": {},
    "cohere": {},  # a norm on each head
    "gpt2": {},  # learned positions
    "one key head": {"num_key_value_heads": 1},
    "deepseek_v3": {  # values narrower than keys
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 2,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def model_of(kind: str, variant: str) -> Any:
    model = build({"one key head": "llama"}.get(kind, kind), **KINDS[kind])
    assert model.config._attn_implementation == attention.NAME
    if variant == "adapter":
        torch.manual_seed(3)
        settings = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
        model = PeftTransform(PeftConfig(type="peft", config=settings))(model)
    if variant == "activation checkpointing":
        model = ActivationCheckpointing(ActivationCheckpointingConfig(type="activation_checkpointing"))(model).train()
    return model


def measure(kind: str, variant: str, packs: bool) -> tuple[float, torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, that of every target, and the gradient: of the whole, or summed over those who share it."""
    process_group.init_process_group()
    model, size = model_of(kind, variant), process_group.world_size()
    batch = packed(samples()) if packs else padded(samples())
    if size > 1:
        batch = sequence_parallel.shard_batch(batch, size, process_group.rank())
    loss = token_losses(model, batch, reduction="sum")
    actual = gradients(model, loss)
    total = collectives.all_reduce(loss.detach().clone())
    with torch.no_grad():
        each = sequence_parallel.gather_target_values(token_losses(model, batch), batch)
    return float(total), each, {name: collectives.all_reduce(gradient) for name, gradient in actual.items()}


CASES = [(kind, "plain", packs) for kind in KINDS for packs in (True, False)]
CASES += [("llama", variant, packs) for variant in ("adapter", "activation checkpointing") for packs in (True, False)]


@pytest.mark.parametrize(("kind", "variant", "packs"), CASES)
def test_two_processes_that_share_find_what_one_finds(kind: str, variant: str, packs: bool) -> None:
    ((loss, each, expected),) = processes.share(measure, 1, kind, variant, packs)
    scale = max(float(gradient.norm()) for gradient in expected.values())
    for total, losses, actual in processes.share(measure, 2, kind, variant, packs):
        assert total == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(losses, each, rtol=1e-5, atol=1e-5)
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            assert float((actual[name] - gradient).norm()) / scale < 1e-6, name


def transformers_own() -> tuple[float, dict[str, torch.Tensor]]:
    """The loss that the model itself makes of the batch."""
    process_group.init_process_group()
    model, size = build("llama"), process_group.world_size()
    batch: dict[str, Any] = {**packed(samples()), "num_items_in_batch": 10.0}
    if size > 1:
        batch = sequence_parallel.shard_batch(batch, size, process_group.rank())
    loss = model(**batch).loss
    actual = gradients(model, loss)
    total = collectives.all_reduce(loss.detach().clone())
    return float(total), {name: collectives.all_reduce(gradient) for name, gradient in actual.items()}


def test_the_models_own_loss_is_right_too() -> None:
    ((loss, expected),) = processes.share(transformers_own, 1)
    scale = max(float(gradient.norm()) for gradient in expected.values())
    for total, actual in processes.share(transformers_own, 2):
        assert total == pytest.approx(loss, rel=1e-6)
        for name, gradient in expected.items():
            assert float((actual[name] - gradient).norm()) / scale < 1e-6, name


def kept_of_a_long_sequence() -> int:
    """Bytes that the layers keep of a long sequence, beside the weights."""
    process_group.init_process_group()
    model, size = build("llama"), process_group.world_size()
    batch = packed([torch.arange(4096) % 90 + 3])
    if size > 1:
        batch = sequence_parallel.shard_batch(batch, size, process_group.rank())
    return kept_for_the_gradient(model, lambda: token_losses(model, batch, reduction="sum"))


def test_each_of_two_keeps_half_of_the_activations() -> None:
    (alone,) = processes.share(kept_of_a_long_sequence, 1)
    for kept in processes.share(kept_of_a_long_sequence, 2):
        assert 0.48 < kept / alone < 0.55


def shared(tiny_model: Any, size: int, **section: Any) -> Any:
    maker = factory(tiny_model, **section)
    maker.trainer.config.sequence_parallel_size = size
    return maker


@pytest.mark.parametrize(
    ("size", "section", "message"),
    [
        (3, {}, r"3 processes cannot share the 4 heads of LlamaConfig; these can: 1, 2, 4"),
        (2, {"attn_implementation": "eager"}, r"2 processes share attention per document only; give .*: auto"),
        (
            2,
            {"hf_config_kwargs": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}},
            r"the positions of LlamaConfig \(dynamic\) depend on the length",
        ),
        (
            2,
            {"peft_config": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}},
            r"PROMPT_TUNING puts its tokens before a row, and a process has a part of it",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(tiny_model: Any, size: int, section: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"^sequence_parallel_size: {message}"):
        shared(tiny_model, size, **section).check()


def test_a_mask_of_a_part_is_refused() -> None:
    query, mask = torch.zeros(1, 2, 4, 8), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(ModelError, match="a mask of its part"):
        attention.document_attention(
            torch.nn.Identity(), query, query, query, mask, sequence_share=sequence_parallel.SequenceShard(2, (1, 1))
        )


def test_attention_that_is_more_than_causal_is_not_shared(tiny_model: Any, tmp_path: Any) -> None:
    import shutil

    from tests.model.test_huggingface_factory import change

    copy = shutil.copytree(tiny_model, tmp_path / "model")
    change(copy, model_type="gemma2", head_dim=8)
    with pytest.raises(ModelError, match="sequence_parallel_size: the attention of Gemma2Config is more than causal"):
        shared(copy, 2, random_weights=True).check()
