"""What samplers write: the model's own greedy completions, images as they are; and that the run does not notice."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from arctic_training import get_config
from arctic_training.config.sections.wandb import WandbConfig
from arctic_training.errors.types import ArcticError
from arctic_training.registry import lookup
from arctic_training.tracker.samples import ImageSamples, Samples, TextSamples, tensor_samples
from arctic_training.tracker.tracker import Tracker
from arctic_training.tracker.wandb import WandbTracker
from arctic_training.trainer.throughput import MEASURED
from tests.contract.cases import recipe

PROMPTS = ["a small question", [{"role": "user", "content": "What is this?"}]]


class SampleLog(Tracker):
    """Keeps the samples; fails at step 2 if the test says so."""

    name = "sample_log_of_a_test"
    samples: ClassVar[list[tuple[str, int, Samples]]] = []
    fails: ClassVar[bool] = False

    def start(self, recipe: Mapping[str, Any], run_dir: Path, step: int) -> None:
        self.samples.clear()

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def log_samples(self, name: str, samples: Samples, step: int) -> None:
        if self.fails and step == 2:
            raise ConnectionError("the server is gone")
        self.samples.append((name, step, samples))


def train(case: str, folder: Path, **keys: Any) -> Any:
    config = get_config(recipe(case, folder / "files", output_dir=str(folder / "run"), train_iters=3, **keys))
    trainer = lookup("trainer", case)(config)  # type: ignore[call-arg]
    trainer.train()  # type: ignore[attr-defined]
    return trainer


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in ("time", *MEASURED)} for line in lines
    ]


def test_completions_are_those_of_the_model_and_the_run_is_the_same(tmp_path: Path) -> None:
    section = {"type": "sample_generation", "every": 2, "prompts": PROMPTS, "max_new_tokens": 5}
    train("sft", tmp_path / "without").close()
    trainer = train("sft", tmp_path, callbacks=[section], trackers=[SampleLog.name])
    assert metrics(tmp_path) == metrics(tmp_path / "without")
    folder = tmp_path / "run" / "samples" / "sample_generation"
    assert sorted(path.name for path in folder.iterdir()) == ["step_2.jsonl", "step_3.jsonl"]
    rows = [json.loads(line) for line in (folder / "step_3.jsonl").read_text().splitlines()]
    tokenizer, model = trainer.tokenizer, trainer.model.module.eval()
    chat = tokenizer.apply_chat_template(PROMPTS[1], tokenize=False, add_generation_prompt=True)
    for text, special, row in zip((PROMPTS[0], chat), (True, False), rows, strict=True):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=special)
        output = model.generate(**ids, do_sample=False, max_new_tokens=5, pad_token_id=tokenizer.pad_token_id)
        completion = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert row == {"prompt": tokenizer.decode(ids["input_ids"][0]), "completion": completion}
    logged = [(name, step, samples.rows) for name, step, samples in SampleLog.samples]  # type: ignore[attr-defined]
    assert [(name, step) for name, step, _ in logged] == [("sample_generation", 2), ("sample_generation", 3)]
    assert logged[-1][2] == rows
    trainer.close()


def test_rows_of_a_generator_and_a_tracker_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampleLog, "fails", True)
    section = {"type": "sample_tensors", "every": 1, "count": 5}
    trainer = train("gan", tmp_path, callbacks=[section], trackers=[SampleLog.name])
    rows = np.load(tmp_path / "run" / "samples" / "sample_tensors" / "step_3.npy")
    assert np.array_equal(rows, trainer.sample(5).numpy())
    assert [step for _, step, _ in SampleLog.samples] == [1]
    assert len(metrics(tmp_path)) == 3
    trainer.close()


def test_rows_of_numbers_are_written_as_images(tmp_path: Path) -> None:
    section = {"type": "sample_tensors", "every": 3, "count": 5, "columns": 5, "shape": [2, 2]}
    trainer = train("vae", tmp_path, callbacks=[section])
    picture = np.array(Image.open(tmp_path / "run" / "samples" / "sample_tensors" / "step_3.png"))
    rows = np.round(255 * trainer.sample(5).numpy())
    assert picture.shape == (2, 14) and rows.shape == (5, 4)
    assert all(np.array_equal(picture[:, 3 * n : 3 * n + 2].ravel(), row) for n, row in enumerate(rows))
    trainer.close()


@pytest.mark.parametrize(
    ("case", "section", "message"),
    [
        ("sft", {"type": "sample_tensors"}, "callbacks.sample_tensors: the trainer sft has no method sample(count)"),
        ("gan", {"type": "sample_generation", "prompts": ["a"]}, "callbacks: sample_generation needs a tokenizer"),
        ("sft", {"type": "sample_generation", "prompts": [[{"role": "user"}]]}, "needs a role and a content"),
        ("sft", {"type": "sample_generation", "prompts": [""]}, "prompt 1 is empty"),
        ("gan", {"type": "sample_tensors", "low": 1}, "must be above low"),
        ("vae", {"type": "sample_tensors", "shape": [3, 2]}, "3, 2] has 6 numbers, and a row of the data has 4"),
    ],
)
def test_refusals(tmp_path: Path, case: str, section: dict[str, Any], message: str) -> None:
    with pytest.raises(ArcticError, match=message.replace("(", r"\(").replace(")", r"\)")):
        train(case, tmp_path, callbacks=[section])
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 1, 4, 3), (5, 3, 4, 3)])
def test_a_picture_has_every_pixel(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rows = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 4 - 2
    path = tensor_samples(rows, low=-1, high=1, columns=2).write(tmp_path, 7)
    picture = np.array(Image.open(path))
    assert path.name == "step_7.png" and picture.shape[:2] == (3 * 4 + 2, 2 * 3 + 1)
    expected = np.round(255 * np.clip((rows.numpy() + 1) / 2, 0, 1))
    for n in range(5):
        top, left = n // 2 * 5, n % 2 * 4
        image = picture[top : top + 4, left : left + 3]
        channels = [image] if image.ndim == 2 else list(np.moveaxis(image, 2, 0))
        expected_channels = [expected[n]] if rows.ndim == 3 else list(expected[n])
        assert np.array_equal(channels, expected_channels)
    assert not picture[10:, 4:].any() and not picture[4].any()


def test_rows_that_are_no_images_are_kept_as_they_are(tmp_path: Path) -> None:
    for shape in [(3, 2), (3,), (0, 4, 4), (2, 5, 4, 4), (2, 1, 2, 3, 4)]:
        rows = torch.randn(shape)
        assert np.array_equal(np.load(tensor_samples(rows).write(tmp_path, 1)), rows.numpy())


def test_wandb_keeps_images_and_texts(tmp_path: Path) -> None:
    tracker = WandbTracker(WandbConfig(type="wandb", mode="offline"))
    tracker.start({}, tmp_path, 0)
    images = ImageSamples(torch.randint(256, (3, 4, 4, 1), dtype=torch.uint8))
    tracker.log_samples("pictures", images, 1)
    tracker.log_samples("texts", TextSamples([{"prompt": "a", "completion": "b"}]), 1)
    tracker.finish(failed=False)
    (picture,) = tmp_path.glob("wandb/offline-run-*/files/media/images/pictures*.png")
    assert np.array_equal(np.array(Image.open(picture)), images.grid[:, :, 0].numpy())
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/texts*.json")
    content = json.loads(table.read_text())
    assert (content["columns"], content["data"]) == (["prompt", "completion"], [["a", "b"]])
