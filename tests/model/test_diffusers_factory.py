"""Networks of diffusers by the name of their class: the same numbers as when they are called directly."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from arctic_training.errors.types import ModelError
from arctic_training.model.diffusers_factory import DiffusersConfig, DiffusersFactory, DiffusersNetwork

diffusers = pytest.importorskip("diffusers")
UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4, 8],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 4,
}
DIT = {
    "sample_size": 8,
    "in_channels": 1,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "patch_size": 2,
}
NETWORKS = {"UNet2DModel": UNET, "DiTTransformer2DModel": DIT}


def factory(class_name: str = "UNet2DModel", **keys: Any) -> DiffusersFactory:
    section = {"type": "diffusers", "class_name": class_name, "config": NETWORKS.get(class_name, {}), **keys}
    return DiffusersFactory(SimpleNamespace(), DiffusersConfig.model_validate(section))  # type: ignore[arg-type]


def network(class_name: str, **keys: Any) -> DiffusersNetwork:
    torch.manual_seed(0)
    module = factory(class_name, **keys).create_model(None)
    assert isinstance(module, DiffusersNetwork)
    with torch.no_grad():  # as after training: some layers begin with zeros
        for one in module.parameters():
            one.add_(torch.randn_like(one), alpha=0.05)
    return module


@pytest.mark.parametrize("class_name", NETWORKS)
@pytest.mark.parametrize("labels", [0, 3])
def test_the_output_is_that_of_diffusers(class_name: str, labels: int) -> None:
    module = network(class_name, num_labels=labels)
    images, time = torch.randn(4, 8, 8), torch.tensor([0.0, 0.25, 0.5, 0.999])
    chosen, indices = torch.tensor([0, 2, -100, 1]), torch.tensor([0, 2, 3, 1])
    more = {"class_labels": indices} if labels else {}
    if class_name.startswith("DiT") and not labels:
        more = {"class_labels": torch.zeros(4, dtype=torch.long)}
    module.train()  # diffusers would leave labels of a DiT out at random here
    for _ in range(2):
        outputs = module(images, time, chosen if labels else None)
        expected = module.network(images[:, None], timestep=torch.tensor([0, 250, 500, 999]), **more).sample
        torch.testing.assert_close(outputs, expected[:, 0], rtol=1e-4, atol=1e-4)
    assert outputs.shape == images.shape
    if labels:
        torch.testing.assert_close(module(images, time)[2], outputs[2])


@pytest.mark.parametrize("class_name", NETWORKS)
def test_a_folder_is_loaded(class_name: str, tmp_path: Path) -> None:
    module = network(class_name, num_labels=3)
    module.network.save_pretrained(tmp_path)  # type: ignore[operator]
    again = factory(class_name, name_or_path=str(tmp_path), config={}, num_labels=3)
    again.check()
    assert again.meta_model is not None and all(one.is_meta for one in again.meta_model.parameters())
    loaded = again.create_model(None)
    for name, weight in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    with pytest.raises(ModelError, match="for each of 3 classes and one for no label; give num_labels: 3"):
        factory(class_name, name_or_path=str(tmp_path), config={}).check()


def test_the_check_builds_the_network_without_weights() -> None:
    one = factory(num_labels=2)
    one.check()
    assert one.meta_model is not None and getattr(one.meta_model, "num_labels", 0) == 2
    assert all(parameter.is_meta for parameter in one.meta_model.parameters())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"class_name": "Unet2DModel"}, "diffusers has no model 'Unet2DModel'; did you mean 'UNet2DModel'?"),
        ({"class_name": "UNet2DConditionModel"}, "needs encoder_hidden_states; expected a network of images"),
        ({"class_name": "AutoencoderKL"}, "takes no timestep"),
        (
            {"config": {**UNET, "layers_per_blok": 1}},
            "config.layers_per_blok: unknown to UNet2DModel; did you mean",
        ),
        ({"config": {**UNET, "norm_num_groups": 3}}, "UNet2DModel cannot be built"),
        ({"class_name": "UNet1DModel", "num_labels": 3}, "UNet1DModel has no embedding of labels; remove it"),
    ],
)
def test_refusals(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message.replace("?", r"\?")):
        factory(**keys).check()


def test_the_key_of_diffusers_for_labels_is_refused() -> None:
    with pytest.raises(ValidationError, match="num_class_embeds: follows from num_labels"):
        factory(config={**UNET, "num_class_embeds": 3})


def test_a_folder_that_is_missing_is_found_by_validate(tmp_path: Path) -> None:
    for name in (str(tmp_path / "missing"), "some/name-of-the-hub"):
        section = DiffusersConfig.model_validate({"type": "diffusers", "name_or_path": name})
        (problem,) = section.missing_paths()
        assert problem.path == ("name_or_path",)
