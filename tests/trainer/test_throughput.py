"""What a run measures of itself: tokens, times, memory, the share of the device's peak, and evaluations."""

import json
import math
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from arctic_training import SFTTrainer, get_config
from arctic_training.loss.tokens import TokenCounts
from arctic_training.model.flops import count_flops
from tests import tiny


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    """Ten chats, two at a time: five steps an epoch."""
    rows = tiny.save_chats(tmp_path / "chats.jsonl", 10)
    return {
        "type": "sft",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": [str(rows)], "eval_sources": [str(rows)], "max_length": 400, "dl_num_workers": 0},
        "micro_batch_size": 2,
        "output_dir": str(tmp_path / "run"),
        "loss_log_interval": 0,
    }


def records(settings: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(settings["output_dir"]) / "metrics.jsonl").read_text().splitlines()]


def trained(settings: dict[str, Any], cls: type[SFTTrainer] = SFTTrainer) -> Any:
    trainer = cls(get_config(settings))
    trainer.train()
    trainer.close()
    return trainer


def test_tokens_and_operations_are_those_of_the_data(settings: dict[str, Any]) -> None:
    class Keeps(SFTTrainer):
        def check(self) -> None:
            self.flops = count_flops(self.model.module)

    settings |= {"peak_tflops": 0.5, "epochs": 2, "train_log_iter_interval": 5, "gradient_accumulation_steps": 1}
    trainer: Any = trained(settings, Keeps)
    samples = list(trainer.eval_loaders["eval"].dataset)
    lengths = [len(sample["input_ids"]) for sample in samples]
    labels = sum(int((sample["labels"][1:] != -100).sum()) for sample in samples)
    first, second = records(settings)
    assert [one["num_tokens"] for one in (first, second)] == [sum(lengths), 2 * sum(lengths)]
    operations = trainer.flops.training(TokenCounts(sum(lengths), sum(n * n for n in lengths), labels))
    for one in (first, second):
        assert one["tokens_per_second"] * one["seconds"] * 5 == pytest.approx(sum(lengths), rel=1e-6)
        assert one["targets_per_second"] * one["seconds"] * 5 == pytest.approx(labels, rel=1e-6)
        assert one["mfu"] * one["seconds"] * 5 * 0.5e12 == pytest.approx(operations, rel=1e-6)
    resident = psutil.Process().memory_info().rss / 2**30
    assert 0.9 * resident < second["peak_host_memory"] < 20 * resident and "peak_memory" not in second


def test_waiting_for_data_counts_and_an_evaluation_does_not(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from arctic_training.data.factories.sft import SFTDataFactory

    collate = SFTDataFactory.collate

    def slow(self: SFTDataFactory, samples: Any) -> Any:
        time.sleep(0.1)
        return collate(self, samples)

    monkeypatch.setattr(SFTDataFactory, "collate", slow)
    trained({**settings, "eval_interval": 1, "train_iters": 3})
    steps = [one for one in records(settings) if "loss" in one]
    assert len(steps) == 3
    for one in steps:  # an evaluation takes half a second, in five batches
        assert 0.1 < one["data_seconds"] <= one["seconds"] < 0.4
        assert "mfu" not in one  # the peak of a CPU is unknown


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_evaluation_measures_perplexity_and_accuracy(settings: dict[str, Any], smoothing: float) -> None:
    trainer = SFTTrainer(get_config({**settings, "micro_batch_size": 3, "label_smoothing": smoothing}))
    values = trainer.evaluate()
    total, right, smoothed, count = 0.0, 0, 0.0, 0
    for sample in trainer.eval_loaders["eval"].dataset:
        ids, labels = (torch.tensor(sample[key])[None].long() for key in ("input_ids", "labels"))
        with torch.no_grad():
            logits = trainer.model.module.eval()(input_ids=ids).logits[0, :-1]
        kept = labels[0, 1:] != -100
        logits, targets = logits[kept], labels[0, 1:][kept]
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        smoothed += float(
            torch.nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        )
        right += int((logits.argmax(-1) == targets).sum())
        count += len(targets)
    assert values == {
        "loss/eval": pytest.approx(smoothed / count, rel=1e-5),
        "perplexity/eval": pytest.approx(math.exp(total / count), rel=1e-5),
        "token_accuracy/eval": pytest.approx(right / count, rel=1e-6),
    }
    trainer.close()


def test_the_line_after_saves_says_what_they_took(settings: dict[str, Any]) -> None:
    took: dict[int, float] = {}

    class SavesSlowly(SFTTrainer):
        def checkpoint(self, engines: Any = None) -> None:
            began = time.perf_counter()
            time.sleep(0.3)
            super().checkpoint(engines)
            took[self.progress.step] = time.perf_counter() - began

    checkpoint = [{"type": kind, "save_every_n_steps": every} for kind, every in (("deepspeed", 1), ("huggingface", 2))]
    settings |= {"epochs": 2, "train_log_iter_interval": 3, "checkpoint": checkpoint}
    trained(settings, SavesSlowly)
    first, second, third = records(settings)
    # a step is logged before it is saved
    for line, saved in ((first, (1, 2)), (second, (3, 4, 5)), (third, (6, 7, 8))):
        seconds = sum(took[step] for step in saved)
        assert seconds <= line["save_seconds"] < seconds + 0.5
    settings |= {"checkpoint": [], "output_dir": settings["output_dir"] + "_unsaved"}
    trained(settings)
    assert records(settings) and not any("save_seconds" in one for one in records(settings))


def test_tokens_go_on_over_a_resume_and_begin_at_none_in_an_older_checkpoint(settings: dict[str, Any]) -> None:
    from arctic_training.state import Progress

    save = {"type": "deepspeed", "auto_resume": True, "save_end_of_training": True}
    for end in (2, 5):
        trained({**settings, "checkpoint": save, "exit_iteration": end})
    counts = [one["num_tokens"] for one in records(settings)]
    assert len(counts) == 5 and counts == sorted(set(counts))
    progress = Progress(epoch=1, step=3)
    state = {key: value for key, value in progress.state_dict().items() if key != "num_tokens"}
    older = Progress()
    older.load_state_dict(state)
    assert older == progress
