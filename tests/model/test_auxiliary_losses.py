"""What a model's own forward adds to its loss is in the loss that is trained on, and padding does not count in it."""

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arctic_training.data.batching.collate import pack, pad
from arctic_training.engine.engine import FrozenEngine
from arctic_training.errors.types import ModelError
from arctic_training.model import attention
from arctic_training.model.checks.model_loss import check_model_loss
from arctic_training.model.checks.packing_isolation import check_packing_isolation
from arctic_training.model.token_losses import token_losses
from tests.model.own_terms import KINDS, build, config_of
from tests.model.test_token_losses import gradients

CPU = torch.device("cpu")
SIZES = [7, 12, 9]


def batch_of(place: Any, sizes: list[int] = SIZES, **options: Any) -> dict[str, Any]:
    draw = np.random.default_rng(1)
    samples = [{"input_ids": (ids := draw.integers(3, 97, n).astype(np.int32)), "labels": ids} for n in sizes]
    batch: dict[str, Any] = place(samples, pad_token=0, **options)
    return batch


def own_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """What transformers computes for rows with their mask."""
    inputs = {name: batch[name] for name in ("input_ids", "labels", "attention_mask")}
    loss: torch.Tensor = model(**inputs, use_cache=False).loss
    return loss


def is_packed_right(model: Any) -> bool:
    """Whether a run with packed rows of this model is not refused."""
    if not attention.supports_packing(model.config):
        return False
    if model.config._attn_implementation == attention.NAME:
        return True
    try:
        check_packing_isolation(FrozenEngine(model), CPU)
    except ModelError:
        return False
    finally:
        model.requires_grad_(True)
    return True


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bamba"])
def test_the_loss_is_the_one_that_transformers_computes(kind: str) -> None:
    model, rows = build(kind), batch_of(pad, multiple=16)
    count = sum(SIZES) - len(SIZES)
    expected = own_loss(model, rows)
    assert expected > token_losses(model, rows, terms=[]).mean() + 0.1
    slopes = gradients(model, expected)
    batches = [rows, *([batch_of(pack, multiple=64)] if is_packed_right(model) else [])]
    for batch in batches:
        actual = token_losses(model, batch, reduction="sum") / count
        torch.testing.assert_close(actual, expected.detach(), rtol=1e-5, atol=1e-5)
        for name, slope in gradients(model, actual).items():
            torch.testing.assert_close(
                slope, slopes[name], rtol=1e-3, atol=2e-5, msg=lambda text, n=name: f"{n} {text}"
            )


def test_a_term_of_all_logits_is_a_mean_over_tokens_that_are_no_padding() -> None:
    model, weight = build("bamba"), 0.5
    for sizes in ([12], SIZES):
        rows = batch_of(pad, sizes, multiple=16 if len(sizes) > 1 else 1)
        table = model(**{name: rows[name] for name in ("input_ids", "attention_mask")}, use_cache=False).logits
        real = rows["attention_mask"].bool()
        term = weight * table[real].logsumexp(-1).square().mean()
        expected = token_losses(model, rows, terms=(actual := [])).mean() + term
        torch.testing.assert_close(actual, [term])
        torch.testing.assert_close(token_losses(model, rows, reduction="sum") / (sum(sizes) - len(sizes)), expected)
        if len(sizes) == 1:
            torch.testing.assert_close(own_loss(model, rows), expected)


def test_the_table_of_the_documentation_has_every_model_that_adds_to_its_loss() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as MODELS

    adding = set()
    for config, classes in MODELS.items():
        for model in classes if isinstance(classes, (tuple, list)) else [classes]:
            source = inspect.getsource(model.forward)
            if "loss_function" in source and re.search(r"\bloss (\+= |= loss \+)", source):
                adding.add((config.model_type, model.__name__))
    assert {name for _, name in adding} == {build_class(kind) for kind in KINDS}
    table = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert not [name for _, name in adding if f"`{name}`" not in table]


def build_class(kind: str) -> str:
    from transformers import AutoModelForCausalLM

    actual = AutoModelForCausalLM._model_mapping[type(config_of(kind))]
    return str((actual[0] if isinstance(actual, tuple) else actual).__name__)


