"""Models from folders: good ones are loaded, and bad ones refused with the reason."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch._subclasses.fake_tensor import FakeTensorMode

from arctic_training.config.sections.mesh import MeshConfig
from arctic_training.errors.types import ModelError
from arctic_training.model import attention
from arctic_training.model.huggingface_config import HFModelConfig
from arctic_training.model.huggingface_factory import HFModelFactory
from arctic_training.model.liger_factory import LigerModelFactory
from arctic_training.model.memory_estimate import USABLE_SHARE, Batch, Layout, _kept_by_config, footprint
from arctic_training.model.pretrained import override_config
from arctic_training.model.token_losses import token_losses


def factory(
    name: Path | str,
    *,
    cls: type[HFModelFactory] = HFModelFactory,
    tokenizer: Any = None,
    block: Any = None,
    data: Any = None,
    **section: Any,
) -> Any:
    config = HFModelConfig(**{"type": "huggingface", "name_or_path": str(name), "dtype": "fp32", **section})
    recipe = SimpleNamespace(
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        max_grad_norm=None,
        gradient_clip_value=None,
        sequence_parallel_size=1,
        mesh=MeshConfig(),
        activation_checkpoint_cpu_offload=False,
        tiled_mlp_compute=False,
        deepspeed=block or {},
        model=config,
        data=SimpleNamespace(max_length=64, **(data or {})),
    )
    view: Any = SimpleNamespace(
        config=recipe,
        data_world=1,
        tokenizer=tokenizer,
        device=torch.device("cpu"),
        packs_samples=recipe.data.__dict__.get("pack_samples", False),
    )
    return cls(view, config)


class OwnModel(HFModelFactory):
    """Writes the one method that has to be written, and asks nothing of its base."""

    def create_model(self, config: Any) -> torch.nn.Module:
        from transformers import AutoModelForCausalLM

        model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
        return model


class OwnConfig(HFModelFactory):
    def create_config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.config.name_or_path, attention_dropout=0.5)


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def batch(**extra: Any) -> dict[str, Any]:
    ids = torch.randint(4, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids, **extra}


def test_weights_come_from_the_folder_in_the_type_that_is_asked_for(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    model = factory(tiny_model, dtype="bf16")()
    assert all(torch.equal(one, theirs[name].bfloat16()) for name, one in model.state_dict().items())
    assert model.config._attn_implementation == "documents"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_random_weights_need_a_config_only_and_are_a_function_of_the_seed(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(factory(copy, random_weights=True)().lm_head.weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_another_count_of_layers_means_random_weights_and_lists_of_layers_follow(tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    saved = Qwen3ForCausalLM(Qwen3Config(vocab_size=64, num_hidden_layers=4, head_dim=8, **shape))
    saved.save_pretrained(tmp_path)
    model = factory(tmp_path, hf_config_kwargs={"num_hidden_layers": 2})()
    assert len(model.model.layers) == len(model.config.layer_types) == 2
    assert not torch.equal(model.lm_head.weight, saved.lm_head.weight)
    token_losses(model, {name: one % 64 for name, one in batch().items()}).sum().backward()


def test_overrides_are_what_the_config_class_declares() -> None:
    """Against the strict classes of transformers themselves, which refuse a value of another type."""
    from transformers import CLIPConfig, DbrxConfig, Gemma3Config, MixtralConfig, SwinConfig

    actual = override_config(
        MixtralConfig(), {"router_aux_loss_coef": 50, "max_position_embeddings": "4ki", "rope_parameters": None}
    )
    assert (actual.router_aux_loss_coef, actual.max_position_embeddings) == (50.0, 4096)
    assert type(actual.router_aux_loss_coef) is float
    actual = override_config(
        MixtralConfig(), {"initializer_range": "1%", "sliding_window": 1e3, "num_hidden_layers": 2.0}
    )
    assert (actual.initializer_range, actual.sliding_window, actual.num_hidden_layers) == (0.01, 1000, 2)
    actual = override_config(
        MixtralConfig(), {"eos_token_id": [1, 2], "hidden_act": "gelu", "tie_word_embeddings": True}
    )
    assert (actual.eos_token_id, actual.hidden_act, actual.tie_word_embeddings) == ([1, 2], "gelu", True)
    assert override_config(CLIPConfig(), {"text_config": {"layer_norm_eps": 1}}).text_config.layer_norm_eps == 1.0
    assert list(override_config(SwinConfig(), {"depths": [1, 2, 2, 1]}).depths) == [1, 2, 2, 1]
    small = Gemma3Config(text_config={"hidden_size": 64, "num_hidden_layers": 7, "head_dim": 8})
    text = override_config(small, {"text_config": {"num_hidden_layers": 2, "rms_norm_eps": 1}}).text_config
    assert (text.hidden_size, text.head_dim, text.rms_norm_eps, len(text.layer_types)) == (64, 8, 1.0, 2)
    assert (
        override_config(
            DbrxConfig(ffn_config={"moe_top_k": 3}), {"ffn_config": {"moe_loss_weight": 1}}
        ).ffn_config.moe_top_k
        == 3
    )
    with pytest.raises(ModelError, match=r"model.hf_config_kwargs: Gemma3TextConfig has no 'hiden_size'; did you mean"):
        override_config(small, {"text_config": {"hiden_size": 32}})
    with pytest.raises(ModelError, match=r"model.hf_config_kwargs.dtype: set model.dtype instead"):
        override_config(MixtralConfig(), {"dtype": "bf16"})


def test_every_number_of_a_config_takes_what_yaml_says() -> None:
    """The defaults of a class, written as YAML would: 1 for 1.0, lists for tuples."""
    from transformers import AutoConfig

    for kind in ("llama", "mixtral", "qwen3_moe", "gemma3_text", "gpt2", "bart", "t5", "jetmoe", "bamba", "phi3"):
        config = AutoConfig.for_model(kind)
        numbers = {n: v for n, v in config.to_dict().items() if isinstance(v, float | list | tuple)}
        plain = {
            n: int(v) if isinstance(v, float) and v.is_integer() else list(v) if isinstance(v, tuple) else v
            for n, v in numbers.items()
        }
        converted = override_config(config, plain).to_dict()
        assert {name: converted[name] for name in numbers} == numbers, kind


def test_other_overrides_keep_the_weights(tiny_model: Path) -> None:
    model = factory(tiny_model, hf_config_kwargs={"attention_dropout": 0.25})()
    assert model.model.layers[0].self_attn.attention_dropout == 0.25
    assert torch.equal(model.lm_head.weight, factory(tiny_model)().lm_head.weight)


def damage(file: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(edit((folder / file).read_bytes())) and None


def lose_a_shard(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="40KB")
    (folder / WEIGHTS).unlink()
    next(folder.glob("model-00002*")).unlink()


WEIGHTS = "model.safetensors"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"no config\.json in it"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), r"no file named model\.safetensors"),
    "config is no JSON": (damage("config.json", lambda text: text[:20]), "not a valid JSON file"),
    "damaged header": (damage(WEIGHTS, lambda held: b"\xff" * 8 + held[8:]), "a file of weights is damaged or cut off"),
    "cut off": (damage(WEIGHTS, lambda held: held[:-900]), "a file of weights is damaged or cut off"),
    "missing shard": (lose_a_shard, r"No such file or directory: .*model-00002-of-"),
    "wrong shape": (
        lambda f: change(f, intermediate_size=80),
        r"down_proj\.weight is \[32, 64\] in the file, \[32, 80\]",
    ),
    "missing weights": (lambda f: change(f, num_hidden_layers=3), r"model\.layers\.2\..* is missing; .*; and 6 more"),
    "not a causal model": (lambda f: change(f, model_type="t5"), "no causal language model"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_refused_in_a_sentence(copy: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(copy)
    with pytest.raises(ModelError, match=message) as caught:
        factory(copy)()
    assert str(caught.value).startswith(f"model.name_or_path: {copy}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "./no.gguf"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelError, match=r"no such (folder|file)"):
        factory(name)()


def test_a_hub_that_does_not_answer() -> None:
    with pytest.raises(ModelError, match="no folder here, and HF_HUB_OFFLINE forbids"):
        factory("nobody/nothing")()


@pytest.mark.fault(22)
def test_code_that_comes_with_a_model_is_not_run(copy: Path) -> None:
    (copy / "theirs.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\n")
    change(copy, model_type="theirs", auto_map={"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"})
    with pytest.raises(ModelError, match=r"run only with model\.trust_remote_code: true"):
        factory(copy)()
    assert not (copy / "ran").exists()


def test_a_misspelt_override_is_refused_by_its_name(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"LlamaConfig has no 'num_hiden_layers'; did you mean 'num_hidden_layers'\?"):
        factory(tiny_model, hf_config_kwargs={"num_hiden_layers": 1})()


@pytest.mark.parametrize(
    ("implementation", "message"),
    [("flash_attention_2", "FlashAttention2"), ("best", "not supported"), ("documents", "more than causal")],
)
def test_attention_that_cannot_be_had(copy: Path, implementation: str, message: str) -> None:
    if implementation == "documents":
        change(copy, model_type="gemma2", head_dim=8)
    with pytest.raises(ModelError, match=f"^model.attn_implementation: .*{message}"):
        factory(copy, attn_implementation=implementation)()


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention", "documents"])
def test_attention_that_is_asked_for_is_used(tiny_model: Path, implementation: str) -> None:
    assert factory(tiny_model, attn_implementation=implementation)().config._attn_implementation == implementation


def test_a_model_that_hands_a_state_on_is_not_trained_on_packed_rows(copy: Path) -> None:
    change(copy, model_type="mamba")
    with pytest.raises(ModelError, match=r"^data\.pack_samples: .* would see each other"):
        factory(copy, random_weights=True, data={"pack_samples": True})()


def test_virtual_tokens_do_not_go_with_packed_rows(tiny_model: Path) -> None:
    adapter = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}
    with pytest.raises(ModelError, match=r"^data\.pack_samples: PROMPT_TUNING puts its tokens before a row"):
        factory(tiny_model, peft_config=adapter, data={"pack_samples": True})()
    factory(tiny_model, peft_config=adapter)()
    factory(tiny_model, peft_config={"peft_type": "LORA"}, data={"pack_samples": True})()


def test_an_adapter_alone_is_trained_in_the_models_type(tiny_model: Path) -> None:
    model = factory(tiny_model, dtype="bf16", peft_config={"peft_type": "LORA", "target_modules": ["q_proj"]})()
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert len(trained) == 4
    assert all("lora" in name for name in trained)
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_gets_its_gradients_also_when_activations_are_computed_again(
    tiny_model: Path, checkpointing: bool
) -> None:
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    actual = []
    for checkpoints in (False, checkpointing):
        torch.manual_seed(0)
        model = factory(tiny_model, peft_config=adapter, activation_checkpointing=checkpoints)().train()
        token_losses(model, batch()).sum().backward()
        actual.append({name: one.grad for name, one in model.named_parameters() if one.requires_grad})
    for name, gradient in actual[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(actual[1][name], gradient, msg=name)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"peft_type": "LORA", "target_modules": ["nothing"]}, "not found in the base model"),
        ({"peft_type": "LORE"}, "LORE; did you mean .LORA"),
        ({"r": 8}, "missing; there are"),
        ({"peft_type": "LORA", "rank": 8}, "rank"),
    ],
)
def test_an_adapter_that_cannot_be_made_is_refused(tiny_model: Path, adapter: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"model.peft_config.*{message}"):
        factory(tiny_model, peft_config=adapter)()


def test_transforms_are_applied_in_the_recipes_order(tiny_model: Path) -> None:
    transforms = ["activation_checkpointing", {"type": "compile", "fullgraph": False}]
    maker = factory(tiny_model, transforms=transforms, peft_config={"peft_type": "LORA"}, compile=True)
    maker._checkpoints_activations = True
    assert [one.name for one in maker.transforms] == ["peft", "activation_checkpointing", "compile"]


def test_what_contradicts_itself_is_refused_when_it_is_read(tiny_model: Path) -> None:
    with pytest.raises(ValidationError, match="contradict each other"):
        factory(tiny_model, disable_activation_checkpoint=True, activation_checkpointing=True)


def test_compiled_layers_and_parted_weights_do_not_go_together(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="use stage 2"):
        factory(tiny_model, compile=True, block={"zero_optimization": {"stage": 3}})()


def test_liger_is_refused_without_a_gpu(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    maker = factory(tiny_model)
    with pytest.raises(ModelError, match="kernels for GPUs"):
        LigerModelFactory(maker.trainer, maker.config)()


def test_liger_is_refused_for_models_that_it_would_leave_as_they_are(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = SimpleNamespace(MODEL_TYPE_TO_APPLY_LIGER_FN={"qwen3": print, "mistral": print})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch"):
        monkeypatch.setitem(sys.modules, name, kernels)
    maker = factory(tiny_model)
    with pytest.raises(ModelError, match=r"no kernels for models of type llama; .* of type mistral, qwen3"):
        LigerModelFactory(maker.trainer, maker.config).check()


@pytest.mark.parametrize(
    ("layout", "each"),
    [
        # weights, gradients, copies of them, master weights and moments
        (Layout("fp32"), 4 + 4 + 4 + 8),
        (Layout("bf16"), 2 + 2 + 4 + 4 + 8),
        (Layout("bf16", moments=0), 12),
        (Layout("bf16", 1), 2 + 2 + (4 + 6) + 4 + 8),
        (Layout("bf16", 1, moments=1), 22),
        (Layout("bf16", 1, 8), 2 + 2 + (4 + 6) + 12 / 8),
        (Layout("fp32", 1, 8), 4 + 4 + (4 + 12) / 8),
        (Layout("fp16", 1, 8), 2 + 2 + (4 + 12) / 8),
        (Layout("bf16", 2, 8), 2 + (4 + 12) / 8),
        (Layout("fp32", 2, 8), 4 + (8 + 12) / 8),
        (Layout("bf16", 3, 8), 2 + (2 + 8 + 12) / 8),  # all of so small a model are gathered
        (Layout("bf16", 2, offloads=True), 2 + 2),
        (Layout("bf16", 3, 2, offloads=True, offloads_weights=True), 2 + 1),
        (Layout("bf16", frozen=True), 2),
    ],
)
def test_bytes_of_a_weight(layout: Layout, each: float) -> None:
    model = torch.nn.Linear(80, 100, bias=False, device="meta")
    assert layout.state(model) == 8000 * each


def kept_for_the_gradient(model: torch.nn.Module, act: Callable[[], object]) -> int:
    """Bytes that ``act`` keeps for the gradient, beside the weights of ``model``."""
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        act()
    return sum(one.untyped_storage().nbytes() for place, one in kept.items() if place not in weights)


def test_the_estimate_of_memory_is_near_what_layers_keep(tiny_model: Path) -> None:
    model = factory(tiny_model)()
    ids = torch.zeros(1, 256, dtype=torch.long)
    held = kept_for_the_gradient(model, lambda: model.model(ids, use_cache=False))
    size = footprint(model)
    estimated = size.estimate(Layout("fp32"), Batch(256))
    assert 0.95 < estimated.activations / held < 1.05
    count = sum(one.numel() for one in model.parameters())
    assert estimated.state == 20 * count
    assert size.estimate(Layout("fp32", frozen=True), Batch(256)).state == 4 * count
    by_config = replace(size, kept=_kept_by_config(model)).estimate(Layout("fp32"), Batch(256))
    assert 0.9 < by_config.activations / held < 1.5


@pytest.mark.parametrize(("data", "sequences"), [("sft", 1), ("dpo", 2)])
def test_activations_are_recomputed_where_they_would_not_fit(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, data: str, sequences: int
) -> None:
    maker = factory(tiny_model, data={"type": data})
    model = maker()
    maker.trainer.device = torch.device("cuda")
    needed = footprint(model).estimate(Layout("fp32"), Batch(64 * sequences))
    for memory, recomputes in ((needed.total * 0.99, True), (needed.total * 1.01, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, memory=memory: (0, memory / USABLE_SHARE))
        assert maker._needs_activation_checkpointing(model) == recomputes


def test_what_an_adapter_lets_layers_keep_decides(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = {"peft_type": "lora", "target_modules": ["q_proj"]}
    maker = factory(tiny_model, peft_config=adapter, data={"type": "sft"})
    maker.trainer.device = torch.device("cuda")
    model, layout, batch = factory(tiny_model)(), Layout("fp32", frozen=True), Batch(64)
    of_adapter, of_all = (footprint(one).estimate(layout, batch).total for one in (maker.create_meta_model(), model))
    assert of_adapter < of_all
    for memory, recomputes in ((of_adapter * 0.99, True), (of_adapter * 1.01, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, memory=memory: (0, memory / USABLE_SHARE))
        assert maker._needs_activation_checkpointing(model) == recomputes


@pytest.mark.parametrize(
    ("width", "of_values", "dtype", "generation", "fits"),
    [
        (64, 64, torch.bfloat16, (9, 0), True),
        (256, 256, torch.float16, (8, 0), True),
        (192, 128, torch.bfloat16, (9, 0), False),  # multi-head latent attention
        (512, 512, torch.bfloat16, (9, 0), False),
        (4, 4, torch.bfloat16, (9, 0), False),
        (64, 64, torch.float32, (9, 0), False),
        (64, 64, torch.float16, (7, 5), False),
    ],
)
def test_the_kernel_for_documents_is_asked_for_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, width: int, of_values: int, dtype: torch.dtype, generation: Any, fits: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: generation)
    with FakeTensorMode():
        query = torch.empty(1, 2, 8, width, device="cuda", dtype=dtype)
        value = torch.empty(1, 2, 8, of_values, device="cuda", dtype=dtype)
    assert attention._has_kernel(query, value) == fits
    assert not attention._has_kernel(torch.empty(1, 2, 8, width), torch.empty(1, 2, 8, of_values))


def test_a_subclass_writes_its_model_or_its_config_alone(tiny_model: Path) -> None:
    torch.manual_seed(3)
    section = {"cls": OwnModel, "activation_checkpointing": True, "peft_config": {"peft_type": "LORA", "r": 2}}
    maker = factory(tiny_model, **section)
    maker.check()
    for model in (maker(), factory(tiny_model, **section)()):  # looked at before, or made at once
        assert any(getattr(part, "gradient_checkpointing", False) for part in model.modules()) and "lora" in str(model)
        assert not torch.equal(model.get_output_embeddings().weight, factory(tiny_model)().lm_head.weight)
        token_losses(model, batch()).sum().backward()
    maker = factory(tiny_model, cls=OwnConfig)
    maker.check()
    for model in (maker(), factory(tiny_model, cls=OwnConfig)()):
        assert model.config.attention_dropout == 0.5
        assert torch.equal(model.lm_head.weight, factory(tiny_model)().lm_head.weight)


def test_a_model_of_a_subclass_has_a_row_for_every_token(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens([f"<{n}>" for n in range(60)])
    with pytest.raises(ModelError, match="for which the model has no row"):
        factory(tiny_model, cls=OwnModel, tokenizer=tokenizer)()
    model = factory(tiny_model, cls=OwnModel, tokenizer=tokenizer, resize_vocabulary=True)()
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)


class Classifiers(HFModelFactory):
    name = "classifiers_for_tests"

    @property
    def auto_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification


def test_a_new_head_is_named_by_the_recipe(tiny_model: Path) -> None:
    message = "score.weight is missing; for a score with random weights give model.new_weights: .score."
    with pytest.raises(ModelError, match=message):
        factory(tiny_model, cls=Classifiers).check()
    maker = factory(tiny_model, cls=Classifiers, new_weights=["score"])
    maker.check()
    body, classifier = factory(tiny_model)(), maker()
    assert classifier.score.weight.abs().sum() > 0
    assert torch.equal(classifier.model.norm.weight, body.model.norm.weight)


@pytest.mark.parametrize("kind", ["gpt_neox", "mixtral", "qwen2"])
def test_weights_that_transformers_renames_are_found_and_missed(kind: str, tmp_path: Path) -> None:
    """Those of GPT-NeoX are ``embed_out`` in every file, and ``lm_head`` in the model."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(kind, vocab_size=64, tie_word_embeddings=False, **shape)
    saved = AutoModelForCausalLM.from_config(config)
    saved.save_pretrained(tmp_path)
    maker = factory(tmp_path)
    maker.check()
    assert torch.equal(maker().lm_head.weight, saved.lm_head.weight)
    file = tmp_path / "model.safetensors"
    others = {name: one for name, one in load_file(file).items() if "embed_out" not in name and "lm_head" not in name}
    save_file(others, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lm_head.weight is missing; .* model.new_weights: \[lm_head\]"):
        factory(tmp_path).check()
