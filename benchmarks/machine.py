"""The machine a run was made on."""

import os
import platform
from pathlib import Path


def describe() -> dict[str, str]:
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        values = {}
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            values.setdefault(key.strip(), value.strip())
        if "model name" in values:
            family = f" (family {values['cpu family']}, model {values['model']})" if "cpu family" in values else ""
            return values["model name"] + family
    return platform.processor() or platform.machine()


def _memory() -> str:
    info = Path("/proc/meminfo")
    return f"{int(info.read_text().split()[1]) / 2**20:.0f} GiB" if info.exists() else "unknown"
