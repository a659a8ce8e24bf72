"""A student of half the layers: its data, and that the layers which it keeps are those of its teacher."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from arctic_training import get_config
from arctic_training.registry import lookup

PROJECT = Path(__file__).parents[2] / "projects" / "distill"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "recipe.yaml")
    return sys.modules[lookup("data_source", "passages").__module__]


def test_passages_are_trained_on_or_held_out(project: ModuleType) -> None:
    config = project.PassagesConfig(type="passages", characters=500)
    trained, held = (project.PassagesSource(None, config).load(config, split)["text"] for split in ("train", "eval"))
    assert len(trained) == 36 and len(held) == 2 and not set(trained) & set(held)
    assert {len(text) for text in (*trained, *held)} == {500} and not set("*_\\#") & set("".join(trained))


@pytest.mark.parametrize(("every", "kept"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4, 5]), (3, [0, 3, 5])])
def test_the_student_has_some_layers_of_its_teacher(project: ModuleType, every: int, kept: list[int]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=6, **sizes)).eval()
    layers = list(model.model.layers)
    student = project.KeepLayers(project.KeepLayersConfig(type="keep_layers", every=every))(model)
    assert [layers.index(one) for one in student.model.layers] == kept
    assert student.config.num_hidden_layers == len(kept)
    ids = torch.arange(5)[None]
    with torch.no_grad():  # its cache of keys and values has a place for each layer
        uncached = student(input_ids=ids).logits[:, -1]
        start = student(input_ids=ids[:, :3], use_cache=True)
        rest = student(input_ids=ids[:, 3:], past_key_values=start.past_key_values).logits[:, -1]
    torch.testing.assert_close(rest, uncached)
