"""A loss of one's own reads columns of the rows; the model does not get them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import SFTTrainer, target_samples, token_losses
from tests.objectives import tiny_runs

ROWS = [{"prompt": "one two", "completion": " three four", "score": score, "origin": "a"} for score in (0.5, 2.0)]


class Weighted(SFTTrainer):
    """Weighs each sample by its score."""

    name = "test_weighted"

    def loss(self, batch: Any) -> torch.Tensor:
        assert batch["origin"] == ["a"] * len(batch["score"])
        counts = (batch["labels"] != -100).sum(1)
        weights = batch["score"].repeat_interleave(counts)
        return (weights * token_losses(self.model, batch)).sum() / batch["num_items_in_batch"]


@pytest.mark.parametrize("kind", ["sft", "test_weighted"])
def test_a_score_weighs_a_sample(kind: str, tmp_path: Path) -> None:
    sections = tiny_runs.save_files(tmp_path, "rows.jsonl", ROWS)
    losses = []
    for split in ("train[:1]", "train[1:]"):
        data = {"sources": [{"name_or_path": str(tmp_path / "rows.jsonl"), "split": split}]}
        data["extra_columns"] = ["score", "origin"]
        trainer = tiny_runs.make_trainer(tmp_path, sections, type=kind, data=data, train_iters=1)
        trainer.train_loader.seek(0, 0)
        batch = next(iter(trainer.train_loader))
        losses.append(trainer.loss({**batch, "num_items_in_batch": trainer.targets(batch)}).item())
        trainer.close()
    assert losses[1] / losses[0] == pytest.approx(4.0 if kind == "test_weighted" else 1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        ({"labels": [[-100, 5, -100, 6], [-100, -100, 7, 8]]}, [0, 0, 1, 1]),
        ({"labels": [[5, 6, -100], [-100, -100, -100], [7, -100, 8]]}, [0, 0, 2, 2]),  # of an encoder-decoder
        ({"labels": [[-100, 1, 2, -100, 4, -100, -100, 5]], "cu_seq_lens_q": [0, 3, 5, 8]}, [0, 0, 1, 2]),
        ({"labels": [[-100, -100]], "cu_seq_lens_q": [0, 2]}, []),
    ],
)
def test_the_sample_of_each_target(batch: dict[str, Any], samples: list[int]) -> None:
    assert target_samples({name: torch.tensor(values) for name, values in batch.items()}).tolist() == samples
