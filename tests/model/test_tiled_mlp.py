"""MLPs in tiles: the same loss and gradient, less memory, and no model whose tokens would not be what they are."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from arctic_training.errors.types import ModelError
from arctic_training.model.checks.tiling import check_tiling
from arctic_training.model.token_losses import token_losses
from arctic_training.model.transforms.peft import PeftConfig, PeftTransform
from arctic_training.model.transforms.tiled_mlp import TiledMLP, TiledMLPConfig, tile, tileable_mlps, tiling_of
from tests import tiny
from tests.model.test_huggingface_factory import factory, kept_for_the_gradient
from tests.model.test_token_losses import build, gradients, packed, padded, samples

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gemma2": {},
    "phi3": {},  # gate and up in one layer
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},  # transformers' own linear layer
    "gpt_neox": {},  # attention and MLP side by side
    "olmo2": {},  # norms behind the MLP
    "starcoder2": {},
    "deepseek_v3": {
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 2,
    },
}


def tiled(model: nn.Module, tokens: int | None = 5) -> nn.Module:
    return TiledMLP(TiledMLPConfig(type="tiled_mlp", tokens=tokens))(model)


def require_equal(model: Any, expected: dict[str, torch.Tensor], loss: torch.Tensor) -> None:
    actual = gradients(model, loss)
    scale = max(float(gradient.norm()) for gradient in expected.values())
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((actual[name] - gradient).norm()) / scale < 1e-6, name


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_whole_rows(kind: str) -> None:
    """Of 32 tokens in tiles of 5 the last is shorter, and of 9 tiles that DeepSpeed counts torch.chunk makes 8."""
    model = build(kind, **KINDS[kind])
    for batch in (packed(samples()), padded(samples())):
        untiled = token_losses(model, batch, reduction="sum")
        expected = gradients(model, untiled)
        parted = tiled(copy.deepcopy(model))
        loss = token_losses(parted, batch, reduction="sum")
        assert loss.item() == pytest.approx(untiled.item(), rel=1e-6)
        require_equal(parted, expected, loss)
        assert len([one for one in parted.modules() if tiling_of(one)]) == 2


def test_an_encoder_decoder_has_two_stacks() -> None:
    model = tiny.encoder_decoder("t5")
    ids = torch.randint(4, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    expected = gradients(model, model(input_ids=ids, labels=ids).loss)
    tiled(model)
    assert [type(one).__name__ for one in tileable_mlps(model)] == ["T5LayerFF"] * 2
    require_equal(model, expected, model(input_ids=ids, labels=ids).loss)


def test_tiles_are_as_long_as_a_hidden_state_is_wide_unless_stated() -> None:
    model = tiled(build("llama"), None)
    lengths: list[int] = []
    mlp = tileable_mlps(model)[0]
    mlp.act_fn.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))  # type: ignore[union-attr, operator]
    with torch.no_grad():
        token_losses(model, packed([torch.arange(75) % 90 + 3]))
    assert lengths == [32, 32, 11]


def test_the_inside_of_an_mlp_is_not_kept() -> None:
    batch = packed([torch.arange(1024) % 90 + 3])
    kept = [
        kept_for_the_gradient(model, lambda model=model: token_losses(model, batch, reduction="sum"))
        for model in (build("llama", intermediate_size=512), tiled(build("llama", intermediate_size=512)))
    ]
    inside = 2 * 1024 * 4 * 512 * 4  # layers, tokens, what gate, up, activation and product take
    assert kept[0] - kept[1] == pytest.approx(inside, rel=0.1)


def test_a_copy_computes_with_its_own_weights() -> None:
    model = tiled(build("llama"))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert float(token_losses(other, packed(samples())).std()) > 0


def test_dropout_is_drawn_once_for_a_tile() -> None:
    """With the adapter's dropout, twice the same backward pass needs the same draw in forward and repetition."""
    model = build("llama")
    settings = {"peft_type": "LORA", "target_modules": ["down_proj"], "lora_dropout": 0.5, "init_lora_weights": False}
    torch.manual_seed(1)
    model = tiled(PeftTransform(PeftConfig(type="peft", config=settings))(model)).train()
    torch.manual_seed(2)
    loss = token_losses(model, packed(samples()), reduction="sum")
    direction = {name: one for name, one in gradients(model, loss).items() if "lora_B" in name}
    step, losses = 1e-3, []
    for sign in (1, -1):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in direction:
                    parameter += sign * step * direction[name] / direction[name].norm()
        torch.manual_seed(2)
        losses.append(float(token_losses(model, packed(samples()), reduction="sum")))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in direction:
                    parameter -= sign * step * direction[name] / direction[name].norm()
    slope = sum(float(one.norm()) for one in direction.values())
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-2)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("mixtral", {"num_local_experts": 4}, r"MixtralDecoderLayer sends its tokens to experts \(Mixtral"),
        ("qwen2_moe", {"num_experts": 4, "decoder_sparse_step": 1}, r"Qwen2MoeDecoderLayer sends its tokens to exp"),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, r"OPTDecoderLayer has no module that computes its MLP"),
        ("bloom", {}, r"BloomBlock has no module that computes its MLP alone, of one tensor"),
        ("mamba", {}, r"MambaBlock has no module"),
    ],
)
def test_what_cannot_be_tiled_is_refused_by_name(kind: str, fields: dict[str, Any], message: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **fields))
    with pytest.raises(ModelError, match=f"^tiled_mlp_compute: {message}"):
        tiled(model)


class Shifting(nn.Module):
    """An MLP by its parts whose tokens see the one before them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(self.up(hidden.roll(1, dims=1)))
        return out


def test_an_mlp_that_is_more_than_its_parts_is_found_when_it_runs() -> None:
    good, bad = (nn.ModuleDict({"mlp": mlp}) for mlp in (build("llama").model.layers[0].mlp, Shifting()))
    for model in (good, bad):
        tile(model["mlp"])
    engine: Any = type("", (), {"module": good})
    check_tiling(engine, torch.device("cpu"))
    engine.module = bad
    with pytest.raises(ModelError, match=r"^tiled_mlp_compute: in Shifting a token depends on the others of its row"):
        check_tiling(engine, torch.device("cpu"))


def test_a_recipe_is_refused_before_the_weights_are_read(tiny_model: Any, tmp_path: Any) -> None:
    import shutil

    from tests.model.test_huggingface_factory import change

    maker = factory(tiny_model)
    maker.trainer.config.tiled_mlp_compute = True
    maker.check()
    assert [one.name for one in maker.transforms] == ["tiled_mlp"] and maker.recomputation.tile == 32
    copied = shutil.copytree(tiny_model, tmp_path / "model")
    change(copied, model_type="mixtral", architectures=["MixtralForCausalLM"], num_local_experts=2)
    maker = factory(copied, random_weights=True)
    maker.trainer.config.tiled_mlp_compute = True
    with pytest.raises(ModelError, match=r"^tiled_mlp_compute: MixtralDecoderLayer sends its tokens to experts"):
        maker.check()
