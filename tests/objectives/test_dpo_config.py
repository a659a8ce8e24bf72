"""What a recipe for preference training may say, and which reference it gets."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from arctic_training import DPOTrainer

MODEL = {"name_or_path": "some/model", "dtype": "fp32"}
COLUMNS = {"sources": ["pairs.jsonl"], "extra_columns": ["ref_chosen_logps", "ref_rejected_logps"]}
LORA = {"peft_type": "LORA", "r": 4}


def config(**keys: Any) -> Any:
    return DPOTrainer.config_type.model_validate(
        {"type": "dpo", "model": MODEL, "data": {"sources": ["pairs.jsonl"]}, **keys}
    )


def test_the_reference_is_the_policy_when_none_is_named() -> None:
    dpo = config()
    assert dpo.ref_model == dpo.model
    assert (dpo.beta, dpo.label_smoothing, dpo.loss_type, dpo.sft_weight) == (0.1, 0, "sigmoid", 0)
    assert config(**dpo.dump()).dump() == dpo.dump()


def test_the_reference_has_a_section_of_its_own() -> None:
    dpo = config(ref_model={"name_or_path": "another/model"})
    assert dpo.ref_model is not None
    assert dpo.ref_model.name_or_path == "another/model"
    assert dpo.ref_model.dtype == "fp32"  # what it leaves out is that of the policy
    assert config(ref_model={"name_or_path": "another/model", "dtype": "bf16"}).ref_model.dtype == "bf16"


@pytest.mark.parametrize("loss_type", ["cpo", "orpo"])
def test_losses_that_come_with_a_cross_entropy(loss_type: str) -> None:
    assert config(loss_type=loss_type).sft_weight == 1
    assert config(loss_type=loss_type, sft_weight=0).sft_weight == 0
    assert config(loss_type=["sigmoid", loss_type]).sft_weight == 1


@pytest.mark.parametrize(
    "keys",
    [
        {"loss_type": ["sigmoid", "bco_pair"], "loss_weights": ["0.8", 0.2], "sft_weight": 1},
        {"loss_type": ["sigmoid", "simpo"], "simpo_gamma": 0.7, "loss_weights": None},
        {"loss_type": ["ipo", "sigmoid"], "label_smoothing": 0.1, "f_divergence_type": "forward_kl"},
        {"loss_type": "ipo", "loss_weights": [2], "f_divergence_type": "alpha_divergence", "ld_alpha": 0},
    ],
)
def test_sums_of_losses_divergences_and_weights_of_tokens(keys: dict[str, Any]) -> None:
    dpo = config(**keys)
    assert dpo.ref_model is not None
    assert config(**dpo.dump()).dump() == dpo.dump()


def test_an_adapter_has_the_model_below_it_as_precomputed_reference() -> None:
    dpo = config(model={**MODEL, "peft_config": LORA}, precompute_ref_log_probs=True)
    assert dpo.ref_model == config().model
    assert "ref_model" not in dpo.model_fields_set


@pytest.mark.parametrize("keys", [{"data": COLUMNS}, {"loss_type": "simpo"}, {"model": {**MODEL, "peft_config": LORA}}])
def test_a_run_that_needs_no_second_model_has_none(keys: dict[str, Any]) -> None:
    dpo = config(**keys)
    assert dpo.ref_model is None
    assert config(**dpo.dump()).dump() == dpo.dump()


def test_an_adapter_may_have_a_reference_of_its_own() -> None:
    dpo = config(model={**MODEL, "peft_config": LORA}, ref_model=MODEL)
    assert dpo.ref_model is not None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss_type": "simpo", "ref_model": MODEL}, "simpo compares with no reference"),
        ({"loss_type": "simpo", "reference_model_deepspeed": {}}, "this run has no ref_model"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "the ipo loss has no labels"),
        ({"beta": 0}, "greater than 0"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"loss_type": "kto"}, "'cpo' or 'orpo'"),
        ({"loss_type": ["sigmoid", "kto"]}, "'cpo' or 'orpo'"),
        ({"loss_type": []}, "at least 1 item"),
        ({"loss_type": ["ipo", "ipo"]}, "loss_type: a loss is there twice"),
        ({"loss_type": ["sigmoid", "sft"]}, "sft is no loss of pairs; remove it, and give its weight as sft_weight"),
        ({"loss_type": ["ipo", "hinge"], "loss_weights": [1]}, "loss_weights: 1 for 2 losses; give one for each"),
        ({"loss_type": ["ipo", "hinge"], "loss_weights": [1, -1]}, "greater than or equal to 0"),
        ({"loss_weights": []}, "loss_weights: 0 for 1 losses"),
        ({"loss_type": ["ipo", "hinge"], "label_smoothing": 0.1}, "the ipo and the hinge loss has no labels"),
        ({"loss_type": ["ipo", "robust"]}, "label_smoothing: the robust loss needs one above 0"),
        ({"loss_type": ["ipo", "hinge"], "simpo_gamma": 1}, "simpo_gamma: is for loss_type: simpo"),
        ({"loss_type": ["simpo", "cpo"], "ref_model": MODEL}, "simpo compares with no reference and cpo compares"),
        (
            {"loss_type": ["sigmoid", "bco_pair"], "f_divergence_type": "js_divergence"},
            "f_divergence_type: the bco_pair loss is of reverse_kl only",
        ),
        ({"loss_type": "cpo", "f_divergence_type": "forward_kl"}, "f_divergence_type: the cpo loss is of reverse_kl"),
        ({"f_divergence_type": "kl"}, "'js_divergence' or 'alpha_divergence'"),
        ({"f_alpha_divergence_coef": 0.2}, "f_alpha_divergence_coef: is for f_divergence_type: alpha_divergence"),
        ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 2}, "less than or equal to 1"),
        ({"ld_alpha": 1.5}, "less than or equal to 1"),
        ({"loss_type": "orpo", "ld_alpha": 0.5}, "ld_alpha: the orpo loss compares with no reference"),
        ({"data": COLUMNS, "ld_alpha": 0.5}, "ld_alpha: the columns of the rows count all tokens alike"),
        ({"loss_type": "robust"}, "label_smoothing: the robust loss needs one above 0"),
        ({"loss_type": "exo_pair"}, "label_smoothing: the exo_pair loss needs one above 0"),
        ({"loss_type": "orpo", "ref_model": MODEL}, "orpo compares with no reference"),
        (
            {"data": {"sources": ["pairs.jsonl"], "extra_columns": ["ref_chosen_logps"]}},
            "data.extra_columns: both of ref_chosen_logps and ref_rejected_logps are needed",
        ),
        ({"data": COLUMNS, "ref_model": MODEL}, "its log-probabilities are columns of the rows"),
        ({"data": COLUMNS, "precompute_ref_log_probs": True}, "its log-probabilities are columns of the rows"),
        ({"loss_type": "cpo", "precompute_ref_log_probs": True}, "precompute_ref_log_probs: cpo compares with no"),
        (
            {
                "precompute_ref_log_probs": True,
                "train_iters": 3,
                "data": {"sources": [{"name_or_path": "pairs.jsonl", "streaming": True}]},
            },
            "precompute_ref_log_probs: nothing can be computed for all samples of a stream",
        ),
        ({"ignore_label_index": 0}, "ignore_label_index"),
        ({"ref_model": {"name_or_path": "m", "dtyp": "fp32"}}, "dtyp"),
        ({"reference_model_deepspeed": {"zero_optimisation": {"stage": 3}}}, "zero_optimisation"),
    ],
)
def test_refusals(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**keys)


def test_a_recipe_of_arctic_training_0_8(tmp_path: Path) -> None:
    keys = {
        "micro_batch_size": 1,
        "model": {"type": "huggingface", "name_or_path": "meta-llama/Llama-3.1-8B-Instruct", "dtype": "bf16"},
        "ref_model": {"type": "huggingface", "name_or_path": "meta-llama/Llama-3.1-8B-Instruct", "dtype": "bf16"},
        "beta": 0.1,
        "data": {
            "type": "dpo",
            "sources": ["HuggingFaceH4/ultrafeedback_binarized"],
            "max_length": 2048,
            "max_prompt_length": "1k",
            "dpo_prompt_truncation_mode": "keep_end",
        },
        "deepspeed": {"zero_optimization": {"stage": 3}},
        "reference_model_deepspeed": {"zero_optimization": {"stage": 3}},
        "scheduler": {"type": "huggingface", "name": "cosine"},
        "optimizer": {"type": "fused_adam", "learning_rate": 1e-6},
        "checkpoint": [{"type": "huggingface", "save_end_of_training": True, "output_dir": str(tmp_path)}],
    }
    dpo = config(**keys)
    assert dpo.data.max_prompt_length == 1000  # type: ignore[attr-defined]
