"""Whether a run may go on from a checkpoint: it is the run that was saved, or differs in what is named as wanted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arctic_training.config.sections.changes import Change, differences, resume_relevant_config
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.types import ResumeError


class CompatibilityGuard:
    """Knows what a run is made of: its recipe, as far as it decides what is trained, and prints of what it reads."""

    def __init__(self, config: TrainerConfig, fingerprints: Mapping[str, Any]) -> None:
        """``fingerprints`` must be equal beside the recipe; their names are those that ``allow_changes`` knows."""
        self.config, self.recipe, self.fingerprints = config, resume_relevant_config(config), dict(fingerprints)

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of the run that wrote it."""
        return {"recipe": self.recipe, "prints": self.fingerprints}

    @property
    def ignores_stop(self) -> bool:
        """Whether the run trains on where it was stopped for good, though nothing of it has changed."""
        return "stop" in self.config.allow_changes

    def check_compatible(self, folder: Path, manifest: Mapping[str, Any]) -> list[Change]:
        """The changes since the checkpoint was saved, all of them wanted. Raises `ResumeError` for any other."""
        saved = manifest.get("run")
        recipe, there = (saved.get("recipe"), saved.get("prints")) if isinstance(saved, dict) else (None, None)
        if not isinstance(recipe, dict) or not isinstance(there, dict):
            raise ResumeError(f"{folder} does not say of what run it is")
        changes = list(differences(recipe, self.config, self.recipe))
        changes += [
            Change(name, there.get(name), now) for name, now in self.fingerprints.items() if there.get(name) != now
        ]
        wanted = self.config.allow_changes
        if refused := [change for change in changes if not change.named_by(wanted)]:
            keys = ", ".join(change.key for change in refused)
            lines = [f"{folder} is of another run; what differs:", *(f"  {change}" for change in refused)]
            raise ResumeError("\n".join([*lines, f"if that is wanted: allow_changes: [{keys}]"]))
        return changes
