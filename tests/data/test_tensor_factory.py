"""Data of tensors: the keys of a batch, the order of rows, and errors."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.data.batching.loader import Loader
from arctic_training.data.factories.gan import GANDataFactory
from arctic_training.data.factories.tensor import TensorDataConfig, TensorDataFactory
from arctic_training.data.sources.base import DataSource
from arctic_training.errors.types import DataError
from arctic_training.trainer.window import count_loss_terms


class CountConfig(DataSourceConfig):
    count: int = 10
    wide: int = 0


class CountSource(DataSource):
    name = "test_count"
    config_type = CountConfig

    def load(self, config: CountConfig, split: str) -> Any:
        numbers = torch.arange(config.count) + (1000 if split == "eval" else 0)
        return {"rows": numbers, "more": numbers[:, None].expand(-1, config.wide)} if config.wide else numbers


def view(**options: Any) -> Any:
    config = SimpleNamespace(
        **{"micro_batch_size": 3, "gradient_accumulation_steps": 1, "epoch_length": 0, "sequence_parallel_size": 1}
        | options
    )
    return SimpleNamespace(config=config, data_rank=0, data_world=1)


def factory(section: dict[str, Any], cls: type[TensorDataFactory] = TensorDataFactory, **options: Any) -> Any:
    return cls(view(**options), TensorDataConfig.model_validate({"type": cls.name, **section}))


def read(loader: Loader, epoch: int, start: int = 0) -> list[Any]:
    loader.seek(epoch, start)
    return list(loader)


def test_the_rows_of_epochs_of_a_length_are_numbered_on() -> None:
    loader = factory({"sources": ["test_count"], "drop_last": True}, epoch_length=4)().train  # 12 of 10 rows
    epochs = [read(loader, epoch) for epoch in range(5)]
    assert [len(batches) for batches in epochs] == [4] * 5
    joined = {name: torch.cat([one[name] for batches in epochs for one in batches]) for name in ("rows", "draw")}
    assert joined["draw"].tolist() == list(range(60))
    assert sorted(joined["rows"].tolist()) == sorted([*range(10)] * 6)
    assert torch.equal(torch.cat([one["draw"] for one in read(loader, 3, 6)]), torch.arange(42, 48))


def test_batches_cover_the_rows_and_number_them() -> None:
    loaders = factory({"sources": ["test_count", {"type": "test_count", "count": 4}], "eval_sources": "test_count"})()
    assert len(loaders.train) == 5
    for epoch in (0, 3):
        batches = read(loaders.train, epoch)
        assert sorted(torch.cat([b["rows"] for b in batches]).tolist()) == sorted([*range(10), *range(4)])
        assert torch.cat([b["draw"] for b in batches]).tolist() == list(range(14 * epoch, 14 * epoch + 14))
    assert torch.cat([b["rows"] for b in read(loaders.evaluation["eval"], 0)]).tolist() == list(range(1000, 1010))


def test_evaluation_sets_of_one_name_are_numbered(tmp_path: Path) -> None:
    for name in ("a", "b/a", "a_2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, np.arange(len(name)))
    files = [str(tmp_path / f"{name}.npy") for name in ("a", "b/a", "a_2")]
    loaders = factory({"sources": "test_count", "eval_sources": [*files, "test_count"]})()
    assert {name: loader.rows for name, loader in loaders.evaluation.items()} == {
        "a": 1,
        "a#2": 3,
        "a_2": 3,
        "test_count": 10,
    }


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_a_global_batch_does_not_depend_on_its_cut(size: int, micro: int, world: int, epoch: int, drop: bool) -> None:
    """All ranks' rows and numbers together are those of one rank with micro-batches ``world`` times as large."""

    def rows(rank: int, world: int, micro: int) -> list[Any]:
        trainer = SimpleNamespace(
            config=SimpleNamespace(
                micro_batch_size=micro, gradient_accumulation_steps=1, epoch_length=0, sequence_parallel_size=1
            ),
            data_rank=rank,
            data_world=world,
        )
        section = {"type": "tensor", "sources": [{"type": "test_count", "count": size}], "drop_last": drop}
        return read(TensorDataFactory(trainer, TensorDataConfig.model_validate(section))().train, epoch)

    if drop and size < micro * world:
        with pytest.raises(DataError, match="make no batch"):
            rows(0, world, micro)
        return
    expected = rows(0, 1, micro * world)
    parts = [rows(rank, world, micro) for rank in range(world)]
    for index, batch in enumerate(expected):
        for name in ("rows", "draw"):
            assert torch.equal(torch.cat([part[index][name] for part in parts]), batch[name])


