"""Pictures as data: pixels by numpy, order, splits and classes of folders, data sets with pictures, and refusals."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from arctic_training.data.factories.tensor import TensorDataConfig, TensorDataFactory
from arctic_training.errors.types import DataError

RANDOM = np.random.default_rng(0)


def picture(*shape: int) -> Any:
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


def save(folder: Path, pixels: dict[str, Any]) -> None:
    """Writes pixels, ``[H, W]`` or ``[H, W, C]``, to the files of their names."""
    for name, values in pixels.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / name)


def factory(folder: Path, *more: dict[str, Any], **section: Any) -> TensorDataFactory:
    config = SimpleNamespace(micro_batch_size=3, gradient_accumulation_steps=1, sequence_parallel_size=1)
    trainer: Any = SimpleNamespace(config=config, data_rank=0, data_world=1)
    sources = [{"type": "images", "name_or_path": str(folder), **section}, *({"type": "images", **one} for one in more)]
    return TensorDataFactory(trainer, TensorDataConfig.model_validate({"type": "tensor", "sources": sources}))


def load(folder: Path, *more: dict[str, Any], **section: Any) -> Any:
    return factory(folder, *more, **section).load("train")


def as_rows(*pixels: Any) -> torch.Tensor:
    """Returns pixels as what a network reads, in [0, 1]."""
    stacked = np.stack([one[None] if one.ndim == 2 else np.moveaxis(one, 2, 0) for one in pixels])
    return torch.from_numpy(stacked).float() / 255


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 4)])
def test_pixels_are_those_of_the_files_in_their_order(shape: tuple[int, ...], tmp_path: Path) -> None:
    pixels = {name: picture(*shape) for name in ("b/0.png", "a.png", "c.tif", "b/10.png", "b/2.png")}
    save(tmp_path, pixels)
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    table = load(tmp_path)
    assert table.keys() == {"rows"} and table["rows"].dtype == torch.float32
    assert torch.equal(table["rows"], as_rows(*(pixels[name] for name in sorted(pixels))))
    scaled = load(tmp_path, value_range=[-1, 1])["rows"]
    torch.testing.assert_close(scaled, table["rows"] * 2 - 1)
    assert scaled.min() >= -1 and scaled.max() <= 1


def test_size_cuts_at_the_centre_and_scales(tmp_path: Path) -> None:
    """Of blocks of one value each, so that no interpolation matters but at their borders."""
    wide = np.kron(np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.uint8), np.ones((8, 8), np.uint8))
    save(tmp_path / "wide", {"0.png": wide, "1.png": wide[:, 8:24]})
    rows = load(tmp_path / "wide", size=16)["rows"]
    assert torch.equal(rows, as_rows(wide[:, 8:24], wide[:, 8:24]))
    small = load(tmp_path / "wide", size=[8, 16])["rows"]  # the first is halved, of the second the middle is cut out
    corners = (small[0, 0][[1, 1, 6, 6], [1, 14, 1, 14]] * 255).round()
    assert corners.tolist() == [10, 40, 50, 80]
    assert torch.equal(small[1:], as_rows(wide[4:12, 8:24]))
    flat = np.full((5, 9), 77, np.uint8)
    save(tmp_path / "flat", {"0.png": flat})
    for size in (1, 3, 16, [2, 7]):
        assert (load(tmp_path / "flat", size=size)["rows"] * 255).round().unique().tolist() == [77]


def test_modes_are_converted(tmp_path: Path) -> None:
    grey = picture(3, 3)
    save(tmp_path, {"0.png": grey, "1.png": np.stack([grey] * 3, 2)})
    Image.fromarray(grey).convert("P").save(tmp_path / "2.png")
    Image.fromarray(grey).convert("LA").save(tmp_path / "3.png")
    assert torch.equal(load(tmp_path, mode="L")["rows"], as_rows(*[grey] * 4))
    assert torch.equal(load(tmp_path, mode="RGB")["rows"], as_rows(*[np.stack([grey] * 3, 2)] * 4))


def test_a_photo_is_turned_as_its_file_says(tmp_path: Path) -> None:
    pixels = picture(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    Image.fromarray(pixels).save(tmp_path / "0.png", exif=exif)
    assert torch.equal(load(tmp_path)["rows"], as_rows(np.rot90(pixels, -1).copy()))


def test_folders_are_classes_and_splits(tmp_path: Path) -> None:
    names = ["train/cat/deep/0.png", "train/cat/test_1.png", "train/dog/0.png", "test/dog/0.png", "test/eel/1.png"]
    pixels = {name: picture(2, 2) for name in names}
    save(tmp_path, pixels)
    table = load(tmp_path)
    assert torch.equal(table["rows"], as_rows(*(pixels[name] for name in names[:3])))
    assert table["labels"].tolist() == [0, 0, 1] and table["labels"].dtype == torch.int64
    assert load(tmp_path, split="test")["labels"].tolist() == [1, 2]
    assert load(tmp_path, split="eval[1:]")["labels"].tolist() == [2]
    assert load(tmp_path, classes=["eel", "dog", "cat"])["labels"].tolist() == [2, 2, 1]
    assert load(tmp_path / "train")["labels"].tolist() == [0, 0, 1]
    both = load(tmp_path, {"name_or_path": str(tmp_path), "split": "test"})
    assert both["labels"].tolist() == [0, 0, 1, 1, 2] and len(both["rows"]) == 5
    assert load(tmp_path / "test", classes=["cat", "dog", "eel"])["labels"].tolist() == [1, 2]


def test_a_single_folder_is_no_class(tmp_path: Path, messages: list[str]) -> None:
    save(tmp_path, {"all/0.png": picture(2, 2), "all/1.png": picture(2, 2)})
    assert load(tmp_path).keys() == {"rows"}
    assert not messages
    assert load(tmp_path, classes=["none", "all"])["labels"].tolist() == [1, 1]
    save(tmp_path, {"other/0.png": picture(2, 2), "beside.png": picture(2, 2)})
    assert load(tmp_path).keys() == {"rows"}
    assert [line for line in messages if "some pictures are in no folder for a class" in line]


def test_metadata_have_the_labels(tmp_path: Path) -> None:
    pixels = {f"{n}.png": picture(2, 2) for n in range(3)}
    save(tmp_path, pixels)
    rows = [{"file_name": name, "label": label, "weight": 1} for name, label in zip(pixels, "bab", strict=True)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = load(tmp_path)
    assert torch.equal(table["rows"], as_rows(*pixels.values())) and table["labels"].tolist() == [1, 0, 1]
    assert load(tmp_path, label_column="weight")["labels"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("saved", ["parquet", "disk"])
def test_data_sets_with_pictures(saved: str, tmp_path: Path) -> None:
    """As those of the hub: pictures in the files of the data set."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    pixels = [picture(2, 3, 3) for _ in range(3)]
    features = Features({"img": ImageFeature(), "label": ClassLabel(names=["b", "a"]), "id": Value("int64")})
    columns = {"img": [Image.fromarray(one) for one in pixels], "label": [0, 1, 0], "id": [0, 1, 2]}
    rows = Dataset.from_dict(columns, features=features)
    if saved == "disk":
        rows.save_to_disk(str(tmp_path / "data"))
    else:
        (tmp_path / "data").mkdir()
        rows.to_parquet(str(tmp_path / "data" / "train.parquet"))
    table = load(tmp_path / "data")
    assert torch.equal(table["rows"], as_rows(*pixels)) and table["labels"].tolist() == [0, 1, 0]
    assert load(tmp_path / "data", label_column="id", split="train[1:]")["labels"].tolist() == [1, 2]
    with pytest.raises(DataError, match="column label holds no pictures, but ClassLabel"):
        load(tmp_path / "data", image_column="label")
    with pytest.raises(DataError, match="there is no column 'x', which label_column names; there are img, label, id"):
        load(tmp_path / "data", label_column="x")


