"""A loss or gradient that is not finite: the run stops, skips or goes back, and never saves what it has touched."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from arctic_training import GANTrainer, get_config
from arctic_training.callback.nan_guard import _samples
from arctic_training.data.batching.loader import IndexedLoader
from arctic_training.data.batching.sampler import GlobalOrder
from arctic_training.distributed import process_group
from arctic_training.engine.engine import TrainedEngine
from arctic_training.errors.types import NonFiniteError, RecipeError
from arctic_training.state import Progress
from arctic_training.trainer.window import AccumulationWindow
from tests import processes
from tests.contract.cases import recipe

pytestmark = pytest.mark.fault(14)

Spoil = Callable[[Any, torch.Tensor], torch.Tensor]


class Spoiled(GANTrainer):
    """Its loss is what ``spoil`` makes of it."""

    name = "spoiled_for_the_test"
    spoil: ClassVar[Spoil] = staticmethod(lambda trainer, loss: loss)
    left_out_from_the_start: ClassVar[set[tuple[int, int]]] = set()

    def loss(self, batch: Any) -> torch.Tensor:
        return type(self).spoil(self, super().loss(batch)) if torch.is_grad_enabled() else super().loss(batch)

    def train(self) -> None:
        self.skipped_windows |= self.left_out_from_the_start
        super().train()


def train(folder: Path, spoil: Spoil = lambda trainer, loss: loss, run: str = "run", **more: Any) -> dict[str, Any]:
    """A GAN on 20 rows, 4 at a time; the rows of an epoch's update n begin at 4 * n. What is left of it."""
    checkpoint = {"type": "deepspeed", "save_every_n_steps": 2, "output_dir": str(folder / run / "saved")}
    settings = {"checkpoint": checkpoint, "callbacks": [], "output_dir": str(folder / run), **more}
    Spoiled.spoil = staticmethod(spoil)
    trainer = Spoiled(get_config(recipe("gan", folder / "files", **settings) | {"type": Spoiled.name}))
    try:
        trainer.train()
    finally:
        weights = torch.cat([p.detach().flatten() for p in trainer.model.module.parameters()])
        assert weights.isfinite().all()
        saved = sorted(path.name for path in (folder / run / "saved").glob("step_*"))
        trainer.close()
    lines = (folder / run / "metrics.jsonl").read_text().splitlines() if process_group.is_main() else []
    return {"weights": weights, "saved": saved, "progress": trainer.progress, "records": [*map(json.loads, lines)]}


def at(*updates: int) -> Spoil:
    """The loss of these updates, from 0, is no number."""
    return lambda trainer, loss: loss * math.nan if trainer.progress.step in updates else loss


def on(*places: tuple[int, int]) -> Spoil:
    """Makes the loss of the windows that begin there not finite."""
    return lambda trainer, loss: (
        loss * math.nan if (trainer.progress.epoch, trainer.progress.sample_index) in places else loss
    )


def test_the_run_stops_and_names_the_samples(tmp_path: Path) -> None:
    points = "step 4: the loss is not finite: rank 0. No such gradient has reached the weights; nan_guard: skip or back"
    with pytest.raises(NonFiniteError, match=re.escape(points)):
        train(tmp_path, at(3))
    assert NonFiniteError.exit_code == 3
    assert [path.name for path in (tmp_path / "run" / "saved").glob("step_*")] == ["step_2"]


def test_the_samples_are_named_where_the_loader_knows_them() -> None:
    order = GlobalOrder(12, 2, seed=5)
    progress = Progress(epoch=1, sample_index=8)  # after a window of two micro-batches of two rows
    trainer = SimpleNamespace(
        train_loader=IndexedLoader(list(range(12)), order, list, make_padding_sample=lambda one: one),
        window=AccumulationWindow([None] * 2),
        config=SimpleNamespace(overfit_first_batch=False),
        progress=progress,
    )
    rows = order.permutation(1).tolist()
    assert _samples(trainer, [1]) == f", training samples {rows[6]}, {rows[7]}"
    assert _samples(trainer, []) == f", training samples {', '.join(map(str, rows[4:8]))}"


