"""Reference log-probabilities that are computed once: the same numbers, kept under what they depend on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.objectives import precomputed
from tests import processes, tiny
from tests.objectives.dpo_runs import first_batch, make_trainer, save_files, train
from tests.trainer.weights import moved, same

PRECOMPUTE: dict[str, Any] = {"precompute_ref_log_probs": True}
LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of samples of each pass of the reference."""
    sizes: list[int] = []
    compute = precomputed.compute_columns

    def count(*args: Any) -> Any:
        sizes.append(len(args[-1].dataset))
        return compute(*args)

    monkeypatch.setattr(precomputed, "compute_columns", count)
    return sizes


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"data": {"pack_samples": False}},
        {"model": {"peft_config": LORA}},
        {"loss_type": ["ipo", "sigmoid"], "f_divergence_type": "js_divergence", "ld_alpha": 0.4},
    ],
)
def test_the_loss_is_that_of_a_reference_in_memory(tmp_path: Path, keys: dict[str, Any]) -> None:
    losses = []
    for more in ({}, PRECOMPUTE):
        trainer = moved(make_trainer(tmp_path, micro_batch_size=4, **keys, **more))
        assert set(trainer.engines) == ({"model"} if more or "model" in keys else {"model", "ref_model"})
        trainer.train_loader.seek(0, 0)
        batches = [{**batch, "num_items_in_batch": 7.0} for batch in trainer.train_loader]
        with torch.no_grad():
            losses.append([trainer.loss(batch).item() for batch in batches])
        trainer.close()
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


def test_training_and_evaluation_are_the_same(tmp_path: Path) -> None:
    evaluations = []
    for more in ({}, PRECOMPUTE):
        data = {"train_eval_split": [0.6, 0.4]}
        trainer = make_trainer(tmp_path, micro_batch_size=2, sft_weight=0.5, data=data, **more)
        trainer.train()
        evaluations.append(trainer.evaluate())
        trainer.close()
    assert evaluations[1] == pytest.approx(evaluations[0], rel=1e-5)


def test_the_values_are_computed_once(tmp_path: Path, computed: list[int]) -> None:
    keys = {**PRECOMPUTE, "micro_batch_size": 2}
    split = {"train_eval_split": [0.6, 0.4]}
    make_trainer(tmp_path, **keys, data=split).close()
    assert computed == [4, 3]
    make_trainer(tmp_path, **keys, data=split).close()
    make_trainer(tmp_path, **keys, data=split, beta=0.5, optimizer={"type": "sgd", "lr": 1}).close()
    assert computed == [4, 3]
    make_trainer(tmp_path, **keys, data=split | {"seed": 5}).close()  # another split
    assert computed == [4, 3, 4, 3]
    make_trainer(tmp_path, **keys).close()
    assert computed == [4, 3, 4, 3, 7]
    tiny.save_model(tmp_path / "other", seed=1)
    make_trainer(tmp_path, **keys, ref_model={"name_or_path": str(tmp_path / "other")}).close()
    assert computed == [4, 3, 4, 3, 7, 7]
    make_trainer(tmp_path, **keys, ref_model={"name_or_path": str(tmp_path / "other"), "dtype": "bf16"}).close()
    assert computed == [4, 3, 4, 3, 7, 7, 7]
    for _ in range(2):
        make_trainer(tmp_path, **keys, ld_alpha=0.5).close()
    assert computed == [4, 3, 4, 3, 7, 7, 7, 7]


def test_weights_that_change_under_their_name_are_computed_again(tmp_path: Path, computed: list[int]) -> None:
    save_files(tmp_path)
    make_trainer(tmp_path, **PRECOMPUTE).close()
    tiny.save_model(tmp_path / "model", seed=3)
    make_trainer(tmp_path, **PRECOMPUTE).close()
    assert computed == [7, 7]


def test_a_lost_cache_is_filled_again_and_the_run_resumes_to_the_bit(tmp_path: Path, computed: list[int]) -> None:
    import shutil

    checkpoint = {"type": "deepspeed", "auto_resume": True, "save_end_of_training": True}
    keys = {**PRECOMPUTE, "micro_batch_size": 4, "checkpoint": checkpoint}
    expected = train(str(tmp_path), **keys, output_dir=str(tmp_path / "whole"))
    train(str(tmp_path), **keys, exit_iteration_this_run=1)
    shutil.rmtree(tmp_path / "cache")
    resumed = train(str(tmp_path), **keys)
    assert computed == [7, 7]
    assert all(torch.equal(resumed[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("stage", [1, 3])
def test_two_processes_are_one(tmp_path: Path, stage: int) -> None:
    """Each computes some of the seven pairs; the second has no row of the last batch."""
    expected = train(str(tmp_path), micro_batch_size=4)
    block = {"gradient_clipping": 0, "zero_optimization": {"stage": stage}}
    keys = {**PRECOMPUTE, "micro_batch_size": 2, "deepspeed": block}
    for part in processes.share(train, 2, str(tmp_path), **keys):
        same(expected, part)
    (entry,) = [one for one in (tmp_path / "cache").iterdir() if "ref_chosen_logps" in _columns(one)]
    single = make_trainer(tmp_path, **PRECOMPUTE)  # the key depends neither on stage nor processes
    assert [one for one in (tmp_path / "cache").iterdir() if "ref_chosen_logps" in _columns(one)] == [entry]
    single.close()


def test_ranks_that_share_sequences_have_all_values(tmp_path: Path) -> None:
    expected = train(str(tmp_path), micro_batch_size=4)
    for part in processes.share(train, 2, str(tmp_path), micro_batch_size=4, sequence_parallel_size=2, **PRECOMPUTE):
        same(expected, part)


def _columns(entry: Path) -> list[str]:
    import pyarrow as pa

    with pa.memory_map(str(entry / "rows.arrow")) as source:
        return pa.ipc.open_file(source).schema.names  # type: ignore[no-any-return]


def test_a_reference_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from arctic_training.errors.types import ModelError

    save_files(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match="ref_chosen_logps: sample 0 has nan"):
        make_trainer(tmp_path, ref_model={"name_or_path": str(tmp_path / "broken")}, **PRECOMPUTE)


def test_the_batch_holds_the_values_of_its_pairs(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, micro_batch_size=3, **PRECOMPUTE)
    batch = first_batch(trainer)
    with torch.no_grad():
        expected = trainer.log_probs(trainer.model, batch)
    torch.testing.assert_close(batch["ref_chosen_logps"], expected.chosen, rtol=0, atol=1e-5)
    torch.testing.assert_close(batch["ref_rejected_logps"], expected.rejected, rtol=0, atol=1e-5)
    trainer.close()


def test_rows_may_hold_the_values(tmp_path: Path) -> None:
    """Numbers that another program computed, of the seven pairs in the order of their file."""
    sections = save_files(tmp_path)
    trainer = make_trainer(tmp_path, micro_batch_size=7, **PRECOMPUTE)
    loader = trainer.train_loader.in_order()
    with torch.no_grad():
        log_probs = trainer.log_probs(trainer.model, next(iter(loader)))
    trainer.close()
    (file,) = map(Path, sections["data"]["sources"])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row, chosen, rejected in zip(rows, log_probs.chosen.tolist(), log_probs.rejected.tolist(), strict=True):
        row |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    (tmp_path / "with_columns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"sources": [str(tmp_path / "with_columns.jsonl")]}
    data |= {"extra_columns": ["ref_chosen_logps", "ref_rejected_logps"]}  # type: ignore[dict-item]
    expected = train(str(tmp_path), micro_batch_size=4)
    same(expected, train(str(tmp_path), micro_batch_size=4, data=data))
