"""Whether a run may go on from a checkpoint: it is the run that was saved, or differs in what is named as wanted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arctic_training.config.checks.changes import Change, binding, differences
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.types import ResumeError


class Guard:
    """Knows what a run is made of: its recipe, as far as it decides what is trained, and prints of what it reads."""

    def __init__(self, config: TrainerConfig, prints: Mapping[str, Any]) -> None:
        """``prints`` are what must be equal beside the recipe, under the names that ``allow_changes`` has for them."""
        self.config, self.recipe, self.prints = config, binding(config), dict(prints)

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of the run that wrote it."""
        return {"recipe": self.recipe, "prints": self.prints}

    @property
    def passes_stops(self) -> bool:
        """Whether the run trains on where it was stopped for good, though nothing of it has changed."""
        return "stop" in self.config.allow_changes

    def admit(self, folder: Path, manifest: Mapping[str, Any]) -> list[Change]:
        """The changes since the checkpoint was saved, all of them wanted. Raises `ResumeError` for any other."""
        saved = manifest.get("run")
        recipe, there = (saved.get("recipe"), saved.get("prints")) if isinstance(saved, dict) else (None, None)
        if not isinstance(recipe, dict) or not isinstance(there, dict):
            raise ResumeError(f"{folder} does not say of what run it is")
        changes = list(differences(recipe, self.config, self.recipe))
        changes += [Change(name, there.get(name), now) for name, now in self.prints.items() if there.get(name) != now]
        wanted = self.config.allow_changes
        if refused := [change for change in changes if not change.named_by(wanted)]:
            keys = ", ".join(change.key for change in refused)
            lines = [f"{folder} is of another run; what differs:", *(f"  {change}" for change in refused)]
            raise ResumeError("\n".join([*lines, f"if that is wanted: allow_changes: [{keys}]"]))
        return changes
