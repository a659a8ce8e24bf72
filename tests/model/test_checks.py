"""What a model without weights shows of one with them."""

import pytest
import torch
from torch import nn

from arctic_training.errors.types import ModelError
from arctic_training.model.checks.positions import check_positions
from arctic_training.model.checks.weight_shapes import check_weight_shapes


class Model(nn.Module):
    def __init__(self, **embeddings: int) -> None:
        super().__init__()
        for name, rows in embeddings.items():
            self.add_module(name, nn.Embedding(rows, 2, device="meta"))


@pytest.mark.parametrize("name", ["wpe", "embed_positions", "position_embeddings", "pos_emb"])
def test_learned_positions_end(name: str, messages: list[str]) -> None:
    model = Model(wte=1_000, **{name: 66})
    check_positions(model, 64, 64)
    with pytest.raises(ModelError, match=r"^data\.max_length: 65 tokens, and the model has learned 64 positions"):
        check_positions(model, 65, 64)  # of the 66 rows two are the model's own
    with pytest.raises(ModelError, match="has learned 66 positions"):
        check_positions(model, 67, None)
    check_positions(model, None, 64)
    assert not messages


def test_positions_that_are_computed_go_on(messages: list[str]) -> None:
    model = Model(wte=1_000, relative_attention_bias=32, relative_positions=32)
    check_positions(model, 64, 64)
    assert not messages
    check_positions(model, 65, 64)
    assert messages == ["data.max_length: 65 tokens are more than the 64 that the model has seen at once"]


def test_shapes_are_compared_by_name() -> None:
    model = Model(a=3, b=4)
    check_weight_shapes(model, {"a.weight": [3, 2], "elsewhere": [7]})
    with pytest.raises(ModelError, match=r"do not fit the config: a.weight is \[5, 2\] in the file, \[3, 2\]"):
        check_weight_shapes(model, {"a.weight": [5, 2], "b.weight": [4, 2]})
    assert all(weight.device == torch.device("meta") for weight in model.parameters())
