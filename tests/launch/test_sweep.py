"""A sweep runs every combination in its own folder, goes on where it was stopped, and compares the runs."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from arctic_training import get_config
from arctic_training.checkpoint import folder as disk
from arctic_training.errors.types import InputError
from arctic_training.launch.combinations import combine, split_values
from arctic_training.launch.comparison import result_of, write_table
from tests.command import Run, execute, wait_for
from tests.contract import cases


def write(folder: Path, **more: Any) -> dict[str, Any]:
    """Writes a recipe of four steps, and returns it."""
    recipe = cases.recipe("tensor_classifier", folder)
    recipe |= {
        "train_iters": 4,
        "evaluate_last": True,
        "data": {**recipe["data"], "eval_sources": recipe["data"]["sources"]},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | more))
    return recipe | more


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder: Path) -> list[int]:
    """Returns the steps of the records of training."""
    return [record["step"] for record in records(folder) if "loss" in record]


def save(root: Path, step: int) -> Path:
    """Saves a checkpoint that a recipe could load a model from, as far as its files show it."""
    temp = disk.create_temp_dir(root, step)
    (temp / "config.json").write_text("{}")
    return disk.commit(temp, step, disk.fsync_and_hash(temp, ["config.json"]), {"type": "huggingface"})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-4,3e-4", ["1e-4", "3e-4"]),
        ("adamw, sgd", ["adamw", "sgd"]),
        ("[a, b],[c]", ["[a, b]", "[c]"]),
        ("{type: sgd, lr: 1},{type: adamw}", ["{type: sgd, lr: 1}", "{type: adamw}"]),
        ("'a,b',\"c,]\"", ["'a,b'", '"c,]"']),
        ("1,,2", ["1", "", "2"]),
    ],
)
def test_commas_separate_values_outside_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_each_combination_has_a_readable_folder_and_files_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saves = [{"type": "deepspeed", "output_dir": "all/often"}, {"type": "deepspeed", "output_dir": "all/best"}]
    write(tmp_path, train_log_metrics_path=str(tmp_path / "metrics.jsonl"), checkpoint=saves)
    for name in ("a b.npz", "c.npz"):
        (tmp_path / name).touch()
    axes = ["optimizer.lr=1e-4,3e-4", "seed=1,2", "data.sources=[a b.npz],[c.npz]"]
    runs = combine(str(tmp_path / "recipe.yaml"), ["epochs=2"], axes, tmp_path / "sweep")
    names = [one.name for one in runs]
    assert len(set(names)) == 8 and names[1].startswith("lr_1e-4_seed_1_sources_") and names[1].endswith("c.npz")
    assert all(re.fullmatch(r"[\w.+-]{10,100}", name) for name in names)
    assert all(one.folder == tmp_path / "sweep" / one.name for one in runs)
    for one in runs:
        assert one.config.epochs == 2 and one.config.train_log_metrics_path is None
        folders = {one.folder / "checkpoints" / "often": True, one.folder / "checkpoints" / "best": False}
        assert {section.output_dir: section.auto_resume for section in one.config.checkpoint} == folders
    assert {(one.config.optimizer.learning_rate, one.config.seed) for one in runs} == {
        (lr, seed) for lr in (1e-4, 3e-4) for seed in (1, 2)
    }
    alike = combine(str(tmp_path / "recipe.yaml"), [], ["seed=1,1", "data.seed=1,2"], tmp_path)
    assert [one.name for one in alike][:2] == ["seed_1_data.seed_1", "seed_1_data.seed_2"]
    assert len({one.name for one in alike}) == 4


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["seed"], "'seed': expected KEY.PATH=VALUE,VALUE"),
        (["seed=1,,2"], "expected KEY.PATH=VALUE,VALUE"),
        (["seed=1", "seed=2"], "each key once"),
        (["seed=1,2", "output_dir=mine"], "output_dir=mine: each run has a folder of its own in output_dir"),
        (["sed=1,2"], r"sed_1: command line: sed: unknown; did you mean 'seed'\?"),
        (["seed=" + ",".join(map(str, range(40))), "epochs=" + ",".join(map(str, range(1, 41)))], "1,600 combinations"),
    ],
)
def test_mistakes(axes: list[str], message: str, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=message):
        combine(str(tmp_path / "recipe.yaml"), [], axes, tmp_path)


@pytest.mark.parametrize("listed", [True, False])
def test_all_runs_start_from_the_checkpoints_that_are_the_newest_now(tmp_path: Path, *, listed: bool) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    begun, run, reward = save(tmp_path / "sft", 1), str(tmp_path / "sft"), {"type": "model"}
    reward["name_or_path"] = run
    recipe = {
        "type": "grpo",
        "model": {"name_or_path": run},
        "ref_model": {"dtype": "fp32"},
        "tokenizer": {"name_or_path": run},
        "data": {"sources": str(tmp_path / "rows.jsonl")},
        "rewards": [reward] if listed else reward,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    runs = combine(str(tmp_path / "recipe.yaml"), [], ["seed=1,2"], tmp_path / "sweep")
    save(tmp_path / "sft", 2)  # while the first of them trains
    for one in runs:
        for config in (one.config, get_config(tmp_path / "recipe.yaml", one.overrides)):
            sections = (config.model, config.ref_model, config.tokenizer, config.rewards[0])
            assert [section.name_or_path for section in sections] == [str(begun)] * 4


def test_the_table_has_the_best_run_first() -> None:
    runs = {
        "a": [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}, {"step": 2, "loss/eval": 2.5, "hits/eval": 0.25}],
        "b": [
            {"step": 1, "loss": 2.0},
            {"step": 1, "loss/eval": 1.5},
            {"step": 2, "loss/eval": 1.75, "hits/eval": 0.5},
        ],
        "c": [],
    }

    def rows(metric: str, mode: str) -> list[list[str]]:
        results = {name: result_of(several, metric, mode) for name, several in runs.items()}
        lines = write_table(results, {"a": "", "b": "", "c": "exit code 1"}, metric, mode).splitlines()
        return [line.split() for line in lines[1:]]

    expected = [["b", "2", "2", "1.5"], ["a", "2", "1", "2.5"], ["c", "0", "exit", "code", "1"]]
    assert rows("loss/eval", "min") == expected
    assert [row[0] for row in rows("hits/eval", "max")] == ["b", "a", "c"]
    assert [row[0] for row in rows("", "min")] == ["a", "b", "c"]


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """Ctrl-C in the second of three runs: it saves. The next start skips the first, resumes the second and runs the
    third."""
    recipe = write(tmp_path, checkpoint={"type": "deepspeed"}, code="slow.py", callbacks=["slow"])
    (tmp_path / "slow.py").write_text(SLOW)
    folder, words = tmp_path / "runs" / "recipe_sweep", ["--sweep", "seed=1,2,3"]
    with Run(tmp_path, recipe, *words) as run:
        wait_for(lambda: (tmp_path / "waiting").exists(), lambda: run.stderr)
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130
    assert steps(folder / "seed_1") == [1, 2, 3, 4]
    stopped = steps(folder / "seed_2")
    assert stopped in ([1], [1, 2], [1, 2, 3]) and not (folder / "seed_3").exists()
    before = (folder / "seed_1" / "metrics.jsonl").stat().st_mtime_ns

    done = execute(tmp_path, "recipe.yaml", *words)
    assert done.returncode == 0, done.stderr
    assert (folder / "seed_1" / "metrics.jsonl").stat().st_mtime_ns == before
    assert f"step {stopped[-1]}" in (folder / "seed_2" / "logs" / "rank_0.log").read_text()
    assert steps(folder / "seed_2") == steps(folder / "seed_3") == [1, 2, 3, 4]
    lines = done.stdout.splitlines()
    assert [line for line in lines if " of 3: " in line] == ["run 2 of 3: seed_2", "run 3 of 3: seed_3"]
    table = {row[0]: float(row[3]) for row in map(str.split, lines) if row[0].startswith("seed_")}
    assert list(table) == sorted(table, key=lambda name: table[name])
    assert table == {name: pytest.approx(records(folder / name)[-1]["loss/eval"], rel=1e-4) for name in table}

    other = execute(tmp_path, "recipe.yaml", "optimizer.lr=1", *words)
    assert other.returncode == 2 and "a finished run of another recipe (optimizer.learning_rate" in other.stderr


def test_a_run_that_fails_does_not_end_the_sweep(tmp_path: Path) -> None:
    write(tmp_path, code="slow.py", callbacks=["slow"])
    (tmp_path / "slow.py").write_text(SLOW)
    done = execute(tmp_path, "recipe.yaml", "--sweep", "seed=13,1")
    assert done.returncode == 1 and "unlucky" in done.stderr
    assert done.stdout.splitlines()[-2].split()[0] == "seed_1"
    assert done.stdout.splitlines()[-1].split() == ["seed_13", "0", "exit", "code", "1"]
    assert steps(tmp_path / "runs" / "recipe_sweep" / "seed_1") == [1, 2, 3, 4]


SLOW = """
import time
from pathlib import Path

from arctic_training import Callback


class Slow(Callback):
    name = "slow"

    def post_step(self, trainer):
        file = Path(__file__).with_name("waiting")
        if trainer.config.seed == 13:
            raise ValueError("unlucky")
        if trainer.config.seed == 2 and not file.exists():
            file.touch()
            time.sleep(1)
"""
