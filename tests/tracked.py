"""The files of the repository: what git tracks, and nothing that runs and builds have left beside them."""

import subprocess
from pathlib import Path

from tests.processes import ROOT


def tracked(*patterns: str) -> list[Path]:
    """Returns the tracked files that match a pattern of `pathlib.Path.glob` below the repository, sorted.

    In a copy without git every file is one of the repository.
    """
    files = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    if (ROOT / ".git").exists():
        # a checkout that belongs to another user is read all the same
        command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
        listed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode()
        files &= {ROOT / name for name in listed.split("\0")}
    return sorted(files)
