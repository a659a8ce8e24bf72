"""A folder of checkpoints on disk: written aside, sealed by a manifest, renamed, then named by ``latest``.

    <output_dir>/step_<N>/...            one whole checkpoint: weights after N updates
    <output_dir>/step_<N>/manifest.json  what it is, and the size and SHA-256 of each of its files; written last
    <output_dir>/latest                  the name of the one to go on from; moved last of all
    <output_dir>/best                    the name of the best of them, when the best are kept
    <output_dir>/.aside-step_<N>         one being written, or the wreck of one whose writer was killed
    <output_dir>/.replaced-step_<N>      an old one while a new one of the same step takes its place
    <output_dir>/.removed-<k>-step_<N>   one that is to go; what the disk does not let go is tried again

One process calls what changes the disk; every process may read.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arctic_training.errors.types import CheckpointError

MANIFEST, LATEST = "manifest.json", "latest"
FORMAT = 3
"""Version of the layout. A folder of a later one is refused."""

_STEP = re.compile(r"step_(\d+)")
_ASIDE, _REPLACED, _REMOVED = ".aside-", ".replaced-", ".removed-"

_REFUSAL = re.compile(r"I/O error|os error|PytorchStreamWriter|iostream|unexpected pos|No space left", re.IGNORECASE)

Sums = dict[str, dict[str, Any]]
"""Size and SHA-256 of each file, by its path inside the folder."""


def list_steps(root: Path) -> list[int]:
    """The steps that have a folder, whole or not, in the order of their numbers."""
    if not root.is_dir():
        return []
    found = [_STEP.fullmatch(one.name) for one in root.iterdir() if one.is_dir()]
    return sorted(int(match[1]) for match in found if match)


def step_folder(root: Path, step: int) -> Path:
    return root / f"step_{step}"


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is one by its name or its manifest, whole or not."""
    return _STEP.fullmatch(path.name) is not None or (path / MANIFEST).exists()


def remove_incomplete(root: Path) -> list[str]:
    """Remove what killed saves left, and put back what one was about to replace; returns what was found.

    Raises OSError for what cannot be removed, when all the rest is.
    """
    if not root.is_dir():
        return []
    found = sorted(one for one in root.iterdir() if one.name.startswith((_ASIDE, _REPLACED, _REMOVED)))
    for wreck in found:
        whole = root / wreck.name.removeprefix(_REPLACED)
        if wreck.name.startswith(_REPLACED) and not whole.exists():
            wreck.rename(whole)
    _remove_all(found)
    return [wreck.name for wreck in found]


def create_temp_dir(root: Path, step: int) -> Path:
    """An empty folder to write into. Raises OSError."""
    aside = root / f"{_ASIDE}step_{step}"
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    return aside


def remove_temp_dir(aside: Path) -> None:
    """Give the space of a failed attempt back."""
    shutil.rmtree(aside, ignore_errors=True)


def fsync_and_hash(folder: Path, names: Iterable[str]) -> Sums:
    """Flush these files to disk and sum them up."""
    sums: Sums = {}
    for name in names:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        sums[name] = {"size": (folder / name).stat().st_size, "sha256": digest}
    return sums


def list_files(folder: Path) -> list[str]:
    """Every file below ``folder`` but its manifest, by path."""
    every = (one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file())
    return sorted(name for name in every if name != MANIFEST)


