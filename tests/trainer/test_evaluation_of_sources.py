"""A held-out share of several sources: the means of each source, and of all, over whatever batches and ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import ComponentConfig, Scorer, SFTTrainer, get_config
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.metrics import Metrics, parent_set, reported_sets
from tests import processes, tiny


class Length(Scorer[ComponentConfig]):
    """The length of the reference."""

    name = "length_of_a_test"

    def __call__(self, generated: str, reference: str) -> float:
        return float(len(reference))


def make_trainer(folder: Path, **more: Any) -> Any:
    if not (folder / "model").exists():
        tiny.save_model(folder / "model")
        for seed, name in enumerate(("poems", "talks")):
            tiny.save_chats(folder / f"{name}.jsonl", 9, seed=seed)
    data = {"sources": [str(folder / f"{name}.jsonl") for name in ("poems", "talks")], "max_length": 400}
    data |= {"train_eval_split": [0.5, 0.5], "cache_dir": str(folder / "cache"), **more.pop("data", {})}
    recipe = {
        "type": "sft",
        "model": {"name_or_path": str(folder / "model"), "dtype": "fp32"},
        "data": data,
        "output_dir": str(folder / "run"),
        "logger": {"level": "ERROR"},
        **more,
    }
    return SFTTrainer(get_config(recipe))


def measure(folder: str, micro: int) -> dict[str, float]:
    trainer = make_trainer(Path(folder), micro_batch_size=micro, data={"pack_samples": micro == 2})
    values: dict[str, float] = trainer.evaluate()
    trainer.close()
    return {name: value for name, value in values.items() if name.startswith("loss")}


def test_the_means_are_those_over_the_labels_of_each_source_and_of_all(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[{"type": "early_stopping"}], eval_interval=1)
    values, sums = trainer.evaluate(), dict[str, tuple[float, int]]()
    model = trainer.model.module.eval()
    for name, loader in trainer.eval_loaders.items():
        total, count = 0.0, 0
        for n in range(len(loader.dataset)):
            ids, labels = (torch.tensor(loader.dataset[n][key].copy())[None].long() for key in ("input_ids", "labels"))
            own = int((labels[:, 1:] != -100).sum())
            with torch.no_grad():
                total, count = total + model(ids, labels=labels).loss.item() * own, count + own
        sums[name] = (total, count)
    assert trainer.listeners["early_stopping"].metric == "loss/eval"
    trainer.close()
    assert set(sums) == {"eval/poems", "eval/talks"}
    for name, (total, count) in sums.items():
        assert values[f"loss/{name}"] == pytest.approx(total / count, rel=1e-5)
    both = [sum(column) for column in zip(*sums.values(), strict=True)]
    assert values["loss/eval"] == pytest.approx(both[0] / both[1], rel=1e-5)
    assert values["perplexity/eval"] == pytest.approx(2.718281828459045 ** (both[0] / both[1]), rel=1e-4)


def test_packing_and_ranks_change_nothing(tmp_path: Path) -> None:
    expected = measure(str(tmp_path), 1)
    assert set(expected) == {"loss/eval", "loss/eval/poems", "loss/eval/talks"}
    for values in (measure(str(tmp_path), 2), *processes.share(measure, 2, str(tmp_path), 2)):
        assert values == pytest.approx(expected, rel=1e-5)


def test_the_rows_to_train_and_to_evaluate_on_are_those_of_one_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(*loaders: Any) -> list[list[int]]:
        return sorted(list(one.dataset[n]["input_ids"]) for one in loaders for n in range(len(one.dataset)))

    trainer = make_trainer(tmp_path)
    train, held_out = rows(trainer.train_loader), rows(*trainer.eval_loaders.values())
    trainer.close()
    monkeypatch.setattr(SFTDataFactory, "even_batches", True)  # as where rows of all sources are compared
    trainer = make_trainer(tmp_path)
    assert list(trainer.eval_loaders) == ["eval"]
    assert (train, held_out) == (rows(trainer.train_loader), rows(*trainer.eval_loaders.values()))
    trainer.close()


def test_completions_are_scored_by_source_and_together(tmp_path: Path) -> None:
    generate = {"type": "generate", "max_new_tokens": 2, "scorers": ["length_of_a_test"]}
    trainer = make_trainer(tmp_path, evaluators=[generate])
    values = trainer.evaluate()
    counts = [len(loader.dataset) for loader in trainer.eval_loaders.values()]
    trainer.close()
    scores = [values[f"length_of_a_test/{name}"] for name in ("eval/poems", "eval/talks")]
    mean = sum(n * score for n, score in zip(counts, scores, strict=True)) / sum(counts)
    assert values["length_of_a_test/eval"] == pytest.approx(mean)


def test_parts_add_up() -> None:
    one, other, total = Metrics(), Metrics(), Metrics()
    one.add("loss", 1.0, 3)
    other.add("loss", 5.0)
    for part in (one, other):
        total.include(part)
    assert [part.compute(lambda sums: sums)["loss"] for part in (total, one, other)] == [2.0, 1.0, 5.0]
    assert reported_sets(["eval/a", "eval/b", "c"]) == ["eval", "eval/a", "eval/b", "c"]
    assert (parent_set("eval/a"), parent_set("eval")) == ("eval", "")
