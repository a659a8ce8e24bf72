"""Checks that a checkpoint is of this run, or differs only in what ``allow_changes`` names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arctic_training.config.sections.changes import Change, differences, resume_relevant_config
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.types import ResumeError


class CompatibilityGuard:
    """Compares runs by their recipe, as far as it decides what is trained, and by fingerprints of what they read."""

    def __init__(self, config: TrainerConfig, fingerprints: Mapping[str, Any]) -> None:
        """``fingerprints``, such as ``data.samples``, are compared like keys of the recipe, and named like them."""
        self.config, self.recipe, self.fingerprints = config, resume_relevant_config(config), dict(fingerprints)

    @property
    def run_description(self) -> dict[str, Any]:
        """The entry ``run`` of a checkpoint's manifest: ``recipe`` and ``prints``, the fingerprints."""
        return {"recipe": self.recipe, "prints": self.fingerprints}

    @property
    def ignores_stop(self) -> bool:
        """Returns whether the run continues where it was stopped for good, though nothing of it has changed."""
        return "stop" in self.config.allow_changes

    def check_compatible(self, folder: Path, manifest: Mapping[str, Any]) -> list[Change]:
        """Returns the changes since the checkpoint was saved, all of them allowed. Raises `ResumeError` for another."""
        saved = manifest.get("run")
        recipe, prints = (saved.get("recipe"), saved.get("prints")) if isinstance(saved, dict) else (None, None)
        if not isinstance(recipe, dict) or not isinstance(prints, dict):
            raise ResumeError(f"{folder} does not say which run it is of")
        changes = list(differences(recipe, self.config, self.recipe))
        changes += [
            Change(name, prints.get(name), now) for name, now in self.fingerprints.items() if prints.get(name) != now
        ]
        allowed = self.config.allow_changes
        if refused := [change for change in changes if not change.named_by(allowed)]:
            keys = ", ".join(change.key for change in refused)
            lines = [f"{folder} is of another run; differences:", *(f"  {change}" for change in refused)]
            raise ResumeError("\n".join([*lines, f"to resume nevertheless: allow_changes: [{keys}]"]))
        return changes
