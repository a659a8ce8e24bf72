"""TensorBoard, MLflow, Trackio, SwanLab: what their readers find of a run that ended by an error and was resumed."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arctic_training import ImageSamples, Sampler, SamplerConfig, TextSamples, get_config
from arctic_training.launch.worker import run
from tests.contract.cases import recipe

TEXTS = [{"prompt": "one *and* one", "completion": "two"}, {"prompt": "#", "completion": "<b>"}]
PICTURE = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).reshape(2, 3, 4, 3)


class EndsConfig(SamplerConfig):
    at: int = 0


class Ends(Sampler[EndsConfig]):
    """Writes samples, and is interrupted at a step."""

    name = "ends_for_the_trackers"
    config_type = EndsConfig

    def post_after_update(self, trainer: Any) -> None:
        super().post_after_update(trainer)
        if trainer.progress.step == self.config.at:
            raise KeyboardInterrupt

    def sample(self, trainer: Any) -> Any:
        trainer.log_samples("pictures", ImageSamples(PICTURE))
        return TextSamples(TEXTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of five steps: interrupted after the third, and resumed from the second."""
    root = tmp_path_factory.mktemp("trackers")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(root)  # where MLflow keeps the files of a local store
    monkeypatch.setenv("TRACKIO_DIR", str(root / "trackio"))
    save = {"type": "deepspeed", "auto_resume": True, "save_every_n_steps": 2}
    for at, code in ((3, 130), (0, 0)):
        settings = recipe("gan", root / "files", output_dir=str(root / "run"), checkpoint=save)
        settings = {key: value for key, value in settings.items() if key != "epochs"} | {"train_iters": 5}
        settings["trackers"] = [
            "tensorboard",
            {"type": "mlflow", "tracking_uri": store(root), "experiment": "mine"},
            {"type": "trackio", "project": "mine"},
            {"type": "swanlab", "mode": "offline"},
        ]
        settings["callbacks"] = [{"type": Ends.name, "every": 2, "at": at}]
        settings["allow_changes"] = ["callbacks"]
        assert run(get_config(settings)) == code
    yield root
    monkeypatch.undo()


def store(root: Path) -> str:
    return f"sqlite:///{root}/mlflow.db"


def logged(root: Path, *, discarded: bool) -> dict[tuple[str, int], float]:
    """Returns what the run recorded last of every metric and step; with ``discarded``, of step 3 before it was resumed
    from step 2 too."""
    lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    if not discarded:
        del lines[[line["step"] for line in lines].index(3)]
    values = {(name, line["step"]): value for line in lines for name, value in line.items()}
    kept = {key: value for key, value in values.items() if key[0] not in ("step", "time")}
    assert {step for _, step in kept} == {1, 2, 3, 4, 5} and len(kept) > 30
    return kept


def test_tensorboard_reads_one_run(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "run" / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    scalars = [(name, event) for name in read.Tags()["scalars"] for event in read.Scalars(name)]
    stored = {(name, event.step): event.value for name, event in scalars}
    assert len(stored) == len(scalars)  # no step twice
    assert stored == {key: pytest.approx(value, rel=1e-6) for key, value in logged(folder, discarded=False).items()}
    events = read.Tensors(f"{Ends.name}/text_summary")
    texts = {event.step: event.tensor_proto.string_val[0].decode() for event in events}
    assert texts.keys() == {2, 4, 5} and "    prompt: one *and* one\n    completion: two" in texts[4]
    recipe_text = read.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    train_iters: 5" in recipe_text
    (image, *_) = read.Images("pictures")
    assert (image.height, image.width) == (3, 9)


def test_mlflow_reads_one_run(folder: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store(folder))
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (stored,) = client.search_runs([experiment.experiment_id])
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "run")
    values = logged(folder, discarded=True)
    histories = {name: client.get_metric_history(stored.info.run_id, name) for name in stored.data.metrics}
    assert {(name, one.step): one.value for name, all_of in histories.items() for one in all_of} == values
    assert stored.data.params["train_iters"] == "5" and stored.data.params["optimizer.type"] == "adamw"
    artifacts = [one.path for one in client.list_artifacts(stored.info.run_id, Ends.name)]
    assert sorted(artifacts) == [f"{Ends.name}/step_{step}.json" for step in (2, 4, 5)]
    saved = Path(client.download_artifacts(stored.info.run_id, artifacts[0], str(folder)))
    assert json.loads(saved.read_text()) == {"rows": TEXTS}
    from PIL import Image

    picture = Path(client.download_artifacts(stored.info.run_id, "pictures/step_4.png", str(folder)))
    assert np.array_equal(np.asarray(Image.open(picture)), ImageSamples(PICTURE).grid.numpy())


