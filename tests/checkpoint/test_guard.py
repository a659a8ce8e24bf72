"""A run goes on from a checkpoint of itself only, or from one that differs in what is named as wanted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from arctic_training import get_config
from arctic_training.errors.types import ResumeError
from arctic_training.trainer.validation import check_run
from tests import forked, processes, tiny
from tests.contract.cases import recipe

TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + ']' + message['content'] + '<|im_end|>' }}{% endfor %}"
)

# what is changed, and the lines that must be told of it
REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "lr": ({"optimizer": {"lr": 2e-3}}, ["optimizer.learning_rate: saved 0.001, now 0.002"]),
    "another optimizer": ({"optimizer": {"type": "sgd", "lr": 1e-3}}, ["optimizer.type: saved adamw, now sgd"]),
    "epochs": ({"epochs": 3}, ["epochs: saved 2, now 3"]),
    "length": ({"train_iters": 30}, ["train_iters: saved 0, now 30"]),
    "seed": ({"seed": 8}, ["seed: saved 7, now 8"]),
    "order": ({"data.seed": 8}, ["data.seed: saved 42, now 8"]),
    "clipping": (
        {"deepspeed": {"gradient_clipping": 0.5}},
        ["deepspeed.gradient_clipping: saved nothing, now 0.5"],
    ),
    "dropout": (
        {"model.hf_config_kwargs": {"attention_dropout": 0.2}},
        ["model.hf_config_kwargs.attention_dropout: saved 0.1, now 0.2"],
    ),
    "a callback": ({"callbacks": ["ema"]}, ["callbacks: saved 0 entries, now 1 entry"]),
    "global batch": ({"gradient_accumulation_steps": 2}, ["global_batch_size: saved 2, now 4"]),
    "an edited row": ({"data.sources": ["{files}/edited.jsonl"]}, ["data.samples: saved 10 samples ("]),
    "a row more": (
        {"data.sources": ["{files}/longer.jsonl"]},
        ["data.samples: saved 10 samples (", "now 11 samples ("],
    ),
    "fewer rows": (
        {"data.sources": [{"name_or_path": "{files}/chats.jsonl", "sample_count": 9}]},
        ["data.sources.0.sample_count: saved null, now 9", "data.samples: saved 10 samples (", "now 9 samples ("],
    ),
    "template": ({"tokenizer.chat_template": TEMPLATE}, ["data.samples: ", "tokenizer.files: "]),
    "tokenizer": ({"tokenizer.name_or_path": "{files}/tokenizer"}, ["tokenizer.files: saved "]),
    "two at once": (
        {"optimizer": {"lr": 2e-3}, "seed": 8},
        ["optimizer.learning_rate: saved 0.001, now 0.002", "seed: saved 7, now 8"],
    ),
}
RESUME_SAFE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "data that moved": {"data.sources": ["{files}/moved/others.jsonl"], "data.cache_dir": "{files}/cache2"},
    "a path written otherwise": {"model.name_or_path": "{files}/../files/model"},
    "another cut of the global batch": {"micro_batch_size": 1, "gradient_accumulation_steps": 2},
    "another ZeRO stage": {"deepspeed": {"zero_optimization": {"stage": 1, "reduce_bucket_size": 1000}}},
    "what is told and measured": {
        "loss_log_interval": 3,
        "train_log_iter_interval": 2,
        "eval_interval": 1,
        "evaluate_last": True,
        "data.eval_sources": ["{files}/edited.jsonl"],
        "logger": {"level": "WARNING"},
        "exit_iteration": 9,
        "data.num_proc": 2,
        "data.dl_num_workers": 1,
        "kill_switch_path": "/nowhere/stop",
        "hang_timeout": 77,
    },
}


def with_changes(root: Path, changes: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The recipe with ``changes``, whose keys are paths; ``{files}`` is where its files are."""
    settings = recipe("sft", root / "files")
    settings |= {"output_dir": str(root / "run"), "checkpoint": {"type": "deepspeed", "auto_resume": True}} | more
    changes = json.loads(json.dumps(changes).replace("{files}", str(root / "files")))
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (settings.setdefault(section, {}) if section else settings)[name] = value
    return settings


def start(settings: Any, **environment: str) -> str:
    """What becomes of a run that is to go on: the update it goes on after and its next rate, or why not."""
    import os

    from arctic_training import get_config
    from arctic_training.errors.types import ArcticError
    from arctic_training.registry import lookup

    os.environ.update(environment)
    config = get_config(settings)
    try:
        trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    except ArcticError as error:
        return f"{type(error).__name__} {error.exit_code}: {error}"
    engine = trainer.model.deepspeed
    shown = f"after {trainer.progress.step}, lr {engine.optimizer.param_groups[0]['lr']:.6f}"
    trainer.close()
    return shown


