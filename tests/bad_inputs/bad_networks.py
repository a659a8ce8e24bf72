"""Networks of other libraries that cannot be built, loaded or saved."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tests.bad_inputs.case import Case, Content

BLOCKS = {"sample_size": 4, "in_channels": 1, "out_channels": 1, "block_out_channels": [4], "layers_per_block": 1}
BLOCKS |= {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}


def save_pictures(at: Path) -> None:
    np.save(at, np.zeros((4, 4, 4), np.float32))


def save_network(at: Path) -> None:
    """One that is conditioned on three classes."""
    from diffusers import UNet2DModel

    UNet2DModel(**BLOCKS, norm_num_groups=4, num_class_embeds=4).save_pretrained(at)


def network(says: str, keys: str, files: Mapping[str, Content] | None = None, absent: str = "") -> Case:
    """A section of the model that begins at column 8 of the second line."""
    return Case(
        f"recipe.yaml:2:{says}",
        recipe=f"type: diffusion\nmodel: {{type: diffusers, {keys}}}\ndata: {{sources: [pictures.npy]}}\n",
        files={"pictures.npy": save_pictures, **(files or {})},
        absent=[absent] if absent else [],
    )


def torn(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def tear(at: Path) -> None:
        make(at)
        (at / "config.json").write_text("{")

    return tear


CASES: dict[str, Case] = {
    "diffusers is not installed": network(
        "15: model.type: diffusers needs the library diffusers: pip install diffusers",
        "dtype: fp32",
        absent="diffusers",
    ),
    "zuko is not installed": Case(
        "recipe.yaml:2:1: model.type: zuko needs the library zuko: pip install 'arctic_training[flow]'",
        recipe="type: flow\nmodel: {features: 2}\ndata: {sources: [pictures.npy]}\n",
        files={"pictures.npy": save_pictures},
        absent=["zuko"],
    ),
    "matplotlib is not installed": Case(
        "recipe.yaml:4:1: callbacks.visualization: needs the library matplotlib: pip install matplotlib",
        recipe="type: flow\nmodel: {features: 2}\ndata: {sources: [pictures.npy]}\ncallbacks: [visualization]\n",
        files={"pictures.npy": save_pictures},
        absent=["matplotlib"],
    ),
    "no such class": network(
        "38: model.class_name: diffusers has no model 'Unet2DModel'; did you mean 'UNet2DModel'?",
        "class_name: Unet2DModel",
    ),
    "a class that needs texts": network(
        "38: model.class_name: UNet2DConditionModel needs encoder_hidden_states; expected a network of images and "
        "timesteps, such as UNet2DModel or DiTTransformer2DModel",
        "class_name: UNet2DConditionModel",
    ),
    "a class without timesteps": network(
        "38: model.class_name: AutoencoderKL takes no timestep; expected a network of images and timesteps, such as "
        "UNet2DModel or DiTTransformer2DModel",
        "class_name: AutoencoderKL",
    ),
    "a key that the class does not have": network(
        "52: model.config.layers_per_blok: unknown to UNet2DModel; did you mean 'layers_per_block'? there are: ...",
        "config: {layers_per_blok: 1}",
    ),
    "sizes that do not go together": network(
        "1: model: UNet2DModel cannot be built: num_channels (4) must be divisible by num_groups (3)",
        f"config: {json.dumps({**BLOCKS, 'norm_num_groups': 3})}",
    ),
    "labels that the class does not embed": network(
        "63: model.num_labels: UNet1DModel has no embedding of labels; remove it",
        "class_name: UNet1DModel, num_labels: 3",
    ),
    "labels that nothing names": network(
        "1: model.num_labels: 0, and the network of net has an embedding for each of 3 classes and one for no label; "
        "give num_labels: 3",
        "name_or_path: net",
        {"net": save_network},
    ),
    "a config that is cut off": network(
        "1: model: UNet2DModel cannot be built: It looks like the config file at 'net/config.json' is not a valid JSON "
        "file.",
        "name_or_path: net",
        {"net": torn(save_network)},
    ),
    "a network that transformers does not know": Case(
        "recipe.yaml:4:20: checkpoint.type: huggingface cannot save model, a TimeMLP, which transformers does not "
        "know; use type deepspeed",
        recipe="type: diffusion\nmodel: {type: time_mlp, sizes: [2, 8, 2]}\ndata: {sources: [pictures.npy]}\n"
        "checkpoint: {type: huggingface}\nskip_validation: true\n",
        files={"pictures.npy": save_pictures},
    ),
}