def broken(folder: Path) -> None:
    save(folder, {"1.png": picture(40, 40)})
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:900])


def sixteen_bits(folder: Path) -> None:
    Image.fromarray(picture(4, 4).astype(np.uint16)).save(folder / "1.png")


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no picture": (
        lambda folder: (folder / "1.png").write_text("x"),
        {},
        "/1.png: the picture cannot be read: it is of no",
    ),
    "broken": (broken, {}, "/1.png: the picture cannot be read: image file is truncated"),
    "16 bits": (sixteen_bits, {"mode": "L"}, "/1.png: the picture has mode I;16, of more than 8 bits; convert it to L"),
    "palette": (
        lambda folder: Image.fromarray(picture(4, 4)).convert("P").save(folder / "1.png"),
        {},
        "/1.png: the picture has mode P, which is none of L, RGB, RGBA; mode: RGB converts all",
    ),
    "colour": (
        lambda folder: save(folder, {"1.png": picture(4, 4, 3)}),
        {},
        "/1.png: the picture has mode RGB, and .*/0.png has L; mode: RGB converts all",
    ),
    "size": (
        lambda folder: save(folder, {"1.png": picture(4, 6)}),
        {},
        "/1.png: the picture has 6 x 4 pixels, and .*/0.png has 4 x 4; size scales and cuts all",
    ),
    "classes": (
        lambda folder: (
            save(folder, {"a/1.png": picture(4, 4), "b/1.png": picture(4, 4)}) or (folder / "0.png").unlink()
        ),
        {"classes": ["a", "c"]},
        "classes: b of column label is not in a, c",
    ),
    "no classes": (lambda folder: None, {"classes": ["a"]}, "classes: there are no labels; there are image"),
    "split": (lambda folder: None, {"split": "test"}, "there is no split 'test'; there are train"),
    "metadata": (
        lambda folder: (folder / "metadata.csv").write_text("name,label\n0.png,1\n"),
        {},
        "its metadata cannot be read: .*file_name",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_pictures_that_do_not_fit_are_refused_by_their_file(case: str, tmp_path: Path) -> None:
    change, section, message = REFUSED[case]
    save(tmp_path, {"0.png": picture(4, 4)})
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        load(tmp_path, **section)


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}: no picture files, such as .png and .jpg; it is empty"):
        load(tmp_path)
    (tmp_path / "rows.npy").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"no picture files, such as \.png and \.jpg; there are 1 others, such as rows\.npy"
    ):
        load(tmp_path)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, since root reads every folder."""
    save(tmp_path, {"a/0.png": picture(2, 2), "b/0.png": picture(2, 2)})
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="/b: the folder cannot be read: Permission denied"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"size": 0}, "height and width are at least 1 pixel"),
        ({"value_range": [1, 0]}, "value_range: 1 is to be below 0"),
        ({"streaming": True}, "streaming: pictures are read before training"),
        ({"classes": ["a", "a"]}, "classes: each name is to occur once"),
        ({"mode": "HSV"}, "mode: 'HSV' should be 'L', 'RGB' or 'RGBA'"),
    ],
)
def test_sections_that_mean_nothing_are_refused(section: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        factory(tmp_path, **section)


def test_classes_of_other_names_are_refused(tmp_path: Path) -> None:
    for name in ("a/cat/0.png", "a/dog/0.png", "b/dog/0.png", "b/eel/0.png"):
        save(tmp_path, {name: picture(2, 2)})
    message = "/b: its classes are dog, eel, and those before cat, dog; give all of them classes: "
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a", {"name_or_path": str(tmp_path / "b")})
