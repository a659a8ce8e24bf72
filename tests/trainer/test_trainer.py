"""The loop: what it does when, that looking changes nothing, and that it ends when it should."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import SFTTrainer, get_config
from arctic_training.errors.types import RecipeError
from tests import tiny


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    """Ten chats, two at a time: five updates an epoch."""
    rows = tmp_path / "chats.jsonl"
    tiny.save_chats(rows, 10)
    return {
        "type": "sft",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32", "hf_config_kwargs": {"attention_dropout": 0.1}},
        "data": {"sources": [str(rows)], "eval_sources": [str(rows)], "max_length": 400},
        "micro_batch_size": 2,
        "epochs": 2,
        "output_dir": str(tmp_path / "run"),
        "loss_log_interval": 0,
    }


def trained(settings: dict[str, Any], cls: type[SFTTrainer] = SFTTrainer) -> Any:
    trainer = cls(get_config(settings))
    trainer.train()
    trainer.close()
    return trainer


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.kept.parameters()])


class Keeping(SFTTrainer):
    """Keeps its model when it is closed."""

    def close(self, *, failed: bool = False) -> None:
        self.kept = self.model.module
        super().close(failed=failed)


def records(settings: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(settings["output_dir"]) / "metrics.jsonl").read_text().splitlines()]


def test_evaluating_leaves_no_trace(settings: dict[str, Any], tmp_path: Path) -> None:
    often = trained({**settings, "eval_interval": 1, "evaluate_first": True}, Keeping)
    never = trained({**settings, "output_dir": str(tmp_path / "never")}, Keeping)
    assert torch.equal(weights(often), weights(never))
    assert sum("loss/eval" in record for record in records(settings)) == 11


def test_a_run_that_would_save_nothing_says_so(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    trained({**settings, "checkpoint": {"type": "deepspeed", "save_every_n_steps": 11}})
    assert "save_every_n_steps: 11, and the run has 10 steps: none is saved" in capsys.readouterr().err
    trained({**settings, "checkpoint": {"type": "deepspeed", "save_every_n_epochs": 3}})
    assert "save_every_n_epochs: 3, and the run has 2 epochs: none is saved" in capsys.readouterr().err
    trained({**settings, "checkpoint": {"type": "deepspeed", "save_every_n_steps": 10}})
    assert "none is saved" not in capsys.readouterr().err


def test_the_last_update_is_evaluated_once(settings: dict[str, Any]) -> None:
    trained({**settings, "eval_interval": 5, "evaluate_last": True})
    assert [record["step"] for record in records(settings) if "loss/eval" in record] == [5, 10]


def test_some_evaluations_are_told(settings: dict[str, Any]) -> None:
    trained({**settings, "eval_interval": 2, "eval_log_iter_interval": 2})
    assert [record["step"] for record in records(settings) if "loss/eval" in record] == [4, 8]


@pytest.mark.parametrize("interval", [0, 1, 2])
def test_the_first_and_the_last_evaluation_are_always_told(settings: dict[str, Any], interval: int) -> None:
    ends = {"evaluate_first": True, "evaluate_last": True, "train_iters": 3}
    trained({**settings, **ends, "eval_interval": interval, "eval_log_iter_interval": 2})
    steps = [record["step"] for record in records(settings) if "loss/eval" in record]
    assert steps == ([0, 2, 3] if interval == 1 else [0, 3])


def test_the_evaluation_loss_is_the_mean_over_all_targets(settings: dict[str, Any]) -> None:
    trainer = Keeping(get_config({**settings, "micro_batch_size": 3}))  # 10 rows by 3: the last batch is smaller
    value = trainer.evaluate()["loss/eval"]
    total, count = 0.0, 0
    for sample in trainer.eval_loaders["eval"].dataset:
        ids, labels = (torch.tensor(sample[key])[None].long() for key in ("input_ids", "labels"))
        seen = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(trainer.model.module.eval()(input_ids=ids, labels=labels).loss) * seen
        count += seen
    assert value == pytest.approx(total / count, rel=1e-5)
    trainer.close()


@pytest.mark.parametrize(
    ("more", "updates", "epoch", "batches"),
    [
        ({}, 10, 2, 0),
        ({"train_iters": 7}, 7, 1, 2),
        ({"train_iters": 5}, 5, 1, 0),
        ({"exit_iteration": 3, "gradient_accumulation_steps": 2}, 3, 1, 0),
        ({"train_iters": 12}, 12, 2, 2),
        ({"exit_iteration": 3}, 3, 0, 3),
        ({"exit_iteration_this_run": 4}, 4, 0, 4),
        ({"min_iterations": 11}, 15, 3, 0),
        ({"gradient_accumulation_steps": 2}, 6, 2, 0),
        ({"epochs": 1, "gradient_accumulation_steps": 8}, 1, 1, 0),
        ({"epoch_length": 3}, 6, 2, 0),
        ({"epoch_length": 7, "gradient_accumulation_steps": 2}, 14, 2, 0),
        ({"epoch_length": 3, "train_iters": 7}, 7, 2, 1),
        ({"epoch_length": 3, "min_iterations": 8}, 9, 3, 0),
    ],
)
def test_it_ends_when_it_should(
    settings: dict[str, Any], more: dict[str, Any], updates: int, epoch: int, batches: int
) -> None:
    progress = trained({**settings, **more}).progress
    assert (progress.step, progress.epoch, progress.sample_index) == (
        updates,
        epoch,
        batches * settings["micro_batch_size"],
    )
    assert [record["step"] for record in records(settings)] == list(range(1, updates + 1))


@pytest.mark.parametrize("end", [{"epochs": 1}, {"train_iters": 5}, {"exit_iteration": 5}])
def test_an_end_at_an_epochs_end_is_saved_as_one(settings: dict[str, Any], end: dict[str, Any]) -> None:
    trained({**settings, "checkpoint": {"type": "deepspeed", "save_every_n_epochs": 1}, **end})
    assert (Path(settings["output_dir"]) / "checkpoints" / "deepspeed" / "step_5").is_dir()


def test_epochs_have_the_length_of_the_recipe(settings: dict[str, Any]) -> None:
    settings |= {"epoch_length": 3, "epochs": 3, "scheduler": {"type": "step", "step_size": 1, "interval": "epoch"}}
    trained({**settings, "checkpoint": {"type": "deepspeed", "save_every_n_epochs": 2}})
    assert [round(3 * record["epoch"]) for record in records(settings)] == list(range(1, 10))
    rates = [record["lr"] for record in records(settings)]
    assert [rates.index(rate) // 3 for rate in rates] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    saved = Path(settings["output_dir"]) / "checkpoints" / "deepspeed"
    assert [folder.name for folder in saved.iterdir() if folder.is_dir()] == ["step_6"]


def test_an_epoch_of_a_length_and_another_global_batch_are_refused_together(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"epoch_length: 3 steps, .* remove that from allow_changes"):
        get_config({**settings, "epoch_length": 3, "allow_changes": ["global_batch_size"]})


def test_a_run_that_is_over_stays_over(settings: dict[str, Any]) -> None:
    settings |= {
        "exit_iteration": 3,
        "checkpoint": {"type": "deepspeed", "auto_resume": True, "save_end_of_training": True},
    }
    first = trained(settings, Keeping)
    again = trained(settings, Keeping)
    assert again.progress == first.progress and torch.equal(weights(first), weights(again))


def test_a_mean_over_updates_goes_on_over_a_resume(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"train_log_iter_interval": 3, "checkpoint": {"type": "deepspeed", "auto_resume": True}}
    settings["checkpoint"]["save_end_of_training"] = True
    apart = {**settings, "output_dir": str(tmp_path / "apart")}
    trained(settings)
    trained({**apart, "exit_iteration": 4})
    trained(apart)
    means, again = ([(record["step"], record["loss"]) for record in records(run)] for run in (settings, apart))
    assert [step for step, _ in means] == [3, 6, 9] and again == means


def test_a_callback_can_stop_the_run_and_another_process_can_ask_to(settings: dict[str, Any], tmp_path: Path) -> None:
    class Stops(SFTTrainer):
        callbacks = [("post-after-update", lambda self: self.stop("enough") if self.progress.step == 2 else None)]

    class Asks(SFTTrainer):
        callbacks = [("post-step", lambda self: self.request_stop("a signal") if self.progress.step == 2 else None)]

    stopped = trained(settings, Stops)
    assert (stopped.progress.step, stopped.stop_reason) == (2, "enough")
    requested = trained({**settings, "output_dir": str(tmp_path / "asked"), "evaluate_last": True}, Asks)
    assert not any("loss/eval" in record for record in records({"output_dir": tmp_path / "asked"}))  # it saves, at once
    assert requested.stop_reason == "a signal" and requested.progress.step == 4  # the update after the one under way


def test_the_kill_switch(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    trainer = trained({**settings, "kill_switch_path": str(tmp_path / "stop")})
    assert "kill switch" in trainer.stop_reason and trainer.progress.step < 10


def test_overfitting_the_first_batch(settings: dict[str, Any]) -> None:
    trained(
        {
            **settings,
            "overfit_first_batch": True,
            "epochs": 4,
            "optimizer": {"lr": 1e-2},
            "scheduler": {"type": "constant"},
        }
    )
    seen = [record["loss"] for record in records(settings)]
    assert len(seen) == 20 and seen[-1] < 0.7 * seen[0]


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    "length",
    [{"gradient_accumulation_steps": 2}, {"train_iters": 6}, {"train_iters": 6, "gradient_accumulation_steps": 4}],
)
def test_the_learning_rate_of_every_update_is_the_schedules(settings: dict[str, Any], length: dict[str, Any]) -> None:
    more = {"optimizer": {"lr": 0.01}, "scheduler": {"name": "linear", "warmup_steps": 2}}
    trained({**settings, **more, **length})
    # update n (from 0) of 6: up over two, then straight down to 0 after the last
    rates = [0.01 * min(n / 2, (6 - n) / 4) for n in range(6)]
    assert [record["lr"] for record in records(settings)] == pytest.approx(rates)


def test_a_users_trainer_overrides_the_loss_and_nothing_else(settings: dict[str, Any]) -> None:
    heard = []

    class Doubled(SFTTrainer):
        name = "doubled_for_the_test"

        def loss(self, batch: Any) -> torch.Tensor:
            heard.append(sorted(batch))
            return 2 * super().loss(batch)

    single, double = trained(settings), trained({**settings, "type": "doubled_for_the_test"}, Doubled)
    lines = records(settings)
    assert single.progress == double.progress and len(heard) == 10
    assert lines[10]["loss"] == pytest.approx(2 * lines[0]["loss"], rel=1e-5)


def test_a_run_that_is_refused_writes_nothing(settings: dict[str, Any]) -> None:
    from arctic_training.errors.types import InputError

    with pytest.raises(InputError, match="no such"):
        SFTTrainer(get_config({**settings, "model": {"name_or_path": "./nowhere"}}))
    assert not Path(settings["output_dir"]).exists()


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(settings: dict[str, Any], capsys: Any) -> None:
    from arctic_training.tracker.tracker import Tracker

    class Failing(Tracker):
        """Fails."""

        name = "failing_for_the_test"

        def start(self, recipe: Any, run_dir: Path, step: int) -> None: ...

        def log(self, values: Any, step: int) -> None:
            raise OSError("the server is gone")

    trainer = trained({**settings, "trackers": ["failing_for_the_test"]})
    assert trainer.progress.step == 10 and len(records(settings)) == 10
    assert "tracker failing_for_the_test failed and is left out from step 1 on" in capsys.readouterr().err
