"""Logs metrics to MLflow."""

import re
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.logging import without_messages
from arctic_training.tracker.samples import ImageSamples, Samples, TextSamples
from arctic_training.tracker.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_PARAMS = 100
"""Parameters that a server takes at once."""
_MAX_LENGTH = 500
"""Characters of a parameter that every server takes."""


class MlflowConfig(ComponentConfig):
    """Options of the tracker `mlflow`."""

    libraries = {"mlflow": "arctic_training[mlflow]"}

    tracking_uri: str | None = None
    """The server, or a local store such as ``sqlite:///mlflow.db`` (default: ``MLFLOW_TRACKING_URI``, else MLflow's
    own)."""
    experiment: str = "arctic-training"
    """Experiment of the run; it is made where there is none."""
    name: str | None = None
    """Name of the run (default: that of the run folder)."""


class MlflowTracker(Tracker[MlflowConfig]):
    """Logs to a run of MLflow; a resumed run continues the same one."""

    name = "mlflow"
    _client: "MlflowClient"
    _run_id: str

    def files(self, run_dir: Path) -> list[Path]:
        return [run_dir / "mlflow_run_id"]

    def start(self, recipe: Mapping[str, object], run_dir: Path, step: int) -> None:
        from mlflow import MlflowClient  # which sets the level of its logger
        from mlflow.entities import Param

        (note,) = self.files(run_dir)
        name = self.config.experiment
        with without_messages("mlflow"):  # it tells of the tables of a new store
            client = self._client = MlflowClient(self.config.tracking_uri)
            if step and note.exists():
                self._run_id = note.read_text().strip()
                client.update_run(self._run_id, status="RUNNING")
                return
            existing = client.get_experiment_by_name(name)
            experiment = client.create_experiment(name) if existing is None else existing.experiment_id
            self._run_id = client.create_run(experiment, run_name=self.config.name or run_dir.name).info.run_id
            params = iter([Param(_key(path), str(value)[:_MAX_LENGTH]) for path, value in _flattened(recipe)])
            while some := list(islice(params, _MAX_PARAMS)):
                client.log_batch(self._run_id, params=some)
            note.write_text(f"{self._run_id}\n")

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, [Metric(_key(name), value, now, step) for name, value in values.items()])

    def log_samples(self, name: str, samples: Samples, step: int) -> None:
        file = f"{name}/step_{step}"
        if isinstance(samples, ImageSamples):
            self._client.log_image(self._run_id, samples.grid.numpy(), artifact_file=f"{file}.png")
        elif isinstance(samples, TextSamples):
            self._client.log_dict(self._run_id, {"rows": [dict(row) for row in samples.rows]}, f"{file}.json")

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def _key(name: str) -> str:
    """Returns ``name`` with the characters that MLflow takes only."""
    return re.sub(r"[^\w\-. /]", "_", name)


def _flattened(recipe: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields the values of the recipe by their paths, such as ``optimizer.lr``."""
    parts = recipe.items() if isinstance(recipe, Mapping) else enumerate(recipe) if isinstance(recipe, list) else None
    if parts is None:
        yield prefix, recipe
        return
    for key, value in parts:
        yield from _flattened(value, f"{prefix}.{key}" if prefix else str(key))
