"""Checkpoints on disk: written to a temporary folder, completed by a manifest, renamed, then named by ``latest``.

    <output_dir>/step_<N>/...            a complete checkpoint: weights after N steps
    <output_dir>/step_<N>/manifest.json  what it is, and the size and SHA-256 of each of its files; written last
    <output_dir>/latest                  the name of the one to resume from; updated last of all
    <output_dir>/best                    the name of the best of them, when the best are kept
    <output_dir>/.aside-step_<N>         one being written, or incomplete because its writer was killed
    <output_dir>/.replaced-step_<N>      an old one while a new one of the same step takes its place
    <output_dir>/.removed-<k>-step_<N>   one that is being removed; what the disk refuses is tried again

One process calls what changes the disk; every process may read.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from arctic_training.errors.types import CheckpointError

MANIFEST, LATEST, BEST = "manifest.json", "latest", "best"
FORMAT = 3
"""Version of the layout. Folders of other versions are refused."""

_STEP = re.compile(r"step_(\d+)")
_TEMP, _REPLACED, _REMOVED = ".aside-", ".replaced-", ".removed-"

_DISK_ERROR = re.compile(r"I/O error|os error|PytorchStreamWriter|iostream|unexpected pos|No space left", re.IGNORECASE)

FileHashes = dict[str, dict[str, Any]]
"""``size`` in bytes and ``sha256`` of each file, by its path inside the folder."""


def list_steps(root: Path) -> list[int]:
    """Returns the steps that have a folder, complete or not, in ascending order."""
    if not root.is_dir():
        return []
    matches = [_STEP.fullmatch(one.name) for one in root.iterdir() if one.is_dir()]
    return sorted(int(match[1]) for match in matches if match)


def newest_first(root: Path) -> list[int]:
    """Returns the steps in the order in which the newest is looked for: what ``latest`` names, earlier and later ones.

    Later ones are of another run, in whose folder this one began anew.
    """
    named = named_step(root)
    return sorted(list_steps(root), key=lambda step: (named is None or step <= named, step), reverse=True)


def step_folder(root: Path, step: int) -> Path:
    """Returns the folder of a step's checkpoint."""
    return root / f"step_{step}"


def is_checkpoint(path: Path) -> bool:
    """Returns whether ``path`` is one by its name or its manifest, complete or not."""
    return _STEP.fullmatch(path.name) is not None or (path / MANIFEST).exists()


def remove_incomplete(root: Path) -> list[str]:
    """Removes what killed saves left, restores what one was about to replace, and returns the names of what was left.

    Raises OSError for what cannot be removed, after removing the rest.
    """
    if not root.is_dir():
        return []
    left = sorted(one for one in root.iterdir() if one.name.startswith((_TEMP, _REPLACED, _REMOVED)))
    for folder in left:
        original = root / folder.name.removeprefix(_REPLACED)
        if folder.name.startswith(_REPLACED) and not original.exists():
            folder.rename(original)
    _remove_all(left)
    return [folder.name for folder in left]


def temp_dir(root: Path, step: int) -> Path:
    """Returns the folder into which the checkpoint of a step is written before it is complete."""
    return root / f"{_TEMP}{step_folder(root, step).name}"


def create_temp_dir(root: Path, step: int) -> Path:
    """Creates an empty `temp_dir`. Raises OSError."""
    temp = temp_dir(root, step)
    if temp.exists():
        shutil.rmtree(temp)
    temp.mkdir(parents=True)
    return temp


def fsync_and_hash(folder: Path, names: Iterable[str]) -> FileHashes:
    """Flushes these files to disk and returns their sizes and hashes. Raises OSError."""
    hashes: FileHashes = {}
    names = list(names)
    reset_permissions(folder, names)
    for name in names:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        hashes[name] = {"size": (folder / name).stat().st_size, "sha256": digest}
    return hashes


def reset_permissions(folder: Path, names: Iterable[str]) -> None:
    """Gives these files the permissions that the process gives a new file: safetensors lets only the owner read."""
    mode = 0o666 & ~umask()
    for name in names:
        with suppress(OSError):  # of a file system without permissions
            (folder / name).chmod(mode)


