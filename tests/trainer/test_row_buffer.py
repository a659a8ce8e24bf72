"""Rows that a trainer keeps: the newest of them, in every checkpoint, on another number of processes too."""

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
            self.replay.add(batch["rows"], batch["draw"])
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
    """Every process has all of them, so that weights and rows are those of a single one."""
    expected, rows = weights_after(str(tmp_path), "one process", train_iters=6)
    for world, part in zip(worlds, ({"exit_iteration_this_run": 3}, {}), strict=True):
        keys = {"train_iters": 6, "micro_batch_size": 2 // world, **part}
        ends = processes.share(weights_after, world, str(tmp_path), "parts", **keys)
    for weights, own in ends:
        torch.testing.assert_close(own, rows)
        for one, other in zip(weights, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def kept(shares: list[list[tuple[int, int]]]) -> list[float]:
    """Returns the rows that are kept of windows of which each rank adds a share, and that are reloaded."""
    process_group.init_process_group()
    buffer, other = RowBuffer(6), RowBuffer(6)
    for window in shares:
        draw = torch.arange(*window[process_group.rank()])
        buffer.add(draw[:, None] / 2, draw)
    other.load_state_dict(buffer.state_dict())
    assert buffer.rows is not None and other.rows is not None and torch.equal(buffer.rows, other.rows)
    return [float(one) for one in other.rows[:, 0]]


def test_every_rank_keeps_the_rows_of_all() -> None:
    """In the order of their numbers, whichever rank adds them and however many."""
    shares = [[(0, 2), (2, 4)], [(6, 8), (4, 6)], [(8, 9), (9, 9)]]
    assert processes.share(kept, 2, shares) == [[1.5, 2, 2.5, 3, 3.5, 4]] * 2