def test_single_losses_are_refused_where_the_term_would_be_lost() -> None:
    model, batch = build("mixtral"), batch_of(pack, multiple=64)
    with pytest.raises(ModelError, match=r"MixtralForCausalLM adds to its loss by router_aux_loss_coef, and token_l"):
        token_losses(model, batch)
    with torch.no_grad():
        expected = token_losses(model, batch)
    terms: list[torch.Tensor] = []
    torch.testing.assert_close(token_losses(model, batch, terms=terms), expected)
    summed = token_losses(model, {**batch, "num_items_in_batch": 50.0}, reduction="sum") / 50
    torch.testing.assert_close(summed, expected.sum() / 50 + terms[0])
    model.config.output_router_logits = False
    assert token_losses(model, batch).requires_grad


def test_a_batch_without_targets_adds_nothing() -> None:
    model, batch = build("mixtral"), batch_of(pack)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    assert token_losses(model, batch, reduction="sum") == 0


@pytest.mark.parametrize("adapter", [False, True])
def test_heads_and_adapters_do_not_lose_it(adapter: bool) -> None:
    """An output layer that is called as it is, and a model inside an adapter."""
    peft = pytest.importorskip("peft")
    model, rows = build("qwen2_moe"), batch_of(pad, multiple=16)
    expected = own_loss(model, rows)
    targets = ["q_proj", "lm_head"] if adapter else ["q_proj"]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets))
    actual = token_losses(wrapped, rows, reduction="sum") / (sum(SIZES) - len(SIZES))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_model_with_a_loss_of_another_kind_is_refused() -> None:
    from transformers import LlamaForCausalLM

    class Squared(LlamaForCausalLM):
        def forward(self, labels: Any = None, **kwargs: Any) -> Any:
            out = super().forward(**kwargs)
            if labels is not None:
                losses = torch.nn.functional.cross_entropy(out.logits[0, :-1], labels[0, 1:], reduction="none")
                out.loss = losses.mean() + 0.01 * losses.square().mean()
            return out

    from tests.model.test_token_losses import build as plain

    check_model_loss(FrozenEngine(plain("llama")), CPU)
    model = plain("llama")
    model.__class__ = Squared
    with pytest.raises(ModelError, match=r"Squared computes a loss of \d+\.\d+ itself, and \d+\.\d+ would be trained"):
        check_model_loss(FrozenEngine(model), CPU)


def test_a_model_that_counts_its_positions_from_another_than_0_is_refused() -> None:
    from transformers import RobertaConfig, RobertaForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = RobertaForCausalLM(RobertaConfig(vocab_size=97, is_decoder=True, max_position_embeddings=64, **shape))
    with pytest.raises(ModelError, match="counts positions from another than 0"):
        check_model_loss(FrozenEngine(model.eval()), CPU)


@pytest.mark.parametrize("kind", ["bert", "xlm", "roformer"])
@pytest.mark.parametrize("implementation", ["eager", attention.NAME])
def test_a_model_that_sees_the_tokens_to_predict_is_refused(kind: str, implementation: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    attention.register()
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "xlm":
        shape = {"emb_dim": 32, "n_layers": 1, "n_heads": 2}
    for is_causal in (False, True):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=97, is_decoder=is_causal, causal=is_causal, **shape)
        model_class = AutoModelForCausalLM._model_mapping[type(config)]
        if implementation == attention.NAME and not attention.supports_document_attention(model_class, config):
            return
        model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
        for dtype in (torch.float32, torch.bfloat16):
            if is_causal:
                check_model_loss(FrozenEngine(model.to(dtype)), CPU)
                continue
            with pytest.raises(ModelError, match=r"sees the tokens that it is to predict: .* not causal(; .*decoder)?"):
                check_model_loss(FrozenEngine(model.to(dtype)), CPU)


def bart() -> Any:
    from transformers import BartConfig, BartForCausalLM

    heads = {"decoder_attention_heads": 2, "decoder_layers": 1, "decoder_ffn_dim": 16, "encoder_layers": 1}
    return BartForCausalLM(BartConfig(vocab_size=97, d_model=16, max_position_embeddings=64, **heads))


def test_a_term_of_whole_sequences_is_refused_where_processes_share_them() -> None:
    engine = FrozenEngine(build("mixtral"))
    check_model_loss(engine, CPU)
    with pytest.raises(
        ModelError, match=r"^sequence_parallel_size: MixtralForCausalLM adds .* by router_aux_loss_coef"
    ):
        check_model_loss(engine, CPU, sequence_parallel=True)


def test_a_coefficient_that_changes_nothing_is_mentioned(messages: list[str]) -> None:
    engine = FrozenEngine(build("mixtral", output_router_logits=False))
    check_model_loss(engine, CPU, overrides={"router_aux_loss_coef": 0.5})
    assert any("router_aux_loss_coef changes nothing" in line for line in messages)
