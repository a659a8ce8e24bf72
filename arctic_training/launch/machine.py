"""Lists what this machine has for a run, libraries, devices, compilers, memory and disk, and what is missing."""

import os
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from arctic_training.registry import kinds, names, words

PACKAGE = "arctic_training"
_PURPOSES = {
    "eval": "the evaluator `lm_eval` and the scorer `math`",
    "gguf": "`export --gguf`, beside llama.cpp",
    "notebook": "the bar of a run in a notebook",
    "projects": "the data of the project digits",
    "quickstart": "the quick start of projects/quickstart",
}
"""What those optional extras of the package are for that do not have the name of a class."""
_DEVELOPERS = {"bench", "dev", "docs"}
PROGRAMS = {
    "g++": "DeepSpeed's own operators, such as the optimizer `cpu_adam`",
    "ninja": "DeepSpeed's own operators, such as the optimizer `cpu_adam`",
    "nvcc": "DeepSpeed's own operators on a GPU, such as the optimizer `fused_adam`",
}
"""Programs that build what is compiled at its first use."""
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HOME", "HF_HUB_OFFLINE", "ARCTIC_TRAINING_CACHE")
_LEAST_SHARED_MEMORY = 1 << 30


class Finding(NamedTuple):
    """A line of the report."""

    name: str
    state: Literal["ok", "missing", "optional", "note"]
    """``missing`` is what every run needs, ``optional`` what some runs need."""
    detail: str


def examine() -> dict[str, list[Finding]]:
    """Returns the findings of every section of the report. Imports torch, and starts no process group."""
    return {
        "versions": list(_libraries()),
        "devices": list(_devices()),
        "compilers": list(_compilers()),
        "memory and disk": list(_room()),
        "optional extras": list(_extras()),
        "environment": [Finding(name, "note", os.environ[name]) for name in _VARIABLES if name in os.environ],
    }


def _libraries() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield Finding(PACKAGE, "ok", metadata.version(PACKAGE))
    for requirement in _requirements():
        if requirement.marker is None:
            yield _installed(requirement, "missing")


def _extras() -> Iterator[Finding]:
    extras = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    for extra in sorted({*extras} - _DEVELOPERS):
        needed = [one for one in _requirements() if one.marker is not None and one.marker.evaluate({"extra": extra})]
        lacking = [one.name for one in needed if _installed(one, "optional").state != "ok"]
        purpose = purpose_of(extra)
        if lacking:
            hint = f"missing {', '.join(lacking)}: pip install '{PACKAGE}[{extra}]'"
            yield Finding(extra, "optional", f"{purpose}; {hint}" if purpose else hint)
        else:
            yield Finding(extra, "ok", purpose)


def purpose_of(extra: str) -> str:
    """Returns what an optional extra of the package is for; empty where that is not known."""
    kind = next((kind for kind in kinds() if extra in names(kind)), "")
    return _PURPOSES.get(extra, f"the {words(kind)} `{extra}`" if kind else "")


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires(PACKAGE) or []]


def _installed(requirement: Requirement, absent: Literal["missing", "optional"]) -> Finding:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(requirement.name, absent, f"not installed; expected {requirement.specifier or 'any version'}")
    if requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, "ok", version)
    return Finding(requirement.name, absent, f"{version}; expected {requirement.specifier}")


def _devices() -> Iterator[Finding]:
    import torch

    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    yield Finding("cpu", "ok", f"cores for this process: {cores}; threads of torch: {threads}")
    if not torch.cuda.is_available():
        built = (
            f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for CPUs only"
        )
        yield Finding("gpu", "note", f"none is usable; {built}. Runs use the CPU")
        return
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: set model.dtype to fp16 or fp32"
        yield Finding(f"cuda:{number}", "ok", f"{facts.name}, {_size(facts.total_memory)}, {bf16}")
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    yield Finding("cuda", "ok", f"CUDA {torch.version.cuda}, NCCL {nccl}")


def _compilers() -> Iterator[Finding]:
    import torch

    for program, purpose in PROGRAMS.items():
        if program == "nvcc" and not torch.cuda.is_available():
            continue
        path = shutil.which(program)
        if path is None:
            yield Finding(program, "optional", f"not on the PATH; needed for {purpose}")
        else:
            yield Finding(program, "ok", f"{_version(path)} ({path})")


def _version(program: str) -> str:
    """Returns the first version number that ``program --version`` prints."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "does not start"
    number = re.search(r"\d+(\.\d+)+", done.stdout)
    return number[0] if number else "version unknown"


def _room() -> Iterator[Finding]:
    import psutil

    from arctic_training.data.preparation.cache import default_folder

    memory = psutil.virtual_memory()
    yield Finding("memory", "ok", f"{_size(memory.available)} free of {_size(memory.total)}")
    shared = Path("/dev/shm")
    if shared.is_dir():
        usage = shutil.disk_usage(shared)
        small = "" if usage.total >= _LEAST_SHARED_MEMORY else "; several processes may need more (docker --shm-size)"
        yield Finding("shared memory", "note" if small else "ok", f"{_free(shared)}{small}")
    for name, folder in (("this folder", Path.cwd()), ("data cache", default_folder())):
        existing = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
        writable = os.access(existing, os.W_OK | os.X_OK)
        state: Literal["ok", "missing"] = "ok" if writable else "missing"
        yield Finding(name, state, f"{folder}: {_free(existing) if writable else 'cannot be written to'}")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Finding("open files", "ok" if files >= 1024 else "note", f"{files} at once" if files > 0 else "no limit")


def _free(folder: Path) -> str:
    usage = shutil.disk_usage(folder)
    return f"{_size(usage.free)} free of {_size(usage.total)}"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 1000 else f"{count:.0f} TB"