class EvenFactory(TensorDataFactory):
    """Fills batches up."""

    name = "test_even"
    even_batches = True


@pytest.mark.parametrize(("micro", "world"), [(3, 1), (4, 2), (3, 4)])
def test_even_batches_are_filled_up_and_each_row_counts_once(micro: int, world: int) -> None:
    counted: list[float] = []
    for rank in range(world):
        config = SimpleNamespace(
            micro_batch_size=micro, gradient_accumulation_steps=1, epoch_length=0, sequence_parallel_size=1
        )
        trainer: Any = SimpleNamespace(config=config, data_rank=rank, data_world=world)
        section = TensorDataConfig.model_validate({"type": "test_even", "sources": [{"type": "test_count"}]})
        for batch in read(EvenFactory(trainer, section)().train, 0):
            assert len(batch["rows"]) == len(batch["draw"]) == len(batch["row_weights"]) == micro
            assert count_loss_terms(batch) == batch["row_weights"].sum()
            counted += batch["rows"][batch["row_weights"] == 1].tolist()
    assert sorted(counted) == list(range(10))


def test_seeking_enters_the_middle() -> None:
    loader = factory({"sources": "test_count"})().train
    expected = read(loader, 2)
    for start in range(len(expected)):
        for one, other in zip(expected[start:], read(loader, 2, 3 * start), strict=True):
            assert torch.equal(one["rows"], other["rows"])
            assert torch.equal(one["draw"], other["draw"])


def test_adversarial_batches_have_rows_for_every_step() -> None:
    loader = factory({"sources": "test_count"}, GANDataFactory, discriminator_steps=2)().train
    assert [len(batch["rows"]) for batch in read(loader, 0)] == [6, 4]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_files(tmp_path: Path, suffix: str) -> None:
    from safetensors.numpy import save_file

    path, rows = tmp_path / f"data{suffix}", np.arange(12.0, dtype=np.float32).reshape(6, 2)
    if suffix == ".npy":
        np.save(path, rows)
    elif suffix == ".npz":
        np.savez(path, rows=rows)
    else:
        save_file({"rows": rows}, path)
    loader = factory({"sources": str(path), "drop_last": True})().train
    assert sorted(torch.cat([b["rows"] for b in read(loader, 0)])[:, 0].tolist()) == rows[:, 0].tolist()


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "rows.npy").write_text("no array")
    (tmp_path / "rows.txt").write_text("1 2")
    for path, message in (
        ("rows.npy", "cannot be read"),
        ("none.npz", "cannot be read"),
        ("rows.txt", "expected a .npy"),
    ):
        with pytest.raises(DataError, match=message):
            factory({"sources": [{"name_or_path": str(tmp_path / path)}]})()
    with pytest.raises(DataError, match="same columns; they have: rows; rows, more"):
        factory({"sources": ["test_count", {"type": "test_count", "wide": 1}]})()
    with pytest.raises(DataError, match="do not fit together"):
        factory({"sources": [{"type": "test_count", "wide": 2}, {"type": "test_count", "wide": 1}]})()
    with pytest.raises(ValidationError, match="sample_count: all rows of tensors are used"):
        factory({"sources": [{"type": "test_count", "sample_count": 3}]})
