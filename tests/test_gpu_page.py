"""The tables of memory in `docs/gpu.md` are what `model/memory_estimate.py` gives."""

import re
from types import SimpleNamespace

import torch
from torch import nn

from arctic_training.model.kept_activations import Recomputation
from arctic_training.model.memory_estimate import Layout, _kept_by_config
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


def gibibytes(size: float) -> str:
    return f"{size / 2**30:,.0f}" if size >= 10 * 2**30 else f"{size / 2**30:.1f}"


def table(first: str) -> list[tuple[str, list[str]]]:
    """Returns the rows of the page that begin with what the pattern ``first`` finds: its group, and the cells."""
    rows = re.findall(rf"^\| {first} \|(.*)\|$", PAGE, re.MULTILINE)
    return [(name, [cell.strip().removesuffix(" GiB") for cell in cells.split("|")]) for name, cells in rows]


def test_the_tables_of_activations_are_what_the_estimate_gives() -> None:
    """By layers, widths and MLP widths of the models' configs."""
    shapes = {
        "SmolLM2-135M": (30, 576, 1536),
        "Llama-3.2-1B": (16, 2048, 8192),
        "Llama-3.1-8B": (32, 4096, 14336),
        "Llama-3.3-70B": (80, 8192, 28672),
    }
    rows = table(r"([A-Z][\w.]+-[\w.-]+)")
    assert [name for name, _ in rows] == list(shapes)
    for name, cells in rows:
        layers, width, inner = shapes[name]
        model = nn.Module()
        model.config = SimpleNamespace(hidden_size=width, num_hidden_layers=layers, intermediate_size=inner)
        model.weight = nn.Parameter(torch.empty(0, dtype=torch.bfloat16))
        kept = _kept_by_config(model)
        assert kept is not None
        ways = [Recomputation(), Recomputation(layers=True), Recomputation(layers=True, offloads=True, tile=width)]
        sizes = [way.kept(kept, tokens) for way in ways for tokens in (8192, 32768)]
        assert cells == [gibibytes(size) for size in sizes]


def test_the_tables_of_weights_are_what_the_estimate_gives() -> None:
    one = [
        Layout("bf16", 1),
        Layout("bf16", 1, moments=1),
        Layout("bf16", 0, moments=0),
        Layout("bf16", 2, offloads=True),
        Layout("bf16", 1, frozen=True),
    ]
    several = [Layout("bf16", stage, world) for stage, world in ((1, 8), (2, 8), (3, 8), (3, 64))]
    rows = table(r"([\d.]+) billion")
    assert len(rows) == 12
    for number, (billions, cells) in enumerate(rows):
        weights = nn.Linear(1, round(float(billions) * 1e9), bias=False, device="meta")
        assert cells == [gibibytes(layout.state(weights)) for layout in (one if number < 6 else several)]
