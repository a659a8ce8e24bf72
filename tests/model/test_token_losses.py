"""Packed equals unpacked, chunked equals whole, for models of several kinds."""

from typing import Any

import pytest
import torch

from arctic_training.errors.types import ModelError
from arctic_training.model import attention
from arctic_training.model.token_losses import token_losses, token_predictions

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LENGTHS = [7, 1, 12, 3, 9]
KINDS = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma2": {},  # soft-capped scores and logits: neither our attention nor our head fits
    "granite": {"logits_scaling": 3.0},  # logits are divided after the output layer
    "cohere": {"logit_scale": 0.2},
    "nemotron": {},  # layers do not tell their attention where documents end
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},  # calls the decoder in its backbone, past the backbone's hooks
}


def build(kind: str, **fields: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    attention.register()
    shape = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2} if kind == "gpt2" else SHAPE
    config = AutoConfig.for_model(kind, **{**shape, **KINDS.get(kind, {}), **fields})
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    fits = attention.supports_document_attention(model_class, config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME if fits else "eager").eval()
    attention.add_packing_hooks(model)
    return model


def samples() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(3, 97, (n,), generator=draw) for n in LENGTHS]


def packed(ids: list[torch.Tensor]) -> dict[str, Any]:
    ends = torch.tensor([0, *torch.tensor([len(one) for one in ids]).cumsum(0)], dtype=torch.int32)
    labels = torch.cat([torch.cat([torch.tensor([-100]), one[1:]]) for one in ids])
    longest = max(len(one) for one in ids)
    return {
        "input_ids": torch.cat(ids)[None],
        "labels": labels[None],
        "position_ids": torch.cat([torch.arange(len(one)) for one in ids])[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
        "num_items_in_batch": 1.0,
    }


def with_padding(row: dict[str, Any], count: int = 5) -> dict[str, Any]:
    """A packed row with padding, which is one more document."""
    ends = torch.cat([row["cu_seq_lens_q"], row["cu_seq_lens_q"][-1:] + count])
    fill = {"input_ids": torch.zeros(count), "labels": torch.full((count,), -100), "position_ids": torch.arange(count)}
    longer = {name: torch.cat([row[name], more.long()[None]], dim=1) for name, more in fill.items()}
    return {**row, **longer, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends}


def padded(ids: list[torch.Tensor]) -> dict[str, Any]:
    batch: dict[str, Any] = {"input_ids": [], "labels": [], "attention_mask": [], "position_ids": []}
    longest = max(len(one) for one in ids)
    for one in ids:
        rest = longest - len(one)
        batch["input_ids"].append(torch.cat([one, torch.zeros(rest, dtype=torch.long)]))
        batch["labels"].append(torch.cat([torch.tensor([-100]), one[1:], torch.full((rest,), -100)]))
        batch["attention_mask"].append((torch.arange(longest) < len(one)).long())
        batch["position_ids"].append(torch.arange(longest))
    return {name: torch.stack(rows) for name, rows in batch.items()}


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_packed_padded_and_one_by_one_are_the_same(kind: str) -> None:
    model, ids = build(kind), samples()
    alone = [token_losses(model, {"input_ids": one[None], "labels": packed([one])["labels"]}) for one in ids]
    # what transformers says of each sample
    for one, losses in zip(ids, alone, strict=True):
        if len(one) > 1:
            unpacked = model(input_ids=one[None], labels=one[None]).loss
            torch.testing.assert_close(losses.mean(), unpacked, rtol=1e-5, atol=1e-5)
    expected = gradients(model, torch.cat(alone).sum())
    for batch in (packed(ids), with_padding(packed(ids)), padded(ids)):
        for reduction in ("none", "sum"):
            losses = token_losses(model, batch, reduction=reduction)
            torch.testing.assert_close(
                losses, torch.cat(alone) if reduction == "none" else torch.cat(alone).sum(), rtol=1e-5, atol=1e-4
            )
            got = gradients(model, losses.sum())
            for name, gradient in expected.items():
                torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-4, msg=f"{kind} {name}")


