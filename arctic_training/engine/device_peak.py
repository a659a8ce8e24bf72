"""The operations that devices compute at most, by which the utilisation of a run is measured."""

import re

import torch

_PEAKS = {
    # name: TFLOP/s in 16 bits with accumulation in fp32, without sparsity; in fp32. From the makers' data sheets.
    "A10": (125.0, 31.2),
    "A100": (312.0, 19.5),
    "A30": (165.0, 10.3),
    "A40": (149.7, 37.4),
    "B200": (2250.0, 75.0),
    "GB200": (2500.0, 80.0),
    "GH200": (989.0, 67.0),
    "H100": (989.0, 67.0),
    "H100 NVL": (835.0, 60.0),
    "H100 PCIe": (756.0, 51.0),
    "H20": (148.0, 44.0),
    "H200": (989.0, 67.0),
    "L4": (121.0, 30.3),
    "L40": (181.0, 90.5),
    "L40S": (362.0, 91.6),
    "MI300X": (1307.4, 163.4),
    "MI325X": (1307.4, 163.4),
    "RTX 3090": (71.0, 35.6),
    "RTX 4090": (165.2, 82.6),
    "RTX 5090": (209.5, 104.8),
    "RTX A6000": (154.8, 38.7),
    "T4": (65.0, 8.1),
    "V100-SXM2": (125.0, 15.7),
}
_REDUCED = re.compile(r"\bMIG\b|Laptop|Max-Q|(?<=\d) (?:D|Ti)\b")
"""Marks the name of a device that has not all of the cores."""


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """Returns the floating-point operations per second that ``device`` computes at most in ``dtype`` ("bf16", "fp16" or
    "fp32"); None where that is not known, as for a CPU. A multiplication and an addition are two operations."""
    if device.type != "cuda":
        return None
    return peak_flops_of(torch.cuda.get_device_name(device), dtype)


def peak_flops_of(name: str, dtype: str) -> float | None:
    """Returns the same for the device of this ``name``, such as ``NVIDIA A100-SXM4-80GB``."""
    if _REDUCED.search(name):
        return None
    matches = [part for part in _PEAKS if re.search(rf"\b{re.escape(part)}\b", name)]
    if not matches:
        return None
    return 1e12 * _PEAKS[max(matches, key=len)][dtype == "fp32"]
