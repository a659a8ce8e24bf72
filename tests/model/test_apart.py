"""Models in which packed samples would see each other are found by asking them, and the others are left in peace."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import SFTTrainer, get_config
from arctic_training.engine.engine import FrozenEngine
from arctic_training.errors import ModelError
from arctic_training.model.apart import require_apart
from tests.contract.cases import recipe
from tests.model.test_huggingface_factory import change
from tests.model.test_target_losses import SHAPE

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
TELL = {"llama": {}, "mistral": {"sliding_window": 5}, "gemma2": {}, "stablelm": {}, "mixtral": MOE}
DO_NOT = {"gpt_oss": MOE, "bloom": {"n_layer": 2, "n_head": 4}, "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2}}


def frozen(kind: str, dtype: torch.dtype, how: str) -> FrozenEngine:
    from transformers import AutoConfig, AutoModelForCausalLM

    told: dict[str, Any] = {**SHAPE, **(TELL | DO_NOT)[kind]}
    if kind == "mpt":
        told = {"vocab_size": 97, **DO_NOT[kind]}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **told)
    return FrozenEngine(AutoModelForCausalLM.from_config(config, attn_implementation=how).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", TELL)
def test_models_that_tell_documents_apart_pass(kind: str, dtype: torch.dtype) -> None:
    for how in ("eager", *(["sdpa"] if kind != "gemma2" else [])):
        require_apart(frozen(kind, dtype, how), torch.device("cpu"))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, torch.float32) for kind in DO_NOT), *((kind, torch.bfloat16) for kind in DO_NOT if kind != "gpt_oss")],
)
def test_models_that_do_not_are_refused(kind: str, dtype: torch.dtype) -> None:
    with pytest.raises(
        ModelError, match=r"data\.pack_samples: in \w+ForCausalLM with attn_implementation eager samples"
    ):
        require_apart(frozen(kind, dtype, "eager"), torch.device("cpu"))


def test_a_run_asks_before_it_trains(tmp_path: Path) -> None:
    files = tmp_path / "files"
    told = recipe("sft", files, output_dir=str(tmp_path / "run"))
    told["data"]["pack_samples"] = True
    config = {"model_type": "gpt_oss", **MOE, "sliding_window": 64, "head_dim": 8}
    change(files / "model", architectures=["GptOssForCausalLM"], **config)
    told["model"] |= {"random_weights": True, "hf_config_kwargs": {}}
    with pytest.raises(ModelError, match="samples in one row would see each other"):
        SFTTrainer(get_config(told))
    assert not (tmp_path / "run").exists()
    told["data"]["pack_samples"] = False
    SFTTrainer(get_config(told)).train()