def umask() -> int:
    """Returns the permissions that a new file of this process does not have.

    It is read from the kernel: `os.umask` sets another one meanwhile, which files of other threads would have.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    mask = re.search(r"^Umask:\s*([0-7]+)$", status, re.MULTILINE)
    return int(mask[1], 8) if mask else 0o022


def list_files(folder: Path) -> list[str]:
    """Returns the paths of all files below ``folder`` except its manifest."""
    every = (one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file())
    return sorted(name for name in every if name != MANIFEST)


def commit(temp: Path, step: int, hashes: FileHashes, entries: Mapping[str, Any]) -> Path:
    """Writes the manifest (``entries`` and the files), renames the temporary folder to its place, and updates
    ``latest``. Returns the folder. Raises OSError."""
    root, final = temp.parent, step_folder(temp.parent, step)
    manifest = {"format": FORMAT, "step": step, **entries, "files": hashes}
    _write(temp / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for folder in {(temp / name).parent for name in hashes} | {temp}:
        _flush(folder)
    replaced = root / f"{_REPLACED}{final.name}"
    if replaced.exists():
        _mark_removed(replaced)
    if final.exists():
        final.rename(replaced)
    temp.rename(final)
    _flush(root)
    atomic_write(root / LATEST, final.name + "\n")
    return final


def atomic_write(path: Path, text: str, root: Path | None = None) -> None:
    """Writes ``text`` to ``path`` so that it holds the old or the new text, whatever happens. Raises OSError.

    The temporary file is written in ``root``, by default the folder of ``path``.
    """
    temp = (root or path.parent) / f"{_TEMP}{path.name}"
    _write(temp, text)
    temp.replace(path)
    _flush(path.parent)


def update_manifest(folder: Path, entries: Mapping[str, Any]) -> None:
    """Adds entries to a checkpoint's manifest. Raises OSError, and `CheckpointError` when it has none."""
    manifest = {**read_manifest(folder), **entries}
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n", folder.parent)


def remove(root: Path, step: int) -> None:
    """Marks a checkpoint as removed, for `remove_discarded` to delete. Raises OSError."""
    _mark_removed(step_folder(root, step))


def remove_discarded(root: Path) -> None:
    """Deletes what was replaced or removed. Raises OSError for what the disk refuses, after deleting the rest."""
    for one in list(root.iterdir()):
        if one.name.startswith(_REPLACED) and (root / one.name.removeprefix(_REPLACED)).exists():
            _mark_removed(one)
    _remove_all(one for one in list(root.iterdir()) if one.name.startswith(_REMOVED))


def named_step(root: Path, file: str = LATEST) -> int | None:
    """Returns the step that ``latest`` names, or another ``file``; None when it is missing or names none."""
    try:
        match = _STEP.fullmatch((root / file).read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return None
    return int(match[1]) if match else None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest. Raises `CheckpointError` when ``folder`` is not a complete checkpoint of a known format."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a complete checkpoint: it has no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{path} is not the manifest of a checkpoint")
    if manifest.get("format") != FORMAT:
        older = isinstance(version := manifest.get("format"), int) and version < FORMAT
        hint = "resume with the version that wrote it" if older else "a newer version may read it"
        raise CheckpointError(f"{folder} has format {version}; this version reads format {FORMAT}: {hint}")
    has_hashes = all(isinstance(one, dict) and one.keys() >= {"size", "sha256"} for one in manifest["files"].values())
    if not has_hashes or not isinstance(manifest.get("step"), int):
        raise CheckpointError(f"{path} is not the manifest of a checkpoint")
    return manifest


def verify(folder: Path, *, hashes: bool = True, part: int = 0, parts: int = 1) -> str | None:
    """Returns what is wrong with a checkpoint, or None when it is complete.

    Presence and size of every file are checked, and with ``hashes`` the SHA-256 of those of ``part`` of ``parts``.
    """
    try:
        files = read_manifest(folder)["files"]
    except CheckpointError as error:
        return str(error)
    for name, entry in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if (size := path.stat().st_size) != entry["size"]:
            return f"{path} has {size} bytes instead of {entry['size']}"
    for name, entry in sorted(files.items())[part::parts] if hashes else ():
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return f"{folder / name} was changed: its SHA-256 is not that of the manifest"
    return None


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raises as OSError what torch and safetensors raise for a disk that is full, read-only or gone."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or not _DISK_ERROR.search(str(error)):
            raise
        raise OSError(str(error)) from error


def free_space_hint(root: Path) -> str:
    """Returns the free space of the disk of ``root``, as the end of an error message."""
    existing = next((one for one in (root, *root.parents) if one.is_dir()), None)
    if existing is None:
        return ""
    free = shutil.disk_usage(existing).free
    return f" (No space left: {free:,} bytes are free)" if free < 2**20 else f" ({free / 2**30:,.1f} GiB are free)"


def _mark_removed(folder: Path) -> None:
    """Renames first: a removal that is killed must not leave half a checkpoint under its name."""
    number, name = 0, folder.name.removeprefix(_REPLACED)
    while (doomed := folder.parent / f"{_REMOVED}{number}-{name}").exists():
        number += 1
    folder.rename(doomed)


def _remove_all(paths: Iterable[Path]) -> None:
    failure: OSError | None = None
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Flushes a folder to disk, and with it the renames in it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
