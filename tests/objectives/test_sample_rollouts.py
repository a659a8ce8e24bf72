"""The callback `sample_rollouts`: what it writes of a step is what the step was trained on."""

import json
import re
from pathlib import Path

import pytest

from arctic_training.errors.types import InputError
from tests.objectives import grpo_runs


def even_share(text: str, cut: int = 0) -> object:
    """The reward of the run, without special tokens, and without a letter that has ended the completion."""
    text = re.sub(r"<\|\w+\|>", "", text)
    text = text[: len(text) - cut]
    return pytest.approx(sum(ord(letter) % 2 == 0 for letter in text) / max(len(text), 1), abs=1e-6)


def test_completions_are_written_with_the_rewards_of_the_step(tmp_path: Path) -> None:
    callback = {"type": "sample_rollouts", "every": 2, "count": 100}
    trainer = grpo_runs.make_trainer(
        tmp_path, callbacks=[callback], train_iters=3, micro_batch_size=3, train_log_iter_interval=1
    )
    trainer.train()
    trainer.close()
    records = [json.loads(line) for line in (trainer.run_dir / "metrics.jsonl").read_text().splitlines()]
    rewards = {record["step"]: record["reward"] for record in records if "reward" in record}
    folder = trainer.run_dir / "samples" / "sample_rollouts"
    assert sorted(path.name for path in folder.iterdir()) == ["step_2.jsonl", "step_3.jsonl"]
    for step in (2, 3):
        rows = [json.loads(line) for line in (folder / f"step_{step}.jsonl").read_text().splitlines()]
        assert sum(row["reward"] for row in rows) / len(rows) == pytest.approx(rewards[step], abs=1e-4)
        groups: dict[str, list[float]] = {}
        for row in rows:
            groups.setdefault(row["prompt"], []).append(row["advantage"])
            assert row["reward/even_for_tests"] in (even_share(row["completion"]), even_share(row["completion"], 1))
        # three completions of each prompt, compared with one another
        assert all(len(group) == 3 and sum(group) == pytest.approx(0, abs=1e-4) for group in groups.values())


def test_it_is_refused_where_a_rank_has_a_part_of_each_completion(tmp_path: Path) -> None:
    trainer = grpo_runs.make_trainer(tmp_path, callbacks=["sample_rollouts"])
    (callback,) = [one for one in trainer.listeners.values() if one.name == "sample_rollouts"]
    trainer.config.sequence_parallel_size = 2
    with pytest.raises(InputError, match="sequence_parallel_size: 1"):
        callback.check_recipe(trainer)
    trainer.close()
