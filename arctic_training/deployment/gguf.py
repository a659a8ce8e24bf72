"""Converts an exported model to GGUF, with the converter of llama.cpp and its package gguf."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from arctic_training.errors.types import InputError, MissingDependencyError

_SCRIPT = "convert_hf_to_gguf.py"
_LIBRARIES = ("gguf", "sentencepiece")
"""Packages that the script imports beside those of this package; the extra ``gguf`` installs them."""
FOLDER = "LLAMA_CPP"
"""The environment variable with the folder of llama.cpp."""


def find_converter() -> Path:
    """Returns llama.cpp's script that converts a folder of transformers: in the folder that ``$LLAMA_CPP`` names, or on
    the path of programs. Raises `MissingDependencyError` where it is not, or a package that it imports is missing."""
    folder = os.environ.get(FOLDER)
    places = [Path(folder).expanduser() / _SCRIPT] if folder else []
    places += [Path(program) for program in [shutil.which(_SCRIPT)] if program]
    script = next((one for one in places if one.is_file()), None)
    if script is None:
        raise MissingDependencyError(
            f"--gguf needs {_SCRIPT} of llama.cpp: git clone https://github.com/ggml-org/llama.cpp, and set "
            f"{FOLDER} to its folder"
        )
    if missing := [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]:
        raise MissingDependencyError(f"--gguf needs {' and '.join(missing)}: pip install 'arctic_training[gguf]'")
    return script


def gguf_path(folder: Path, outtype: str) -> Path:
    """Returns the path of the file that is converted from ``folder``."""
    return folder.absolute().parent / f"{folder.absolute().name}-{outtype}.gguf"


def convert_to_gguf(folder: Path, converter: Path, outtype: str) -> Path:
    """Converts the model in ``folder`` and returns the path of the file, which lies beside it: in the same folder
    transformers would take its tokenizer for that of the file.

    ``outtype`` is a type of weights that the converter knows, such as f16, bf16 or q8_0. Raises `InputError` when it
    cannot convert the model.
    """
    target = gguf_path(folder, outtype)
    command = [sys.executable, str(converter), str(folder), "--outfile", str(target), "--outtype", outtype]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode or not target.is_file():
        target.unlink(missing_ok=True)
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise InputError(f"{folder}: {_SCRIPT} could not convert it: {lines[-1] if lines else done.returncode}")
    return target
