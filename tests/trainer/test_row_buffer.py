"""Rows that a trainer keeps: the newest of them, in every checkpoint, on another number of processes too."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from arctic_training import RowBuffer, TensorTrainer, get_config
from arctic_training.distributed import process_group
from tests import processes


class Replaying(TensorTrainer):
    """Its loss depends on the rows of earlier steps."""

    name = "replaying_for_tests"
    replay = RowBuffer(6)

    def loss(self, batch: Any) -> Tensor:
        earlier = self.replay.rows
        loss: Tensor = self.model(batch["rows"]).square().sum() / batch["num_items_in_batch"]
        if earlier is not None:
            loss = loss + self.model(earlier).square().mean()
        if torch.is_grad_enabled():
            self.replay.add(batch["rows"])
        return loss


def make(folder: Path, run: str, **keys: Any) -> Any:
    if not (folder / "rows.npy").exists():
        np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32))
    recipe = {
        "type": Replaying.name,
        "model": {"sizes": [3, 1]},
        "data": {"sources": [str(folder / "rows.npy")]},
        "micro_batch_size": 2,
        "output_dir": str(folder / run),
        "loss_log_interval": 0,
        "logger": {"level": "ERROR"},
        "checkpoint": {"type": "deepspeed", "auto_resume": True, "save_end_of_training": True},
        **keys,
    }
    return Replaying(get_config(recipe))


def weights_after(folder: str, run: str, **keys: Any) -> tuple[list[Tensor], Tensor]:
    trainer = make(Path(folder), run, **keys)
    trainer.train()
    weights = [one.detach().clone() for one in trainer.model.module.parameters()]
    rows = trainer.replay.rows.clone()
    trainer.close()
    return weights, rows


def test_the_newest_rows_are_kept_and_each_trainer_has_its_own() -> None:
    one, other = (Replaying.__new__(Replaying) for _ in range(2))
    for start in range(0, 8, 2):
        one.replay.add(torch.arange(start, start + 2.0, requires_grad=True)[:, None])
    assert one.replay.rows is not None and not one.replay.rows.requires_grad
    assert one.replay.rows[:, 0].tolist() == [2, 3, 4, 5, 6, 7] and len(other.replay) == 0


def test_a_run_that_resumes_has_them(tmp_path: Path) -> None:
    expected, rows = weights_after(str(tmp_path), "uncut", train_iters=6)
    weights_after(str(tmp_path), "parts", train_iters=6, exit_iteration_this_run=3)
    resumed, same_rows = weights_after(str(tmp_path), "parts", train_iters=6)
    assert torch.equal(rows, same_rows) and len(rows) == 6
    assert all(torch.equal(one, other) for one, other in zip(expected, resumed, strict=True))


@pytest.mark.fault(18)
@pytest.mark.parametrize("worlds", [(2, 1), (1, 2)])
def test_a_run_goes_on_with_them_on_another_number_of_processes(worlds: tuple[int, int], tmp_path: Path) -> None:
    """Each process has the mean over as many of them, so that weights and rows are those of a single one."""
    expected, rows = weights_after(str(tmp_path), "one process", train_iters=6)
    for world, part in zip(worlds, ({"exit_iteration_this_run": 3}, {}), strict=True):
        keys = {"train_iters": 6, "micro_batch_size": 2 // world, **part}
        ends = processes.share(weights_after, world, str(tmp_path), "parts", **keys)
    assert sorted(row for _, own in ends for row in own.tolist()) == sorted(rows.tolist()) and len(rows) == 6
    for weights, own in ends:
        assert len(own) == 6 // world
        for one, other in zip(weights, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def share_out(counts: list[int]) -> list[float]:
    """Returns the rows of this rank, saved by as many ranks as there are ``counts``: row n of rank r is n + r / 10."""
    states = [{"rows": torch.arange(4 - count, 4)[:, None] + r / 10} for r, count in enumerate(counts)]
    buffer = RowBuffer(6)
    buffer.load_sharded_state_dict(states)
    assert buffer.rows is not None and process_group.world_size() == 2
    return [round(float(one), 1) for one in buffer.rows[:, 0]]


@pytest.mark.parametrize("counts", [[2, 2, 2], [1, 3, 2]])
def test_another_number_of_processes_shares_them_out_by_age(counts: list[int]) -> None:
    shares = processes.share(share_out, 2, counts)
    expected = sorted(n + r / 10 for r, count in enumerate(counts) for n in range(4 - count, 4))
    assert sorted(chain.from_iterable(shares)) == pytest.approx(expected)
    for rows in shares:
        assert [int(one) for one in rows] == sorted(int(one) for one in rows), "the oldest are first"
