"""`validate` refuses what the run refuses, as far as the recipe and the files here show it."""

import functools
import gc
import json
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import wandb
import yaml
from lm_eval.tasks import TaskManager

from arctic_training.cli.main import main
from arctic_training.errors.types import ModelError
from arctic_training.logging import start_console_log
from arctic_training.model.liger_factory import LigerModelFactory
from arctic_training.model.weight_files import load_pickle
from arctic_training.trainer import checked_engines
from tests import tiny
from tests.bad_inputs import bad_tensors
from tests.bad_inputs.case import Case, altered, lines, same, sft
from tests.bad_inputs.test_bad_inputs import CASES
from tests.contract.cases import CASES as GOOD_RECIPES
from tests.contract.cases import recipe as good_recipe
from tests.model.test_huggingface_factory import factory
from tests.own_classes import only_built_in

NEEDS: Mapping[str, list[str]] = {
    "what the hub has": [
        "model: a model of the hub, offline",
        "model: a tokenizer of the hub, offline",
        "data: a data set of the hub, offline",
    ],
    "the number of processes": [
        "run: a batch size that does not add up",
        "run: nobody to share with",
        "run: nobody to divide a model with",
    ],
    "to write": ["run: output_dir cannot be made", "run: checkpoints that cannot be made"],
    "rows of the user's own code": ["code: a source that gives a list", "code: a source that raises"],
    "completions": [
        "reward: raises on a completion",
        "reward: NaN on a completion",
    ],
    "weights": [
        "code: a loss that raises",
        "code: a loss that raises in a library",
        "code: a loss of nothing",
        "code: a loss that is a number",
        "code: a loss of several numbers",
        "code: a loss without a gradient",
    ],
}
"""The cases that a run refuses and ``validate`` passes, by what it would need for it."""
UNSEEN = {name for names in NEEDS.values() for name in names}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with only_built_in(
        tmp_path
    ):  # before the folder for temporary files is another one, by which it knows others' paths
        for name in ("here", "home", "tmp"):
            (tmp_path / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
        monkeypatch.chdir(tmp_path / "here")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("ARCTIC_TRAINING_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(gc, "collect", lambda *generation: 0)
        yield tmp_path / "here"


@pytest.mark.parametrize("name", CASES)
def test_what_a_run_refuses_is_refused(
    name: str, here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    case.plant(here, tiny_model)
    capsys.readouterr()  # of planting
    with pytest.MonkeyPatch.context() as patch:  # libraries are back when ``here`` looks through all modules
        case.set_up(patch)
        code = main(["validate", "recipe.yaml", *case.words])
    out, err = capsys.readouterr()
    if name in UNSEEN:
        assert (code, err) == (0, "")
    else:
        assert same(err.splitlines(), case.expected(here)), err
        assert (code, out) == (case.code, "")
    assert not (here.parent / "cache").is_dir() and not [*(here.parent / "tmp").iterdir()]
    assert not (here / "runs").is_dir() or "runs" in "".join(case.files)


@pytest.mark.parametrize("name", sorted(bad_tensors.CASES.keys() - {"a metric of other classes"}))
def test_the_shapes_of_large_networks_are_computed_without_weights(
    name: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_engines, "MOST_WEIGHTS", 0)
    case = bad_tensors.CASES[name]
    case.plant(here, here)
    assert main(["validate", "recipe.yaml"]) == case.code
    assert same(capsys.readouterr().err.splitlines(), case.expected(here))


@pytest.mark.parametrize("weights", [0, checked_engines.MOST_WEIGHTS])
@pytest.mark.parametrize("name", sorted(GOOD_RECIPES))
def test_what_a_run_accepts_is_accepted(
    name: str, weights: int, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_engines, "MOST_WEIGHTS", weights)
    recipe = good_recipe(name, here, logger={"level": "WARNING"})
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    capsys.readouterr()
    assert (main(["validate", "recipe.yaml"]), capsys.readouterr().err) == (0, "")


def test_a_check_that_needs_more_of_the_run_is_a_warning(
    here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "from arctic_training import SFTTrainer\n\n\nclass Mine(SFTTrainer):\n    name = 'needs_deepspeed'\n\n"
    code += "    def check(self):\n        self.model.deepspeed.optimizer.step()\n"
    Case("", files={"train.py": code}).plant(here, tiny_model)
    start_console_log(level="WARNING", rank=0, world=1, ranks="*")  # a run of another test may have been quiet
    result, err = validated("type: needs_deepspeed\n" + sft(), capsys)
    assert result == 0
    assert "WARNING check() of Mine needs the run: AttributeError: 'NoneType' object has no attribute" in err


def test_the_cases_that_validate_cannot_see_are_cases() -> None:
    assert CASES.keys() >= UNSEEN


def validated(recipe: str, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    Path("recipe.yaml").write_text(recipe)
    capsys.readouterr()
    code = main(["validate", "recipe.yaml", *words])
    return code, capsys.readouterr().err


GOOD = sft(more="checkpoint: [{type: deepspeed}, {type: huggingface}]\n")


def test_a_good_recipe_of_a_local_model_passes(
    here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Case("", recipe=GOOD).plant(here, tiny_model)
    assert validated(GOOD, capsys) == (0, "")
    assert sorted(path.name for path in here.iterdir()) == ["model", "recipe.yaml", "rows.jsonl"]
    # the number of processes is not known, so that what depends on it is no problem
    assert validated(GOOD + "deepspeed: {train_batch_size: 8}\nsequence_parallel_size: 4\n", capsys) == (0, "")


def test_more_tokens_than_the_model_has_seen_are_a_warning(
    here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Case("").plant(here, tiny_model)
    start_console_log(level="WARNING", rank=0, world=1, ranks="*")  # a run of another test may have been quiet
    code, err = validated(sft(data=", max_length: 4ki"), capsys)
    assert code == 0
    assert "WARNING data.max_length: 4096 tokens are more than the 512 that the model has seen at once" in err


def save_model_of_another_vocabulary(at: Path) -> None:
    tiny.save_model(at, vocab_size=328)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (sft(more="sequence_parallel_size: 3\n"), "recipe.yaml:3:25: sequence_parallel_size: 3 processes cannot share"),
        (
            sft(more="scheduler: {name: cosine, scheduler_specific_kwargs: {cycles: 2}}\n"),
            "recipe.yaml:3:1: scheduler: the schedule 'cosine' cannot be made:",
        ),
        (
            sft(more="train_iters: 10\nscheduler: {type: wsd, num_warmup_steps: 4, num_decay_steps: 8}\n"),
            "recipe.yaml:4:1: scheduler: 4 steps of warm-up and 8 of decay are more than the run's 10",
        ),
        (
            "type: distill\nteacher: {name_or_path: other}\n" + sft(),
            "recipe.yaml:2:25: teacher.name_or_path: its vocabulary has 328 tokens, and that of model has 320:",
        ),
        (
            "type: embedding\nmatryoshka_dims: [64, 8]\n" + sft(),
            "recipe.yaml:2:1: matryoshka_dims: 64, and the embeddings of the model have 32 numbers",
        ),
        (
            sft(more="callbacks: [{type: ema, role: critic}]\n"),
            "recipe.yaml:3:1: callbacks.ema.role: 'critic' is not trained here; there are: model",
        ),
        (
            sft(more="callbacks: [{type: sample_tensors, every: 5}]\n"),
            "recipe.yaml:3:1: callbacks.sample_tensors: the trainer sft has no method sample(count)",
        ),
        (
            sft().replace("fp32", "fp32, peft_config: {peft_type: lora, target_modules: [nope]}"),
            "recipe.yaml:1:43: model.peft_config: Target modules",
        ),
    ],
)
def test_what_only_a_local_model_shows(
    recipe: str, says: str, here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Case("", files={"other": save_model_of_another_vocabulary}).plant(here, tiny_model)
    code, err = validated(recipe, capsys)
    assert code == 2
    assert err.startswith(says), err


def endless(folder: Path) -> None:
    """Removes the end token from the model and the tokenizer, and the chat template, which would have one."""
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({key: one for key, one in values.items() if not key.startswith("eos")}))
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            "type: distill\nteacher: {name_or_path: model}\non_policy_share: 0.5\n",
            "recipe.yaml:3:18: on_policy_share: neither the tokenizer nor the model has an end token",
        ),
        (
            "type: grpo\nrewards: ended\nmax_new_tokens: 4\n",
            "recipe.yaml: stop: neither the tokenizer nor the model has an end token; specify one",
        ),
    ],
)
def test_completions_that_nothing_ends(
    keys: str, says: str, here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the generation config in the files of the model, which its config may contradict."""
    rows = lines({"prompt": "one", "completion": "two"})
    Case("", files={"model": altered(endless), "rows.jsonl": rows}).plant(here, tiny_model)
    code, err = validated(keys + sft(), capsys)
    assert (code, err.splitlines()[-1]) == (2, says)  # after a warning of ends that are not learned


@pytest.fixture
def logged_out(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forgets login and settings of Weights & Biases, which its library keeps for a process."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()
    yield
    wandb.teardown()


def test_a_login_that_is_missing_is_told_without_a_network(
    logged_out: None, here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Case("").plant(here, tiny_model)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        code, err = validated(sft(more="wandb: {enable: true}\n"), capsys)
        assert (code, "wandb: nobody is logged in; run `wandb login`" in err) == (2, True), err
        assert validated(sft(more="wandb: {enable: true, mode: offline}\n"), capsys)[0] == 0
        wandb.teardown()  # it stays offline otherwise
        monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 3)
        assert validated(sft(more="wandb: {enable: true}\n"), capsys)[0] == 0  # nobody is asked whether it is valid
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # no process has connected
            server.accept()


def test_kernels_for_gpus_need_none_to_be_validated(tiny_model: Path) -> None:
    """On the meta device, which `validate` uses, the machine is not asked for a GPU."""
    maker: Any = factory(tiny_model)
    liger = LigerModelFactory(maker.trainer, maker.config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: object())
        with pytest.raises(ModelError, match="kernels for GPUs"):
            liger._require_kernels()
        maker.trainer.device = torch.device("meta")
        liger._require_kernels()


def test_kernels_that_there_are_not_for_a_model(
    here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a library that has some for mistral alone: Liger's own is installed on machines with GPUs."""
    stub = Path("liger_kernel/transformers/monkey_patch.py")
    stub.parent.mkdir(parents=True)
    stub.write_text("MODEL_TYPE_TO_APPLY_LIGER_FN = {'mistral': None}\n")
    monkeypatch.syspath_prepend(here)
    Case("").plant(here, tiny_model)
    code, err = validated(sft(model="model, type: liger"), capsys)
    assert (code, err) == (
        2,
        "recipe.yaml:1:36: model.type: liger has no kernels for models of type llama; use type: huggingface, or a "
        "model of type mistral\n",
    )


def test_a_task_that_there_is_not(
    here: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those in a folder: to read the thousands of the library takes ten seconds."""
    manager = functools.partial(TaskManager, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda include_path, **_: manager(include_path=include_path))
    Case("", files={"tasks/one.yaml": "task: own_task\ndataset_path: json\n"}).plant(here, tiny_model)
    evaluator = "{type: lm_eval, tasks: [%s], include_path: tasks}"
    recipe = sft(data=", eval_sources: [rows.jsonl]", more=f"eval_interval: 1\nevaluators: [{evaluator}]\n")
    where = "recipe.yaml:4:1: evaluators: lm_eval: tasks: no task is named"
    for task, hint in (("own_tusk", "did you mean 'own_task'?"), ("x", "`lm-eval ls tasks` lists all")):
        assert validated(recipe % task, capsys) == (2, f"{where} {task!r}; {hint}\n")


def without_state(model: Any, **_: object) -> dict[str, Any]:
    return {}


def without_base(model: Any, *arguments: Any, **more: Any) -> Any:
    """An adapter below which a weight of the base is no parameter any more."""
    adapted = peft.PeftModelForCausalLM(model, *arguments, **more)
    layer: Any = adapted.get_submodule("base_model.model.lm_head")
    weight = layer.weight
    del layer.weight
    object.__setattr__(layer, "weight", weight)
    return adapted


@pytest.mark.parametrize(
    ("function", "replacement", "more", "says"),
    [
        (
            "get_peft_model_state_dict",
            without_state,
            "",
            "PEFT does not save 8 of the weights that this LORA trains, among them ",
        ),
        (
            "get_peft_model",
            without_base,
            ", random_weights: true",
            "LORA does not keep lm_head.weight of its base, which differs from model.name_or_path (weights); use "
            "another method, or type deepspeed",
        ),
    ],
)
def test_a_method_of_peft_that_loses_weights(
    function: str,
    replacement: Any,
    more: str,
    says: str,
    here: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No method of the installed version does; one of another version may."""
    monkeypatch.setattr(peft, function, replacement)
    Case("").plant(here, tiny_model)
    model = f"model, peft_config: {{peft_type: lora}}{more}"
    code, err = validated(sft(model=model, more="checkpoint: {type: huggingface}\n"), capsys)
    assert code == 2
    assert err.startswith(f"recipe.yaml:3:20: checkpoint.type: huggingface: {says}"), err


def test_weights_in_pickles_are_read_without_their_values(tmp_path: Path) -> None:
    weights = {"a": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)}
    for modern in (True, False):
        torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=modern)
        loaded = load_pickle(tmp_path / "pytorch_model.bin")
        assert {name: one.shape for name, one in loaded.items()} == {"a": (3, 4), "b": (2,)}
        assert {one.device.type for one in loaded.values()} == {"meta"}
