"""Models in which packed samples would see each other are found by asking them, and the others are left in peace."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from arctic_training import SFTTrainer, get_config
from arctic_training.data.batching.collate import pad
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.engine.engine import FrozenEngine
from arctic_training.errors.types import ModelError
from arctic_training.model.checks.packing_isolation import check_packing_isolation
from arctic_training.model.huggingface_factory import HFModelFactory
from tests.contract.cases import recipe
from tests.model.test_huggingface_factory import change
from tests.model.test_token_losses import SHAPE

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
TELL = {"llama": {}, "mistral": {"sliding_window": 5}, "gemma2": {}, "stablelm": {}, "mixtral": MOE}
DO_NOT = {"gpt_oss": MOE, "bloom": {"n_layer": 2, "n_head": 4}, "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2}}


def frozen(kind: str, dtype: torch.dtype, implementation: str) -> FrozenEngine:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {**SHAPE, **(TELL | DO_NOT)[kind]}
    if kind == "mpt":
        shape = {"vocab_size": 97, **DO_NOT[kind]}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **shape)
    return FrozenEngine(AutoModelForCausalLM.from_config(config, attn_implementation=implementation).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", TELL)
def test_models_that_tell_documents_apart_pass(kind: str, dtype: torch.dtype) -> None:
    for implementation in ("eager", *(["sdpa"] if kind != "gemma2" else [])):
        check_packing_isolation(frozen(kind, dtype, implementation), torch.device("cpu"))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, torch.float32) for kind in DO_NOT), *((kind, torch.bfloat16) for kind in DO_NOT if kind != "gpt_oss")],
)
def test_models_that_do_not_are_refused(kind: str, dtype: torch.dtype) -> None:
    with pytest.raises(
        ModelError, match=r"data\.pack_samples: in \w+ForCausalLM with attn_implementation eager samples"
    ):
        check_packing_isolation(frozen(kind, dtype, "eager"), torch.device("cpu"))


def test_a_model_that_passes_by_the_hooks_of_packed_rows_is_refused() -> None:
    """Its attention gets the mask of padding, which every model of transformers is spared."""
    from transformers import LlamaForCausalLM

    from tests.model.test_token_losses import build

    class PassesBy(LlamaForCausalLM):
        def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
            kwargs = {name: kwargs.get(name) for name in ("attention_mask", "position_ids", "cu_seq_lens_q")}
            hidden = self.model.forward(input_ids, use_cache=False, **kwargs)[0]
            return {"logits": self.lm_head(hidden)}

    model = build("llama")
    check_packing_isolation(FrozenEngine(model), torch.device("cpu"))
    model.__class__ = PassesBy
    with pytest.raises(ModelError, match="PassesBy with attn_implementation documents samples in one row would see"):
        check_packing_isolation(FrozenEngine(model), torch.device("cpu"))


def test_a_run_asks_before_it_trains(tmp_path: Path) -> None:
    files = tmp_path / "files"
    settings = recipe("sft", files, output_dir=str(tmp_path / "run"))
    settings["data"]["pack_samples"] = True
    config = {"model_type": "gpt_oss", **MOE, "sliding_window": 64, "head_dim": 8}
    change(files / "model", architectures=["GptOssForCausalLM"], **config)
    settings["model"] |= {"random_weights": True, "hf_config_kwargs": {}}
    with pytest.raises(ModelError, match="samples in one row would see each other"):
        SFTTrainer(get_config(settings))
    assert not (tmp_path / "run").exists()
    settings["data"]["pack_samples"] = False
    SFTTrainer(get_config(settings)).train()


class PairModel(HFModelFactory):
    """A model that reads a row and writes another."""

    name = "pair_of_a_test"

    @property
    def auto_class(self) -> Any:
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM


class PackedPairs(SFTDataFactory):
    """Collates without the fields that mark packed rows, though its base packs."""

    name = "packed_pairs_of_a_test"

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        rows = pad(samples, pad_token=self.pad_token)
        return {name: rows[name] for name in ("input_ids", "attention_mask", "labels")}


class Pairs(PackedPairs):
    name = "pairs_of_a_test"

    @classmethod
    def packs(cls, config: Any) -> bool:
        return False


class PairTrainer(SFTTrainer):
    name = "pairs_of_a_test"
    data_factory_type: ClassVar[Any] = (Pairs, PackedPairs)
    model_factory_type: ClassVar[Any] = PairModel

    def loss(self, batch: Any) -> torch.Tensor:
        batch.pop("num_items_in_batch")
        loss: torch.Tensor = self.model(**batch).loss
        return loss


def test_the_data_factory_says_whether_its_rows_are_packed(tmp_path: Path) -> None:
    files = tmp_path / "files"
    settings = recipe("sft", files, output_dir=str(tmp_path / "run"), type="pairs_of_a_test", train_iters=1)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
    (files / "model" / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": 320, **shape}))
    settings["model"] = {"name_or_path": str(files / "model"), "dtype": "fp32", "random_weights": True}
    settings["data"] |= {"pack_samples": True, "type": "packed_pairs_of_a_test"}
    with pytest.raises(
        ModelError, match=r"T5\w+: .* cannot be given several samples in one row.*data factory's `packs`"
    ):
        PairTrainer(get_config(settings))
    settings["data"]["type"] = "pairs_of_a_test"
    trainer: Any = PairTrainer(get_config(settings))
    trainer.train()
    assert trainer.progress.step == 1 and not trainer.packs_samples
    trainer.close()
