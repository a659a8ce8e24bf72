"""Peaks of devices: by the names that drivers give them, and none for a part of a device."""

import pytest
import torch

from arctic_training.engine.device_peak import peak_flops, peak_flops_of


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 80GB HBM3", "fp32", 67),
        ("NVIDIA H100 PCIe", "fp16", 756),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA GB200", "bf16", 2500),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 4090 D", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("AMD Instinct MI300X", "bf16", 1307.4),
        ("Something new", "bf16", None),
    ],
)
def test_a_name_has_its_peak(name: str, dtype: str, tera: float | None) -> None:
    assert peak_flops_of(name, dtype) == (None if tera is None else pytest.approx(tera * 1e12))


def test_a_cpu_has_none() -> None:
    assert peak_flops(torch.device("cpu"), "fp32") is None