def test_attention_that_is_not_told_where_documents_end_never_runs_on_packed_rows() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("nemotron", **SHAPE)
    assert not attention.supports_document_attention(AutoModelForCausalLM._model_mapping[type(config)], config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
    attention.add_packing_hooks(model)
    with pytest.raises(ModelError, match="NemotronAttention is not passed cu_seq_lens_q; give sdpa"):
        token_losses(model, packed(samples()))


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_users_who_call_the_model_get_the_same_loss(kind: str) -> None:
    model, batch = build(kind), packed(samples())
    count = int((batch["labels"] != -100).sum())
    theirs = model(**{**batch, "num_items_in_batch": float(count)}).loss
    torch.testing.assert_close(theirs, token_losses(model, batch, reduction="sum") / count, rtol=1e-5, atol=1e-5)


def test_packed_rows_make_no_mask_and_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    from transformers import masking_utils

    real = masking_utils.sdpa_mask
    monkeypatch.setattr(masking_utils, "sdpa_mask", lambda *a, **k: masks.append(1) or real(*a, **k))
    model, ids = build("llama"), samples()
    token_losses(model, packed(ids)).sum().backward()
    assert not masks
    left = torch.cat([torch.zeros(3, dtype=torch.long), ids[0]])[None]
    model(input_ids=left, attention_mask=(torch.arange(10) >= 3).long()[None])
    assert masks


def test_generation_is_the_same_alone_and_padded_on_the_left() -> None:
    model, (ids, *_) = build("llama"), samples()
    alone = model.generate(ids[None], max_new_tokens=6, do_sample=False)
    left = torch.cat([torch.zeros(3, dtype=torch.long), ids])[None]
    mask = (torch.arange(len(ids) + 3) >= 3).long()[None]
    beside = model.generate(left, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(alone[0, len(ids) :], beside[0, len(ids) + 3 :])


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_batch_without_targets_has_a_loss_of_zero_and_gradients_of_zero(kind: str) -> None:
    model, batch = build(kind), packed(samples())
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = token_losses(model, batch, reduction="sum")
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in gradients(model, loss).values())


def test_activation_checkpointing_changes_nothing() -> None:
    model, batch = build("llama"), packed(samples())
    expected = gradients(model, token_losses(model, batch).sum())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    got = gradients(model, token_losses(model, batch).sum())
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6)


def test_tied_embeddings_get_both_gradients() -> None:
    model, batch = build("llama", tie_word_embeddings=True), packed(samples())
    ours = gradients(model, token_losses(model, batch, reduction="sum"))
    theirs = gradients(model, model(**{**batch, "num_items_in_batch": 1.0}).loss)
    torch.testing.assert_close(
        ours["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"], rtol=1e-4, atol=1e-4
    )


def test_label_smoothing_is_torchs_also_where_the_logits_are_changed() -> None:
    for kind in ("llama", "gemma2"):
        model, (ids, *_) = build(kind), samples()
        batch = {"input_ids": ids[None], "labels": packed([ids])["labels"]}
        logits = model(input_ids=ids[None]).logits[0, :-1].float()
        expected = torch.nn.functional.cross_entropy(logits, ids[1:], label_smoothing=0.2, reduction="sum")
        ours = token_losses(model, batch, label_smoothing=0.2, reduction="sum")
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_the_head_is_as_it_was_afterwards() -> None:
    model, batch = build("llama"), packed(samples())
    token_losses(model, batch)
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_a_model_without_an_output_layer_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear is no language model"):
        token_losses(torch.nn.Linear(1, 1), {"labels": torch.zeros(1, 2, dtype=torch.long)})


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_the_most_likely_tokens(kind: str) -> None:
    model, batch = build(kind), padded(samples())
    labels = batch["labels"]
    labels[0, 2:] = labels[3] = -100  # a row without targets, and one with few
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = logits[:, :-1].argmax(-1)[labels[:, 1:] != -100]
    predictions = token_predictions(model, batch)
    assert predictions.dtype == torch.int64 and torch.equal(predictions, expected)
    assert len(token_predictions(model, {**batch, "labels": torch.full_like(labels, -100)})) == 0