def train(settings: Any) -> None:
    from arctic_training import get_config
    from arctic_training.registry import lookup

    config = get_config(settings)
    trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    trainer.train()
    trainer.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files, and with a run that has checkpoints of steps 1 and 2."""
    root = tmp_path_factory.mktemp("guard")
    settings = with_changes(root, {"exit_iteration": 2, "checkpoint": {"type": "deepspeed", "save_every_n_steps": 1}})
    rows = (root / "files" / "chats.jsonl").read_text().splitlines(keepends=True)
    rows[3] = json.dumps({"messages": tiny.chats(1, seed=99)[0]["messages"]}) + "\n"
    (root / "files" / "edited.jsonl").write_text("".join(rows))
    (root / "files" / "longer.jsonl").write_text("".join([*rows, rows[0]]))
    (root / "files" / "moved").mkdir()
    shutil.copy(root / "files" / "chats.jsonl", root / "files" / "moved" / "others.jsonl")
    tiny.save_tokenizer(root / "files" / "tokenizer")
    tokenizer = json.loads((root / "files" / "tokenizer" / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-5]
    (root / "files" / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
    processes.share(train, 1, settings)
    return root


@pytest.mark.fault(19)
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_changed_is_told_and_refused_unless_it_is_named(root: Path, name: str) -> None:
    changes, lines = REFUSED[name]
    (message,) = processes.share(start, 1, with_changes(root, changes))
    assert message.startswith("ResumeError 2: ") and "step_2 is of another run" in message
    for line in lines:
        assert line in message
    keys = message.partition("allow_changes: [")[2].rstrip("]").split(", ")
    assert len(keys) == len(message.splitlines()) - 2  # a line for each, and no other
    if name != "another optimizer":  # which no state is there for
        (message,) = processes.share(start, 1, with_changes(root, changes, allow_changes=keys))
        assert message.startswith("after 2")
        (message,) = processes.share(start, 1, with_changes(root, changes, allow_changes=keys[1:]))
        assert message.startswith("ResumeError 2: ")


@pytest.mark.fault(19)
@pytest.mark.parametrize("name", [*REFUSED, *RESUME_SAFE])
def test_what_has_changed_in_the_recipe_is_seen_by_validate(root: Path, name: str) -> None:
    """The rows and the tokenizer too; the number of processes is compared by the run alone."""
    changes, lines = REFUSED.get(name, (RESUME_SAFE.get(name, {}), []))
    lines = [line for line in lines if not line.startswith("global_batch_size")]
    config = get_config(with_changes(root, changes))
    if not lines:
        check_run(config)
        return
    with pytest.raises(ResumeError) as refused:
        check_run(config)
    for line in lines:
        assert line in str(refused.value)
    keys = str(refused.value).partition("allow_changes: [")[2].rstrip("]").split(", ")
    check_run(get_config(with_changes(root, changes, allow_changes=keys)))


@pytest.mark.fault(19)
def test_the_command_refuses(root: Path) -> None:
    recipe_path = root / "changed.yaml"
    recipe_path.write_text(yaml.safe_dump(with_changes(root, {"seed": 8})))
    with forked.Run([str(recipe_path)], root / "changed.log") as run:
        assert run.wait(), run.output()
    assert run.codes == [2]
    assert run.output().splitlines()[-2:] == ["  seed: saved 7, now 8", "to resume nevertheless: allow_changes: [seed]"]


@pytest.mark.fault(19)
@pytest.mark.parametrize("name", RESUME_SAFE)
def test_what_changes_nothing_of_the_training_may_change(root: Path, name: str) -> None:
    (message,) = processes.share(start, 1, with_changes(root, RESUME_SAFE[name]))
    assert message.startswith("after 2"), message


@pytest.mark.fault(19)
def test_a_wanted_change_takes_effect(root: Path) -> None:
    """The second rate of ten that go down in a straight line, of twice the peak; and over twice the length."""
    (as_it_was,) = processes.share(start, 1, with_changes(root, {}))
    (doubled,) = processes.share(start, 1, with_changes(root, {"optimizer": {"lr": 2e-3}}, allow_changes=["optimizer"]))
    (longer,) = processes.share(start, 1, with_changes(root, {"epochs": 4}, allow_changes=["epochs"]))
    for stage in (1, 2, 3):
        changes = {"optimizer": {"lr": 2e-3}, "deepspeed": {"zero_optimization": {"stage": stage}}}
        assert processes.share(start, 1, with_changes(root, changes, allow_changes=["optimizer.lr"])) == [doubled]
    assert as_it_was == "after 2, lr 0.000889"
    assert doubled == "after 2, lr 0.001778"
    assert longer == "after 2, lr 0.001000"


@pytest.mark.fault(19, 36)
def test_a_value_from_the_environment_is_compared_and_never_told(tmp_path: Path) -> None:
    def with_rate(**more: Any) -> str:
        settings = with_changes(tmp_path, {"optimizer": {"lr": "${env:RATE}"}}, **more)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
        return str(tmp_path / "recipe.yaml")

    first = with_rate(checkpoint={"type": "deepspeed", "save_every_n_steps": 1}, exit_iteration=1)
    processes.share(train_with, 1, first, "0.00123456")
    assert "0.00123456" not in (tmp_path / "run/checkpoints/deepspeed/step_1/manifest.json").read_text()
    assert processes.share(start, 1, with_rate(), RATE="0.00123456")[0].startswith("after 1")
    (refused,) = processes.share(start, 1, with_rate(), RATE="0.00234567")
    assert "optimizer.learning_rate: saved ${env:RATE} #" in refused
    assert "0.002" not in refused and "0.001" not in refused


def train_with(settings: Any, rate: str) -> None:
    import os

    os.environ["RATE"] = rate
    train(settings)


@pytest.mark.fault(18, 19)
def test_another_number_of_processes_is_another_cut_of_the_same_batch(root: Path) -> None:
    two = with_changes(root, {"micro_batch_size": 1, "deepspeed": {"zero_optimization": {"stage": 0}}})
    assert [message[:7] for message in processes.share(start, 2, two)] == ["after 2"] * 2
    refused = processes.share(start, 2, with_changes(root, {}))
    assert len(set(refused)) == 1 and "global_batch_size: saved 2, now 4" in refused[0]


def saved(root: Path) -> Path:
    return root / "run" / "checkpoints" / "deepspeed"


def resume(root: Path, other: str, path: Path, **more: Any) -> str:
    """Start a run in another folder that is to go on from ``path``."""
    settings = with_changes(root, {}, output_dir=str(root / other), resume=str(path), **more)
    (message,) = processes.share(start, 1, settings)
    return message  # type: ignore[no-any-return]


@pytest.mark.fault(8)
def test_a_named_checkpoint_is_gone_on_from(root: Path) -> None:
    assert resume(root, "other", saved(root) / "step_1").startswith("after 1")
    assert resume(root, "other", saved(root)).startswith("after 2")  # the newest of them
    assert resume(root, "other", saved(root) / "step_1", checkpoint=[]).startswith("after 1")
    assert resume(root, "run", saved(root) / "step_1").startswith("after 2")  # a run's own come first
    later = {"type": "deepspeed", "auto_resume": False}
    assert resume(root, "run", saved(root) / "step_1", checkpoint=later).startswith("after 1")


HURTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped byte": (lambda at: flip(at / "model.safetensors"), "model.safetensors was changed"),
    "a short file": (lambda at: (at / "run_0.pt").write_bytes(b"short"), "run_0.pt has 5 bytes instead of"),
    "a missing file": (lambda at: (at / "model_0.pt").unlink(), "model_0.pt is missing"),
    "no manifest": (lambda at: (at / "manifest.json").unlink(), "it has no manifest.json"),
    "a later format": (lambda at: edit(at, format=99), "format 99; this version reads format 3"),
    "an earlier format": (lambda at: edit(at, format=1), "resume with the version that wrote it"),
    "another kind": (lambda at: edit(at, type="strange"), "of type 'strange'"),
    "one for use elsewhere": (lambda at: edit(at, type="huggingface"), "no run can resume from it"),
    "no word of the run": (lambda at: edit(at, run=None), "does not say which run it is of"),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def edit(folder: Path, **facts: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.fault(8)
@pytest.mark.parametrize("name", HURTS)
def test_a_named_checkpoint_that_cannot_be_used_is_refused_and_no_other_taken(
    root: Path, tmp_path: Path, name: str
) -> None:
    hurt, says = HURTS[name]
    shutil.copytree(saved(root), tmp_path / "saved")
    hurt(tmp_path / "saved" / "step_2")
    for path in (tmp_path / "saved" / "step_2", tmp_path / "saved"):
        message = resume(root, "refused", path)
        assert message.startswith("ResumeError 2: ") and says in message
        assert not (root / "refused").exists()


@pytest.mark.fault(8)
def test_what_is_no_checkpoint_is_refused(root: Path, tmp_path: Path) -> None:
    assert "no such folder" in resume(root, "refused", tmp_path / "gone")
    assert "is neither a checkpoint nor a folder of them" in resume(root, "refused", tmp_path)


@pytest.mark.fault(8)
def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(root: Path, tmp_path: Path) -> None:
    shutil.copytree(saved(root), tmp_path / "saved")
    for step in (1, 2):
        (tmp_path / "saved" / f"step_{step}" / "run_0.pt").unlink()
    section = {"type": "deepspeed", "auto_resume": True, "output_dir": str(tmp_path / "saved")}
    (message,) = processes.share(start, 1, with_changes(root, {}, checkpoint=section, output_dir=str(root / "refused")))
    missing = tmp_path / "saved" / "step_2" / "run_0.pt"
    assert (
        message
        == f"ResumeError 2: {tmp_path / 'saved'} holds no complete checkpoint to resume from: {missing} is missing"
    )


@pytest.mark.fault(8, 32)
def test_what_can_be_seen_by_a_look_is_told_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from arctic_training.cli.main import main

    settings = recipe("sft", tmp_path / "files")
    for key, value, says in (
        ("resume", str(tmp_path / "gone"), f"resume: {tmp_path / 'gone'}: no such folder"),
        ("allow_changes", ["optimzer.lr"], "allow_changes: optimzer.lr: unknown; did you mean 'optimizer'?"),
        ("allow_changes", "data", "allow_changes: 'data' should be a valid list"),
    ):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**settings, key: value}))
        assert main([str(tmp_path / "recipe.yaml")]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
