"""What is computed again and what is kept of layers, and where: by the operations of a pass, and by its gradient."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from arctic_training import get_config
from arctic_training.errors.types import ModelError, RecipeError
from arctic_training.model.token_losses import token_losses
from arctic_training.model.transforms.activation_checkpointing import (
    ActivationCheckpointing,
    ActivationCheckpointingConfig,
)
from arctic_training.model.transforms.tiled_mlp import TiledMLP, TiledMLPConfig
from tests.model.test_huggingface_factory import factory
from tests.model.test_token_losses import build, gradients, packed, samples


def checkpointed(model: Any, **keys: Any) -> Any:
    config = ActivationCheckpointingConfig(type="activation_checkpointing", **keys)
    return ActivationCheckpointing(config)(model).train()


class Operations(TorchDispatchMode):
    """Counts what torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def computed(model: Any, *, backward: bool) -> Counter[str]:
    """The operations of a forward or of a backward pass."""
    loss, operations = None, Operations()
    if not backward:
        with operations:
            token_losses(model, packed(samples()), reduction="sum")
        return operations.count
    loss = token_losses(model, packed(samples()), reduction="sum")
    with operations:
        loss.backward()
    return operations.count


ATTENTION = "aten._scaled_dot_product_flash_attention_for_cpu.default"


@pytest.mark.parametrize(("kind", "linear"), [("llama", "aten.mm.default"), ("gpt2", "aten.addmm.default")])
def test_selective_computes_no_product_and_no_attention_again(kind: str, linear: str) -> None:
    def model() -> Any:
        dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0} if kind == "gpt2" else {}
        return build(kind, **dropout).train()

    first = computed(model(), backward=False)
    plain = computed(model(), backward=True)
    recomputed = computed(checkpointed(model()), backward=True)
    some = computed(checkpointed(model(), selective=True), backward=True)
    assert first[ATTENTION] > 0 == plain[ATTENTION] == some[ATTENTION]
    assert recomputed[ATTENTION] == first[ATTENTION]
    assert some[linear] == plain[linear] < recomputed[linear]
    norms = "aten.rsqrt.default" if kind == "llama" else "aten.native_layer_norm.default"
    assert some[norms] == recomputed[norms] > plain[norms]


@pytest.mark.parametrize("keys", [{"selective": True}, {"offload": True}, {"selective": True, "offload": True}])
@pytest.mark.parametrize("tokens", [0, 5])
def test_loss_and_gradient_stay_the_same(keys: dict[str, bool], tokens: int) -> None:
    model, batch = build("llama"), packed(samples())
    plain = token_losses(model, batch, reduction="sum")
    expected = gradients(model, plain)
    if tokens:
        model = TiledMLP(TiledMLPConfig(type="tiled_mlp", tokens=tokens))(model)
    loss = token_losses(checkpointed(model, **keys), batch, reduction="sum")
    assert float(loss) == pytest.approx(float(plain), rel=1e-6)
    for name, gradient in gradients(model, loss).items():
        assert float((gradient - expected[name]).norm()) <= 1e-6 * float(expected[name].norm()), name


def test_the_inside_of_a_tiled_mlp_is_no_product() -> None:
    model = TiledMLP(TiledMLPConfig(type="tiled_mlp", tokens=5))(build("llama"))
    first = computed(model, backward=False)
    plain = computed(checkpointed(build("llama"), selective=True), backward=True)
    some = computed(checkpointed(model, selective=True), backward=True)
    assert some["aten.mm.default"] > plain["aten.mm.default"]
    assert some[ATTENTION] == 0 < first[ATTENTION]


def test_offload_moves_the_inputs_of_the_layers_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With copies in place of pinned ones, which need a GPU."""
    from transformers import modeling_utils

    moved: list[torch.Tensor] = []

    class Moved(saved_tensors_hooks):
        def __init__(self, pin_memory: bool, device_type: str) -> None:
            assert pin_memory
            super().__init__(lambda one: moved.append(one) or one.clone(), lambda one: one)

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(modeling_utils, "save_on_cpu", Moved)
    model, batch = build("llama"), packed(samples())
    expected = gradients(model, token_losses(model, batch, reduction="sum"))
    loss = token_losses(checkpointed(model, offload=True), batch, reduction="sum")
    assert [tuple(one.shape) for one in moved] == [(1, 32, 32)] * 2
    for name, gradient in gradients(model, loss).items():
        torch.testing.assert_close(gradient, expected[name])


class OldModel(torch.nn.Module):
    supports_gradient_checkpointing = True

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """Knows nothing of offload."""


def test_a_model_that_cannot_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="Linear cannot checkpoint its activations"):
        checkpointed(torch.nn.Linear(1, 1))
    checkpointed(OldModel())
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ModelError, match=r"OldModel cannot checkpoint its activations so: .*offload"):
        checkpointed(OldModel(), offload=True)


def test_keys_of_the_recipe_and_of_a_listed_transform_say_the_same(tiny_model: Any) -> None:
    for section, offloads in (
        ({"activation_checkpointing": "selective"}, True),
        ({"transforms": [{"type": "activation_checkpointing", "selective": True}]}, True),
        ({"transforms": [{"type": "activation_checkpointing", "selective": True, "offload": True}]}, False),
    ):
        maker = factory(tiny_model, **section)
        maker.trainer.config.activation_checkpoint_cpu_offload = offloads
        maker._checkpoints_activations = maker.checkpoints_activations
        (transform,) = maker.transforms
        assert transform.config.selective and transform.config.offload
    maker = factory(tiny_model)
    assert maker.checkpoints_activations is None
    maker.trainer.config.activation_checkpoint_cpu_offload = True  # there is something to offload
    assert maker.checkpoints_activations is True


SMALL: dict[str, Any] = {"type": "sft", "model": {"name_or_path": "a/b"}, "data": {"sources": ["a/b"]}}
POINTS = {
    "type": "tensor_classifier",
    "model": {"type": "mlp", "sizes": [2, 3]},
    "data": {"sources": [{"type": "tensor_file", "name_or_path": "points.npz"}]},
}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (POINTS | {"tiled_mlp_compute": True}, "tiled_mlp_compute: true, and the model is not one of transformers"),
        (POINTS | {"activation_checkpoint_cpu_offload": True}, "activation_checkpoint_cpu_offload: true, and the mod"),
        (
            SMALL | {"activation_checkpoint_cpu_offload": True, "model": {"disable_activation_checkpoint": True}},
            "activation_checkpoint_cpu_offload: true, and model.activation_checkpointing is off; remove one of them",
        ),
        (
            SMALL | {"model": {"activation_checkpointing": "selective", "compile": True}},
            "model.activation_checkpointing: selective, and a compiled layer is one operation, of which nothing can",
        ),
        (
            SMALL | {"model": {"activation_checkpointing": "some"}},
            "model.activation_checkpointing: ",
        ),
    ],
)
def test_a_recipe_that_asks_for_what_cannot_be_is_refused(recipe: dict[str, Any], message: str) -> None:
    recipe = {**recipe, "model": {**SMALL["model"], **recipe["model"]} if recipe["type"] == "sft" else recipe["model"]}
    with pytest.raises(RecipeError) as error:
        get_config(recipe)
    assert any(one.startswith(message) for one in error.value.problems), error.value.problems
