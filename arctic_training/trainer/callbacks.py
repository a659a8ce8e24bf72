"""The callbacks of a run: those of its recipe, and those that every run has."""

from typing import cast

from arctic_training.callback.callback import Callback
from arctic_training.callback.hooks import Hooked
from arctic_training.callback.kill_switch import KillSwitchConfig
from arctic_training.callback.memory_profiler import MemoryProfilerConfig
from arctic_training.callback.nan_guard import NanGuardConfig
from arctic_training.callback.time_limit import TimeLimitConfig
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.registry import numbered


def build_callbacks(trainer: TrainerView, sections: list[ComponentConfig]) -> dict[str, Callback[ComponentConfig]]:
    """Returns the recipe's callbacks and those of every run by name; the second of a type is ``type#2``."""
    config = trainer.config
    guard = NanGuardConfig(type="nan_guard", policy=config.nan_guard, limit=config.nan_guard_limit)
    limit = TimeLimitConfig(type="time_limit", limit=config.time_limit)
    switch = KillSwitchConfig(type="kill_switch", path=config.kill_switch_path or trainer.run_dir / "kill_switch")
    options = {"output_dir": config.mem_profiler_dir, "max_entries": config.mem_profiler_max_entries}
    memory = MemoryProfilerConfig(type="memory_profiler", mode=config.mem_profiler or "step", **options)
    every = [guard, *sections, *([memory] if config.mem_profiler else []), switch, limit]
    callbacks = {
        name: Callback[ComponentConfig].registered(section.type)(section)
        for name, section in zip(numbered(section.type for section in every), every, strict=True)
    }
    for name, callback in callbacks.items():
        callback.label = name
        callback.attach(cast(Hooked, trainer))
    return callbacks