def test_trackio_reads_one_run(folder: Path) -> None:
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import MEDIA_DIR

    (stored,) = Api().runs("mine")
    assert stored.name == "run" and stored.config is not None and stored.config["optimizer"]["type"] == "adamw"
    rows = SQLiteStorage.get_logs("mine", "run", run_id=stored.id)
    values = {(name, row["step"]): value for row in rows for name, value in row.items() if isinstance(value, float)}
    assert values == logged(folder, discarded=True)
    tables = {row["step"]: row[Ends.name]["_value"] for row in rows if Ends.name in row}
    assert tables == dict.fromkeys((2, 4, 5), TEXTS)
    from PIL import Image

    (picture,) = [row["pictures"]["file_path"] for row in rows if row["step"] == 4 and "pictures" in row]
    assert np.array_equal(
        np.asarray(Image.open(MEDIA_DIR / picture).convert("RGB")), ImageSamples(PICTURE).grid.numpy()
    )


def test_swanlab_reads_one_run(folder: Path) -> None:
    starts = [list(swanlab_records(path)) for path in sorted((folder / "run" / "swanlab").glob("run-*/*.swanlab"))]
    heads = [(one.start.name, one.start.id) for records in starts for one in records if one.HasField("start")]
    assert len(heads) == 2 and len(set(heads)) == 1 and heads[0][0] == "run"
    from swanlab.proto.swanlab.run.v1.run_pb2 import RunState

    ends = [one.finish.state for records in starts for one in records if one.HasField("finish")]
    assert ends == [RunState.RUN_STATE_CRASHED, RunState.RUN_STATE_FINISHED]
    records = [one for records in starts for one in records]
    scalars = [one.scalar for one in records if one.HasField("scalar") and not one.scalar.key.startswith("__swanlab__")]
    assert {(one.key, one.step): one.value.number for one in scalars} == logged(folder, discarded=True)
    media = {(one.media.key, one.media.step): one.media.value.items for one in records if one.HasField("media")}
    assert {step for name, step in media if name == Ends.name} == {2, 4, 5}
    (last,) = (folder / "run" / "swanlab").glob(f"run-*/media/*/{media['pictures', 5][0].filename}")
    from PIL import Image

    assert np.array_equal(np.asarray(Image.open(last).convert("RGB")), ImageSamples(PICTURE).grid.numpy())
    texts = [(last.parents[1] / "text" / item.filename).read_text() for item in media[Ends.name, 5]]
    assert texts == ["prompt: one *and* one\ncompletion: two", "prompt: #\ncompletion: <b>"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def swanlab_records(path: Path) -> Iterator[Any]:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    reader = DataStoreReader()
    reader.open(path)
    yield from map(Record.FromString, reader)


def test_swanlab_without_a_key_refuses_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWANLAB_ROOT", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    settings = recipe("sft", tmp_path / "files", output_dir=str(tmp_path / "run"), trackers=["swanlab"])
    assert run(get_config(settings)) == 2
    error = "trackers: swanlab: nobody is logged in; run `swanlab login`, set SWANLAB_API_KEY, or let mode be offline"
    assert capsys.readouterr().err.splitlines()[-1] == error
    assert not (tmp_path / "run").exists()
