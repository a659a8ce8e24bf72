"""Losses far above those before: which they are, and that a window is skipped, gone back from, or answered by a lower
learning rate."""

import json
import statistics
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_training import TensorClassifierTrainer, get_config
from arctic_training.callback.spikes import SpikeCallback, SpikeConfig
from arctic_training.distributed import process_group
from arctic_training.engine.zero import full_parameter
from arctic_training.errors.types import TrainingError
from tests import processes
from tests.contract.cases import recipe


@given(st.lists(st.floats(0, 4), min_size=4, max_size=12), st.sampled_from([1.0, 3.0]), st.sampled_from([0.0, 0.5]))
def test_a_spike_is_far_above_the_mean_of_the_window(losses: list[float], threshold: float, distance: float) -> None:
    callback: Any = SpikeCallback(SpikeConfig(window=3, threshold=threshold, min_delta=distance))
    spikes = [bool(callback.find_spike(loss)) for loss in losses]
    for n, loss in enumerate(losses):
        before = losses[max(0, n - 3) : n]
        if n < 3:
            assert not spikes[n]
            continue
        limit = max(threshold * statistics.pstdev(before), distance)
        assert spikes[n] == (loss - statistics.mean(before) > limit) or loss - statistics.mean(before) == pytest.approx(
            limit
        )


def test_what_is_left_out_is_not_compared_with() -> None:
    callback: Any = SpikeCallback(SpikeConfig(window=2, threshold=3, min_delta=0.5))
    losses = [1.0, 1.0, 9.0, 9.0, float("nan"), 1.1]
    assert [bool(callback.find_spike(loss, left_out=True)) for loss in losses] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    assert callback.history == [1.0, 1.1]


class Spiked(TensorClassifierTrainer):
    """Its loss is large in some steps; remembers the weights after each step."""

    name = "spiked_for_the_test"
    windows: ClassVar[set[tuple[int, int]]] = set()
    weights: ClassVar[list[torch.Tensor]] = []

    def loss(self, batch: Any) -> torch.Tensor:
        place = self.progress.epoch, self.progress.sample_index - self.window.index * self.train_loader.stride
        loss = super().loss(batch)
        return loss * 50 if torch.is_grad_enabled() and place in self.windows else loss

    def after_update(self) -> None:
        super().after_update()
        self.weights.append(torch.cat([full_parameter(one).flatten() for one in self.model.module.parameters()]))


def train(folder: Path, callback: dict[str, Any], windows: set[tuple[int, int]], **more: Any) -> dict[str, Any]:
    """Trains on 20 rows, 4 at a time, twice: the windows of an epoch begin at rows 0, 4, ..., 16."""
    section = {"window": 3, "threshold": 5, "min_delta": 1, **callback}
    saved = {"type": "deepspeed", "save_every_n_steps": 2}
    base = recipe("tensor_classifier", folder / "files", callbacks=[section], checkpoint=saved, **more)
    Spiked.windows, Spiked.weights = windows, []
    trainer = Spiked(get_config(base | {"type": Spiked.name, "output_dir": str(folder / "run")}))
    try:
        trainer.train()
    finally:
        trainer.close()
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines() if process_group.is_main() else []
    return {"records": [*map(json.loads, lines)], "steps": trainer.progress.step, "skipped": trainer.skipped_windows}


def skip(folder: str, stage: int) -> None:
    """Two ranks of two rows each have the windows of one rank of four."""
    more = {"micro_batch_size": 4 // process_group.world_size(), "deepspeed": {"zero_optimization": {"stage": stage}}}
    done = train(Path(folder), {"type": "loss_spike"}, {(0, 16)}, **more)
    before, spiked, after = Spiked.weights[3:6]
    assert torch.equal(before, spiked) and not torch.equal(spiked, after)
    assert done["steps"] == 10
    if process_group.is_main():
        assert [line["spikes"] for line in done["records"]] == [0.0] * 4 + [1.0] + [0.0] * 5
        assert done["records"][4]["loss"] > 20


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (1, 1), (2, 3)])
def test_no_step_is_taken_on_a_window_that_is_skipped(world: int, stage: int, tmp_path: Path) -> None:
    processes.share(skip, world, str(tmp_path), stage)


def test_the_run_goes_back_and_leaves_the_window_out(tmp_path: Path) -> None:
    done = train(tmp_path, {"type": "loss_spike", "action": "back"}, {(0, 16)})
    assert done["skipped"] == {(0, 16)}
    assert done["steps"] == 9  # of ten windows, one is left out
    assert sum(line["spikes"] for line in done["records"]) == 0  # what led there is forgotten


def test_too_many_spikes_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 6: the loss .* that is 2 in a row, and loss_spike.limit is 1"):
        train(tmp_path, {"type": "loss_spike", "limit": 1}, {(0, 16), (1, 0)})


def test_the_learning_rate_is_lowered_by_a_spike(tmp_path: Path) -> None:
    callback = {"type": "reduce_lr_on_instability", "factor": 0.1, "cooldown": 2}
    done = train(tmp_path, callback, {(0, 16)}, scheduler={"type": "constant", "warmup_ratio": 0})
    assert [line["lr"] for line in done["records"]] == pytest.approx([1e-3] * 5 + [1e-4] * 5)