def test_an_overflow_that_seeks_the_scale_of_fp16_is_no_fault() -> None:
    """DeepSpeed trains no fp16 on a CPU; its scalers are the real ones."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

    for scaler, lowers in (
        (DynamicLossScaler(2**16, 2, 1000, 1, 1, False), True),
        (DynamicLossScaler(1, 2, 1000, 1, 1, False), False),
        (LossScaler(1), False),
    ):
        parameter = torch.nn.Parameter(torch.ones(1))
        wrapped = SimpleNamespace(loss_scaler=scaler, param_groups=[{"lr": 0.1, "params": [parameter]}])
        engine = TrainedEngine(SimpleNamespace(optimizer=wrapped, module=torch.nn.Linear(1, 1)))
        assert engine.is_searching_loss_scale is lowers
        for _ in range(3):
            scaler.update_scale(True)  # at the least scale too: it is the guard that ends the run


def test_a_gradient_that_is_infinite_stops_too(tmp_path: Path) -> None:
    def explode(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
        loss.register_hook(lambda grad: grad * math.inf) if trainer.progress.step == 1 else None
        return loss

    with pytest.raises(NonFiniteError, match="step 2: the gradient is not finite"):
        train(tmp_path, explode)


def test_updates_are_skipped_and_counted_and_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    done = train(tmp_path, at(1, 2, 5), nan_guard="skip", nan_guard_limit=2)
    assert done["progress"].step == 10
    assert [n for n, record in enumerate(done["records"], 1) if record["skipped"]] == [2, 3, 6]
    with pytest.raises(NonFiniteError, match=r"step 4: .* That is 3 in a row, and nan_guard_limit is 2"):
        train(tmp_path, at(1, 2, 3), "again", nan_guard="skip", nan_guard_limit=2)


def test_the_run_goes_back_and_leaves_the_window_out(tmp_path: Path) -> None:
    # the fourth update of the first epoch, and the first of the second: the checkpoint before is of the first epoch
    places = {(0, 12), (1, 0)}
    back = train(tmp_path, on(*places), nan_guard="back")
    Spoiled.left_out_from_the_start = places
    try:
        without = train(tmp_path, run="without")
    finally:
        Spoiled.left_out_from_the_start = set()
    assert torch.equal(back["weights"], without["weights"])
    assert back["progress"] == without["progress"] and back["progress"].step == 8
    assert back["saved"] == without["saved"] == ["step_2", "step_4", "step_6", "step_8"]
    with pytest.raises(NonFiniteError, match="The run went back 1 times, which is nan_guard_limit"):
        train(tmp_path, on(*places), "often", nan_guard="back", nan_guard_limit=1)
    with pytest.raises(NonFiniteError, match="nan_guard: back finds no checkpoint of this run yet"):
        train(tmp_path, on((0, 4)), "early", nan_guard="back")


def test_the_run_never_goes_back_to_the_checkpoint_of_another_run(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(NonFiniteError, match=r"step 2: .* nan_guard: back finds no checkpoint of this run yet"):
        train(tmp_path, at(1), nan_guard="back")
    train(tmp_path)
    # the file `latest` is lost, so that the numbers alone tell which is the newest

    def lose(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
        if trainer.progress.step == 3:
            (trainer.run_dir / "saved" / "latest").unlink(missing_ok=True)
        return on((0, 12))(trainer, loss)

    assert train(tmp_path, lose, nan_guard="back")["progress"].step == 9


def test_what_was_left_out_stays_out_when_the_run_is_resumed(tmp_path: Path) -> None:
    settings = {"nan_guard": "back", "checkpoint": {"type": "deepspeed", "save_every_n_steps": 1, "auto_resume": True}}
    train(tmp_path, on((0, 8)), **settings, exit_iteration=3)
    assert train(tmp_path, on((0, 8)), **settings)["progress"].step == 9


def test_going_back_wants_a_checkpoint(tmp_path: Path) -> None:
    for section in ([], {"type": "deepspeed", "save_end_of_training": True}):
        with pytest.raises(RecipeError, match="nan_guard: back, and no checkpoint is saved during the run"):
            get_config(recipe("gan", tmp_path, nan_guard="back", checkpoint=section))


def detached(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    """On the last rank a number that is none, and a gradient that is."""
    last = process_group.rank() == process_group.world_size() - 1
    return loss + loss.detach() * math.nan if trainer.progress.step == 2 and last else loss


def stop_by_loss(folder: Path) -> tuple[str, list[str]]:
    try:
        train(folder, detached, nan_guard="skip")
    except NonFiniteError as error:
        return str(error), sorted(path.name for path in (folder / "run" / "saved").glob("step_*"))
    raise AssertionError("nothing was noticed")


@pytest.mark.parametrize("world", [1, 2])
def test_a_loss_that_is_no_number_ends_the_run_also_where_the_gradient_is_one(tmp_path: Path, world: int) -> None:
    for text, saved in processes.share(stop_by_loss, world, tmp_path):
        assert f"the loss is not finite: rank {world - 1}" in text and "nothing is saved" in text
        assert saved == ["step_2"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    def spoil(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
        if trainer.progress.step == 3:
            next(trainer.engines["discriminator"].module.parameters()).data[0] = math.inf
        return loss

    with pytest.raises(NonFiniteError, match=r"step 4.* not finite"):
        train(tmp_path, spoil)
    assert [path.name for path in (tmp_path / "run" / "saved").glob("step_*")] == ["step_2"]
