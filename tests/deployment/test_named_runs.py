"""A recipe names a run as its model: it stands for one checkpoint, on all ranks, and until the run is over."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import DPOTrainer, SFTTrainer, get_config
from arctic_training.checkpoint import folder as disk
from arctic_training.checkpoint.saved_model import find_checkpoint, find_model
from arctic_training.config.get_config import missing_paths
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.types import InputError, ResumeError
from arctic_training.trainer import named_runs
from arctic_training.trainer.named_runs import find_named_runs, find_named_runs_together, with_checkpoints
from arctic_training.trainer.plan import Machine, make_plan
from arctic_training.trainer.validation import check_run
from tests.deployment.runs import IDS, TrainedRun
from tests.processes import share


def save(root: Path, step: int, kind: str = "huggingface", **files: str) -> Path:
    """Saves a checkpoint of a few bytes."""
    temp = disk.create_temp_dir(root, step)
    for name, text in {"config.json": "{}", **files}.items() if kind == "huggingface" else [("w", "1")]:
        (temp / name).write_text(text)
    return disk.commit(temp, step, disk.fsync_and_hash(temp, disk.list_files(temp)), {"type": kind})


def recipe(run: TrainedRun, folder: Path, model: Path, **keys: Any) -> dict[str, Any]:
    return {
        "model": {"name_or_path": str(model), "dtype": "fp32"},
        "data": {"sources": [f"{run.folder}/chats.jsonl"], "max_length": 400},
        "train_iters": 1,
        "output_dir": str(folder),
        "loss_log_interval": 0,
        **keys,
    }


def later(run: Path) -> Path:
    """Adds a newer checkpoint to a run: a copy of the one that it has."""
    root = run / "checkpoints" / "huggingface"
    newer = Path(shutil.copytree(root / "step_4", root / "step_6"))
    disk.update_manifest(newer, {"step": 6})
    disk.atomic_write(root / disk.LATEST, "step_6\n")
    return newer


def pairs(folder: Path) -> str:
    row = {"prompt": "what is the sum of one and two", "chosen": "three", "rejected": "four"}
    (folder / "pairs.jsonl").write_text((json.dumps(row) + "\n") * 8)
    return f"{folder}/pairs.jsonl"


@pytest.mark.parametrize("part", ["", "checkpoints/huggingface", "checkpoints/huggingface/latest"])
def test_a_run_is_its_newest_checkpoint(full_run: TrainedRun, tmp_path: Path, part: str) -> None:
    config = get_config(recipe(full_run, tmp_path / "next", full_run.run_dir / part))
    trainer = SFTTrainer(config)
    with torch.no_grad():
        assert torch.equal(trainer.model.module.eval()(input_ids=IDS).logits.float(), full_run.logits)
    trainer.close()
    checkpoint = str(full_run.checkpoint("huggingface"))
    assert trainer.config.model.name_or_path == trainer.tokenizer.name_or_path == checkpoint
    assert get_config(tmp_path / "next" / "recipe.yaml").model.name_or_path == checkpoint
    assert config.model.name_or_path == str(full_run.run_dir / part)  # which another run reads anew


def test_an_adapter_is_merged_into_its_base(lora_run: TrainedRun, tmp_path: Path) -> None:
    trainer = SFTTrainer(get_config(recipe(lora_run, tmp_path / "next", lora_run.run_dir)))
    with torch.no_grad():
        logits = trainer.model.module.eval()(input_ids=IDS).logits.float()
    trainer.close()
    torch.testing.assert_close(logits, lora_run.logits, atol=1e-4, rtol=1e-4)


def test_the_commands_before_a_run_know_it(full_run: TrainedRun, tmp_path: Path) -> None:
    run = Path(shutil.copytree(full_run.run_dir, tmp_path / "run"))
    config = get_config(recipe(full_run, tmp_path / "next", run))
    assert missing_paths(config) == []
    check_run(config)
    assert make_plan(config, Machine()).models[0].footprint.parameters > 0
    shutil.rmtree(run / "checkpoints" / "huggingface")
    why = (
        f"model.name_or_path: {run}: its newest checkpoint, {run}/checkpoints/deepspeed/step_4, is of type deepspeed, "
        f"which only its own run loads; write it as a model: arctic_training export {run}/checkpoints/deepspeed/step_4 "
        "-o DIR"
    )
    assert missing_paths(config) == [why]
    for use in (check_run, SFTTrainer):
        with pytest.raises(InputError) as error:
            use(config)
        assert str(error.value) == why
    assert not (tmp_path / "next").exists()


def test_a_run_that_went_on_is_not_what_the_next_one_resumes_with(full_run: TrainedRun, tmp_path: Path) -> None:
    run = Path(shutil.copytree(full_run.run_dir, tmp_path / "run"))
    checkpoint = {"type": "deepspeed", "auto_resume": True, "save_every_n_steps": 1}
    keys: dict[str, Any] = {"checkpoint": checkpoint, "type": "dpo", "train_iters": 3, "exit_iteration_this_run": 1}
    keys["data"] = {"sources": [pairs(tmp_path)], "max_length": 400}

    def start(model: Path) -> int:
        trainer = DPOTrainer(get_config(recipe(full_run, tmp_path / "next", model, **keys)))
        assert trainer.config.ref_model is trainer.config.model  # one section is still that of both
        trainer.train()
        trainer.close()
        return trainer.progress.step

    assert start(run) == 1 and start(run) == 2
    newer, older = later(run), run / "checkpoints" / "huggingface" / "step_4"
    with pytest.raises(ResumeError) as error:
        start(run)
    shown = [one.rpartition("...")[2] for one in re.findall("'(.*?)'", str(error.value))]
    assert len(shown) == 4 and all(str(newer if n % 2 else older).endswith(one) for n, one in enumerate(shown))
    assert "  model.name_or_path: saved '" in str(error.value) and "  ref_model.name_or_path: saved '" in str(
        error.value
    )
    assert start(older) == 3


def test_every_section_that_names_a_model_may_name_a_run(tmp_path: Path) -> None:
    newest = save(tmp_path / "run" / "checkpoints" / "huggingface", 3)
    run = str(tmp_path / "run")
    config = get_config(
        {
            "type": "ppo",
            "model": {"name_or_path": run},
            "critic": {"name_or_path": "some/model"},
            "tokenizer": {"name_or_path": run},
            "data": {"sources": [run]},
            "rewards": ["exact_match", {"type": "model", "name_or_path": run}],
        }
    )
    replaced = with_checkpoints(config, find_named_runs(config))
    sections = (replaced.model, replaced.ref_model, replaced.tokenizer, replaced.rewards[1])
    assert [one.name_or_path for one in sections] == [str(newest)] * 4
    assert (replaced.critic.name_or_path, replaced.data.sources[0].name_or_path) == ("some/model", run)
    assert replaced.model_fields_set == config.model_fields_set and replaced.ref_model is replaced.model
    assert with_checkpoints(config, {}) is config
    (tmp_path / "run" / "checkpoints" / "huggingface" / "step_3" / "config.json").unlink()
    with pytest.raises(InputError, match=r"^model\.name_or_path: .*: no complete checkpoint in it, .*json is missing"):
        find_named_runs(config)


def test_a_folder_from_the_environment_is_saved_as_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = save(tmp_path / "run", 3)
    monkeypatch.setenv("RUNS", str(tmp_path))
    recipe = {"model": {"name_or_path": "${env:RUNS}/run"}, "data": {"sources": "x"}}
    config = get_config(recipe)
    saved = with_checkpoints(config, find_named_runs(config)).dump()
    assert saved["model"]["name_or_path"] == "${env:RUNS}/run/step_3"  # type: ignore[index]
    assert get_config(saved).model.name_or_path == str(newest)


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    run, root = tmp_path / "run", tmp_path / "run" / "checkpoints" / "huggingface"
    run.mkdir()
    assert find_checkpoint(str(run)) == str(run)  # a folder of anything
    (run / "environment.json").write_text("{}")
    with pytest.raises(InputError, match="no complete checkpoint in it, and no model"):
        find_checkpoint(str(run))
    steps = {step: save(root, step) for step in (2, 10, 4)}
    assert find_checkpoint(str(run)) == str(steps[4])  # 10 was left by an earlier run in this folder
    (steps[4] / "config.json").write_text("")
    assert find_checkpoint(str(run)) == find_checkpoint(str(root)) == str(steps[2])
    save(run / "checkpoints" / "deepspeed", 2, "deepspeed")
    assert find_model(str(run)) == str(steps[2])  # of two of one step
    (root / "best").write_text("step_10\n")
    assert find_checkpoint(str(root / "best")) == str(steps[10])
    with pytest.raises(InputError, match=r"config\.json has 0 bytes instead of 2"):
        find_checkpoint(str(root / "latest"))
    (root / "best").write_text("../../elsewhere\n")
    with pytest.raises(InputError, match="best: names no checkpoint"):
        find_checkpoint(str(root / "best"))
    newest = save(run / "checkpoints" / "deepspeed", 3, "deepspeed")
    for name in (str(run), str(newest)):
        with pytest.raises(InputError, match=f"of type deepspeed, .*: arctic_training export {newest} -o DIR"):
            find_model(name)


def test_no_checkpoint_leads_out_of_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = save(tmp_path / "elsewhere", 1)
    root = tmp_path / "inside" / "run" / "checkpoints" / "huggingface"
    root.mkdir(parents=True)
    (root / "step_1").symlink_to(elsewhere)
    assert find_model(str(tmp_path / "inside" / "run")) == str(root / "step_1")
    monkeypatch.setenv("ARCTIC_TRAINING_ROOT", str(tmp_path / "inside"))
    with pytest.raises(InputError, match="step_1 leads out of"):
        find_model(str(tmp_path / "inside" / "run"))


def find_on_a_rank(run: str) -> tuple[str, str]:
    """Has each rank see another newest checkpoint, and returns what it sees and what it takes."""
    from arctic_training.distributed import process_group

    process_group.init_process_group()
    config: TrainerConfig = get_config({"model": {"name_or_path": run}, "data": {"sources": "x"}})
    own = f"{run}/step_{process_group.rank()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(named_runs, "find_model", lambda name: own)
        return own, with_checkpoints(config, find_named_runs_together(config)).model.name_or_path


def test_all_ranks_take_what_the_first_finds(tmp_path: Path) -> None:
    seen = share(find_on_a_rank, 2, str(tmp_path))
    assert [one for one, _ in seen] == [f"{tmp_path}/step_0", f"{tmp_path}/step_1"]
    assert {taken for _, taken in seen} == {f"{tmp_path}/step_0"}
