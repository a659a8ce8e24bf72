"""Compiled layers: one set of graphs for all packing layouts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.model.token_losses import token_losses
from arctic_training.model.transforms.compile import Compile, CompileConfig
from tests.model.test_huggingface_factory import factory
from tests.model.test_token_losses import packed


def layout(*lengths: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(sum(lengths))
    return packed([torch.randint(4, 300, (n,), generator=draw) for n in lengths])


def test_no_packing_layout_makes_a_new_graph_and_the_loss_is_the_same(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    # the compiler's front, which decides what is compiled again, without its back, which takes a minute
    real = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda *args, mode, **kwargs: real(*args, backend="eager", **kwargs)
    )
    plain = factory(tiny_model)()
    compiled = Compile(CompileConfig(type="compile"))(factory(tiny_model)())
    torch._dynamo.reset()
    counters.clear()
    layouts = [layout(9, 7, 20), layout(3, 33), layout(36), layout(5, 5, 5, 5, 5, 11), layout(40, 8), layout(7, 60, 2)]
    graphs = []
    for batch in layouts:
        loss = token_losses(compiled, batch, reduction="sum")
        torch.testing.assert_close(loss, token_losses(plain, batch, reduction="sum"))
        loss.backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs == graphs[:1] * len(layouts)
    torch._dynamo.reset()