def commit(aside: Path, step: int, sums: Sums, facts: Mapping[str, Any]) -> Path:
    """Seal what was written aside, put it in its place, and let ``latest`` name it. Raises OSError."""
    root, final = aside.parent, step_folder(aside.parent, step)
    manifest = {"format": FORMAT, "step": step, **facts, "files": sums}
    _write(aside / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for folder in {(aside / name).parent for name in sums} | {aside}:
        _flush(folder)
    replaced = root / f"{_REPLACED}{final.name}"
    if replaced.exists():
        _hide(replaced)
    if final.exists():
        final.rename(replaced)
    aside.rename(final)
    _flush(root)
    atomic_write(root / LATEST, final.name + "\n")
    return final


def atomic_write(path: Path, text: str, root: Path | None = None) -> None:
    """Let the file ``path`` hold ``text``, or what it held before, whatever happens meanwhile. Raises OSError."""
    aside = (root or path.parent) / f"{_ASIDE}{path.name}"
    _write(aside, text)
    aside.replace(path)
    _flush(path.parent)


def update_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Put more facts into a checkpoint's manifest. Raises OSError, and `CheckpointError` when it is none."""
    manifest = {**read_manifest(folder), **facts}
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n", folder.parent)


def remove(root: Path, step: int) -> None:
    """Take a checkpoint away, for `remove_discarded` to remove. Raises OSError."""
    _hide(step_folder(root, step))


def remove_discarded(root: Path) -> None:
    """Remove what was replaced or taken away; raises OSError for what the disk does not let go, when all the rest is
    removed."""
    for one in list(root.iterdir()):
        if one.name.startswith(_REPLACED) and (root / one.name.removeprefix(_REPLACED)).exists():
            _hide(one)
    _remove_all(one for one in list(root.iterdir()) if one.name.startswith(_REMOVED))


def latest_step(root: Path) -> int | None:
    """The step that ``latest`` names; None when there is no such file, or it names none."""
    try:
        match = _STEP.fullmatch((root / LATEST).read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return None
    return int(match[1]) if match else None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises `CheckpointError` when ``folder`` is no checkpoint of a format that is known."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no whole checkpoint: it has no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{path} is no manifest of a checkpoint")
    if manifest.get("format") != FORMAT:
        older = isinstance(told := manifest.get("format"), int) and told < FORMAT
        mend = "go on with the version that wrote it" if older else "a newer version may read it"
        raise CheckpointError(f"{folder} has format {told}; this version reads format {FORMAT}: {mend}")
    sealed = all(isinstance(one, dict) and one.keys() >= {"size", "sha256"} for one in manifest["files"].values())
    if not sealed or not isinstance(manifest.get("step"), int):
        raise CheckpointError(f"{path} is no manifest of a checkpoint")
    return manifest


def verify(folder: Path, *, sums: bool = True, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None when it is whole. Of several callers each sums up its part of it."""
    try:
        files = read_manifest(folder)["files"]
    except CheckpointError as error:
        return str(error)
    for name, told in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if (size := path.stat().st_size) != told["size"]:
            return f"{path} has {size} bytes instead of {told['size']}"
    for name, told in sorted(files.items())[part::parts] if sums else ():
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != told["sha256"]:
                return f"{folder / name} was altered: its SHA-256 is not that of the manifest"
    return None


@contextmanager
def disk_errors() -> Iterator[None]:
    """What torch and safetensors raise for a disk that refuses, as the OSError it was."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or not _REFUSAL.search(str(error)):
            raise
        raise OSError(str(error)) from error


def free_space_hint(root: Path) -> str:
    """How much space is left where ``root`` is, as the end of a sentence about an error there."""
    there = next((one for one in (root, *root.parents) if one.is_dir()), None)
    if there is None:
        return ""
    free = shutil.disk_usage(there).free
    return f" (No space left: {free:,} bytes are free)" if free < 2**20 else f" ({free / 2**30:,.1f} GiB are free)"


def _hide(folder: Path) -> None:
    """Out of sight first: a removal that is killed must not leave half a checkpoint under a good name."""
    number, name = 0, folder.name.removeprefix(_REPLACED)
    while (doomed := folder.parent / f"{_REMOVED}{number}-{name}").exists():
        number += 1
    folder.rename(doomed)


def _remove_all(paths: Iterable[Path]) -> None:
    refused: OSError | None = None
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            refused = refused or error
    if refused is not None:
        raise refused


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """A rename is on disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
