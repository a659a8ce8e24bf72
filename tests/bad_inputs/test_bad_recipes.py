"""What cannot be run is refused, a line for each problem, and nothing is written."""

import os
from pathlib import Path

import pytest

from arctic_training.cli.main import main
from tests.command import execute

pytestmark = pytest.mark.fault(32)

GOOD = "model: {name_or_path: m}\ndata: {sources: [a/b]}\n"
BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
OPTIMIZERS = (
    "adamw, sgd, adam, radam, nadam, rmsprop, adagrad, lamb, schedule_free, fused_adam, cpu_adam, lion, adafactor, muon"
)

# recipe, and the lines after "recipe.yaml"; one that ends in ... is compared up to there
BAD: dict[str, tuple[str, list[str]]] = {
    # the text is no YAML, or more than a recipe may be
    "empty": ("", [": the recipe is empty; it needs at least a model and data"]),
    "only a comment": ("# sft\n", [": the recipe is empty; it needs at least a model and data"]),
    "a list": ("- 1\n", [":1:1: the recipe is a list; expected a mapping, such as `type: sft`"]),
    "a word": ("sft\n", [":1:1: the recipe is a single value; expected a mapping, such as `type: sft`"]),
    "tab first": ("model:\n\tname_or_path: m\n", [":2:1: a tab is used to indent; use spaces"]),
    "tab later": ("model:\n  dtype: fp32\n\tname_or_path: m\n", [":3:1: a tab is used to indent; use spaces"]),
    "open bracket": ("model: [1, 2\ndata: 3\n", [":2:5: not YAML: while parsing a flow sequence: ..."]),
    "open quote": ('model: 1\ncode: "train\n', [":3:1: not YAML: while scanning a quoted scalar: ..."]),
    "two colons": ("model: a: b\n", [":1:9: not YAML: mapping values are not allowed in this context"]),
    "two documents": (GOOD + "---\n" + GOOD, [":3:1: a second document begins here; expected one"]),
    "control character": ("seed: \x01\n", [":1:7: control character U+0001; remove it"]),
    "key of a list": ("[1, 2]: 3\n", [":1:1: a key should be a word"]),
    "empty key": ('"": 3\n', [":1:1: a key should be a word"]),
    "tag that runs": (
        "model: !!python/object/apply:os.system [ls]\n",
        [":1:8: tag !!python/object/apply:os.system is not allowed; write plain values, and text in quotes"],
    ),
    "harmless tag": (
        GOOD + "code: !!str 3\n",
        [":3:7: tag !!str is not allowed; write plain values, and text in quotes"],
    ),
    "aliases that explode": (BOMB, [":4:29: more than 10,000 values with aliases in full, too many for a recipe"]),
    "deep": ("a: " + "[" * 60 + "]" * 60 + "\n", [":1:53: nested deeper than 50 levels, too deep for a recipe"]),
    "deeper than the stack": ("a: " + "[" * 90_000, [":1:53: nested deeper than 50 levels, too deep for a recipe"]),
    "alias of itself": ("a: &a [*a]\n", [":1:8: *a is an alias of the value that it is in, which has no end"]),
    "alias of nothing": ("a: *b\n", [":1:4: *b is an alias without an anchor; write &b above it"]),
    "larger than 1 MB": ("#" * 1_000_001, [": larger than 1 MB, too large for a recipe"]),
    "key given twice": ("seed: 1\n" + GOOD + "seed: 2\n", [":4:1: seed: given twice (first on line 1); remove one"]),
    "keys given twice": (
        "model:\n  dtype: fp32\n  dtype: bf16\nseed: 2\nseed: 3\n",
        [
            ":3:3: model.dtype: given twice (first on line 2); remove one",
            ":5:1: seed: given twice (first on line 4); remove one",
        ],
    ),
    # names
    "key misspelt": (
        GOOD + "mirco_batch_size: 4\n",
        [":3:1: mirco_batch_size: unknown; did you mean 'micro_batch_size'?"],
    ),
    "key of another trainer": (
        GOOD + "per_device_train_batch_size: 4\n",
        [":3:1: per_device_train_batch_size: unknown; here this is micro_batch_size"],
    ),
    "key of a section misspelt": (
        "model: {name_or_path: m, dtpye: bf16}\ndata: {sources: [a/b]}\n",
        [":1:26: model.dtpye: unknown; did you mean 'dtype'?"],
    ),
    "key of a source misspelt": (
        "model: {name_or_path: m}\ndata:\n  sources:\n    - name_or_path: a/b\n      smaple_count: 3\n",
        [":5:7: data.sources.0.smaple_count: unknown; did you mean 'sample_count'?"],
    ),
    "key like no other": (
        GOOD + "xyzzy: 4\n",
        [":3:1: xyzzy: unknown; there are: activation_checkpoint_cpu_offload, allow_changes, ..."],
    ),
    "key that is a number": (GOOD + "3: 4\n", [":3:1: 3: a key should be a word"]),
    "trainer": (
        "type: stf\n" + GOOD,
        [":1:7: type: no trainer is named 'stf'; did you mean 'sft'? there are: ..."],
    ),
    "model type": (
        "model: {type: hugginface, name_or_path: m}\ndata: {sources: [a/b]}\n",
        [":1:15: model.type: 'hugginface' is not accepted here; did you mean 'huggingface'? there are: ..."],
    ),
    "data type of another trainer": (
        "model: {name_or_path: m}\ndata: {type: dpo, sources: [a/b]}\n",
        [
            ":2:14: data.type: 'dpo' is not accepted here; there are: sft; to use DPODataFactory all the same, "
            "write skip_validation: true, or name it in a subclass of the trainer: "
            "data_factory_type = (SFTDataFactory, DPODataFactory)"
        ],
    ),
    "source type": (
        "model: {name_or_path: m}\ndata: {sources: [{type: parqet, name_or_path: x}]}\n",
        [":2:25: data.sources.0.type: no data source is named 'parqet'; did you mean 'parquet'? there are: ..."],
    ),
    "optimizer type": (
        GOOD + "optimizer: adamww\n",
        [":3:12: optimizer: 'adamww' should be a mapping"],
    ),
    "second checkpoint engine": (
        GOOD + "checkpoint:\n  - type: deepspeed\n  - type: huggingfcae\n",
        [
            ":5:11: checkpoint.1.type: 'huggingfcae' is not accepted here; did you mean 'huggingface'? "
            "there are: deepspeed, huggingface"
        ],
    ),
    "callback": (
        GOOD + "callbacks: [emaa]\n",
        [":3:13: callbacks.0.type: no callback is named 'emaa'; did you mean 'ema'? there are: ..."],
    ),
    # values
    "word for a number": (
        GOOD + "micro_batch_size: four\n",
        [":3:19: micro_batch_size: 'four' should be a valid integer, unable to parse string as an integer"],
    ),
    "truth for a number": (GOOD + "epochs: true\n", [":3:9: epochs: true is not a number"]),
    "fraction": (
        GOOD + "epochs: 0.5\n",
        [":3:9: epochs: 0.5 should be a valid integer, got a number with a fractional part"],
    ),
    "fraction of an update": (
        GOOD + "train_iters: 0.5\n",
        [":3:14: train_iters: 0.5 should be a valid integer, got a number with a fractional part"],
    ),
    "word that is no truth": (
        "model: {name_or_path: m}\ndata: {sources: [a/b], pack_samples: yes}\n",
        [":2:38: data.pack_samples: 'yes' should be true or false"],
    ),
    "number that is no truth": (GOOD + "skip_validation: 1\n", [":3:18: skip_validation: 1 should be true or false"]),
    "no batch": (GOOD + "micro_batch_size: 0\n", [":3:19: micro_batch_size: 0 should be greater than or equal to 1"]),
    "negative seed": (GOOD + "seed: -1\n", [":3:7: seed: -1 should be greater than or equal to 0"]),
    "seed that is no whole number": (
        GOOD + "seed: 1.5\n",
        [":3:7: seed: 1.5 should be a valid integer, got a number with a fractional part"],
    ),
    "negative learning rate": (
        GOOD + "optimizer: {lr: -1e-5}\n",
        [":3:17: optimizer.lr: -1e-05 should be greater than or equal to 0"],
    ),
    "not a number": (GOOD + "optimizer: {lr: .nan}\n", [":3:17: optimizer.lr: nan should be a finite number"]),
    "infinite": (GOOD + "optimizer: {lr: .inf}\n", [":3:17: optimizer.lr: inf should be a finite number"]),
    "learning rate twice": (
        GOOD + "optimizer: {lr: 1, learning_rate: 2}\n",
        [":3:1: optimizer: lr and learning_rate are the same; give one of them"],
    ),
    "one beta": (GOOD + "optimizer: {betas: [0.9]}\n", [":3:13: optimizer.betas.1: Field required"]),
    "a section that is a number": (
        GOOD + "tokenizer: 3\n",
        [":3:12: tokenizer: 3 should be a mapping"],
    ),
    "a source that is a number": (
        "model: {name_or_path: m}\ndata: {sources: [3]}\n",
        [":2:18: data.sources.0: 3 should be a name, or a mapping with a type"],
    ),
    "dtype": (
        "model: {name_or_path: m, dtype: fp61}\ndata: {sources: [a/b]}\n",
        [":1:33: model.dtype: 'fp61' should be 'bf16', 'fp16' or 'fp32'; did you mean 'fp16'?"],
    ),
    # what is missing, and what contradicts itself
    "no model, no data": (
        "type: sft\n",
        [": model.name_or_path: Field required", ": data.sources: Field required"],
    ),
    "empty model": ("model:\ndata: {sources: [a/b]}\n", [":1:1: model.name_or_path: Field required"]),
    "no code": ("code: mine.py\n" + GOOD, [":1:7: code: mine.py: no such file"]),
    "nothing to train": (
        GOOD + "epochs: 0\n",
        [":3:9: epochs: 0, and no train_iters: there is nothing to train; give one of them"],
    ),
    "nothing to evaluate on": (
        GOOD + "eval_interval: 10\n",
        [":3:16: eval_interval: there is nothing to evaluate on; give data.eval_sources or data.train_eval_split"],
    ),
    "warm-up beyond the end": (
        GOOD + "train_iters: 10\nscheduler: {warmup_steps: 20}\n",
        [":3:14: train_iters: 10 steps, and scheduler.warmup_steps is 20; raise it or lower that"],
    ),
    "two amounts of one source": (
        "model: {name_or_path: m}\ndata:\n  sources:\n    - {name_or_path: x, sample_count: 3, sample_ratio: 1}\n",
        [
            ":4:7: data.sources.0: sample_ratio and sample_count both set the number of rows to take; give one of them",
        ],
    ),
    "two that resume": (
        GOOD + "checkpoint: [{type: deepspeed, auto_resume: true}, {type: deepspeed, auto_resume: true}]\n",
        [":3:1: checkpoint: several have auto_resume: true; a run resumes from one of them only"],
    ),
    "a resume from what is for use elsewhere": (
        GOOD + "checkpoint: {type: huggingface, auto_resume: true}\n",
        [":3:1: checkpoint: auto_resume: no run can resume from type huggingface; add one of type deepspeed"],
    ),
    "a schedule that is not": (
        GOOD + "scheduler: {name: greedy}\n",
        [":3:19: scheduler.name: greedy follows a metric and not the steps; choose another"],
    ),
    "batch size": (
        GOOD + "micro_batch_size: 2\ndeepspeed:\n  train_batch_size: 3\n",
        [
            ":5:21: deepspeed.train_batch_size: 3 contradicts micro_batch_size 2 x gradient_accumulation_steps 1: "
            "expected a multiple of 2; remove it"
        ],
    ),
    "scorers and transforms in lists": (
        "model: {name_or_path: m, transforms: [compile, tiled]}\ndata: {sources: [a/b]}\n"
        "evaluators: {type: generate, scorers: [exact_match, numric, {type: regx}]}\n",
        [
            ":1:48: model.transforms.1.type: no model transform is named 'tiled'; did you mean 'tiled_mlp'? ...",
            ":3:53: evaluators.scorers.1.type: no scorer is named 'numric'; did you mean 'numeric'? ...",
            ":3:68: evaluators.scorers.2.type: no scorer is named 'regx'; did you mean 'regex'? ...",
        ],
    ),
    "key unknown to DeepSpeed": (
        GOOD + "deepspeed: {zero_optimisation: {stage: 2}}\n",
        [":3:13: deepspeed.zero_optimisation: unknown to DeepSpeed; did you mean 'zero_optimization'?"],
    ),
    "ZeRO stage": (
        GOOD + "deepspeed: {zero_optimization: {stage: 5}}\n",
        [":3:40: deepspeed.zero_optimization.stage: 5 should be 0, 1, 2 or 3"],
    ),
    "ZeRO stage above the optimizer's": (
        GOOD + "optimizer: {type: muon}\ndeepspeed: {zero_optimization: {stage: 2}}\n",
        [
            ":4:40: deepspeed.zero_optimization.stage: 2, and the recipe's optimizer works up to ZeRO stage 1 with its "
            "model.dtype"
        ],
    ),
    "offload to nowhere": (
        GOOD + "deepspeed: {zero_optimization: {stage: 3, offload_param: {device: nvme}}}\n",
        [
            ":3:43: deepspeed.zero_optimization.offload_param.nvme_path: missing: "
            "offloading to nvme needs the folder to use"
        ],
    ),
    "two precisions": (
        GOOD + "deepspeed: {fp16: {enabled: true}, bf16: {enabled: true}}\n",
        [":3:29: deepspeed.fp16.enabled: bf16 and fp16 cannot both be enabled"],
    ),
    # references and bases
    "variable that is not set": (
        GOOD + "code: ${env:NO_SUCH_VARIABLE}\n",
        [":3:7: code: the environment variable NO_SUCH_VARIABLE is not set; set it or write the value"],
    ),
    "references in a circle": (
        GOOD + "output_dir: ${train_log_metrics_path}\ntrain_log_metrics_path: ${output_dir}\n",
        [
            ":3:13: output_dir: refers to itself: train_log_metrics_path -> output_dir -> train_log_metrics_path",
            ":4:25: train_log_metrics_path: refers to itself: output_dir -> train_log_metrics_path -> output_dir",
        ],
    ),
    "reference to nothing": (
        GOOD + "output_dir: ${model.name}\n",
        [":3:13: output_dir: ${model.name}: the recipe has no such key; there are: name_or_path"],
    ),
    "reference never closed": (
        GOOD + "output_dir: ${model\n",
        [":3:13: output_dir: ${ is never closed; write } after the name, or $${ for a literal ${"],
    ),
    "section inside a text": (
        GOOD + "output_dir: a/${model}\n",
        [":3:13: output_dir: ${model} is a mapping; it can only be the entire value, not part of a text"],
    ),
    "package that is not installed": (
        GOOD + "output_dir: ${package:no_such}\n",
        [":3:13: output_dir: the Python package no_such is not installed; install it or write the folder"],
    ),
    "base that is missing": ("extends: base.yaml\n" + GOOD, [":1:10: extends: base.yaml: no such file"]),
    "base of itself": (
        "extends: recipe.yaml\n" + GOOD,
        [":1:10: extends: the recipes extend one another in a circle: recipe.yaml -> recipe.yaml"],
    ),
    "two bases": ("extends: [a, b]\n" + GOOD, [":1:1: extends: expected the name of one other recipe file"]),
    # all at once
    "everything": (
        "type: sft\nmodel: {name_or_path: m, dtype: fp9}\ndata: {sources: [a/b], max_length: -1}\n"
        "epcohs: 3\noptimizer: {type: adamm}\nseed: x\n",
        [
            ":2:33: model.dtype: 'fp9' should be 'bf16', 'fp16' or 'fp32'",
            ":3:36: data.max_length: -1 should be greater than or equal to 2",
            ":4:1: epcohs: unknown; did you mean 'epochs'?",
            f":5:19: optimizer.type: 'adamm' is not accepted here; did you mean 'adam'? there are: {OPTIMIZERS}",
            ":6:7: seed: 'x' should be a valid integer, unable to parse string as an integer",
        ],
    ),
}


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on standard error of a command that must end with 2, say nothing else and write nothing."""
    before = files()
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert files() == before
    return err.splitlines()


def files() -> set[str]:
    return {os.path.join(folder, name) for folder, _, names in os.walk(".") for name in names}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("text", "expected"), BAD.values(), ids=BAD.keys())
def test_a_bad_recipe_is_refused(text: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(text)
    lines = refused(["validate", "recipe.yaml"], capsys)
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        if start.endswith("..."):
            assert line.startswith("recipe.yaml" + start.removesuffix("..."))
        else:
            assert line == "recipe.yaml" + start


def test_a_file_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(["recipe.yaml"], capsys) == ["recipe.yaml: no such file"]


def test_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").mkdir()
    assert refused(["recipe.yaml"], capsys) == ["recipe.yaml: a folder; name the recipe file in it"]


def test_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("recipe.yaml")
    assert refused(["recipe.yaml"], capsys) == ["recipe.yaml: not a file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_a_file_that_may_not_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(GOOD)
    Path("recipe.yaml").chmod(0)
    assert refused(["recipe.yaml"], capsys) == ["recipe.yaml: cannot be read (Permission denied)"]


def test_a_file_that_cannot_be_read(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    Path("recipe.yaml").write_text(GOOD)
    monkeypatch.setattr(Path, "open", denied)
    assert refused(["recipe.yaml"], capsys) == ["recipe.yaml: cannot be read (Permission denied)"]


def test_a_file_that_is_not_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_bytes(b"type: sft\nmodel: {name_or_path: caf\xe9}\n")
    assert refused(["recipe.yaml"], capsys) == ["recipe.yaml:2:26: not UTF-8; save the file as UTF-8"]


def test_a_base_is_named_where_it_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    Path("base.yaml").write_text(GOOD + "seed: x\n")
    Path("recipe.yaml").write_text("extends: base.yaml\nepochs: y\n")
    assert refused(["recipe.yaml"], capsys) == [
        "recipe.yaml:2:9: epochs: 'y' should be a valid integer, unable to parse string as an integer",
        "base.yaml:3:7: seed: 'x' should be a valid integer, unable to parse string as an integer",
    ]


def test_bases_in_a_circle(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("extends: b.yaml\n")
    Path("b.yaml").write_text("extends: ./a.yaml\n")
    assert refused(["a.yaml"], capsys) == [
        "b.yaml:1:10: extends: the recipes extend one another in a circle: a.yaml -> b.yaml -> a.yaml"
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=x", "seed: 'x' should be a valid integer, unable to parse string as an integer"),
        ("model.dtpye=fp32", "model.dtpye: unknown; did you mean 'dtype'?"),
        ("data.sources.3.split=x", "data.sources.3.split: '3' is not a position in a list of 1, counted from 0"),
        ("model.name_or_path.x=1", "model.name_or_path.x: 'm' is neither a mapping nor a list, so it has no 'x'"),
        ("seed=[1", "seed: not YAML: while parsing a flow sequence: did not find expected ',' or ']'"),
        ("seed=!!python/name:os.system", "seed: tag !!python/name:os.system is not allowed; write plain values, ..."),
    ],
)
def test_an_override_is_named_as_such(override: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(GOOD)
    (line,) = refused(["recipe.yaml", override], capsys)
    assert line.startswith(f"command line: {expected.removesuffix('...')}")


def test_code_that_raises_names_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(GOOD)
    Path("train.py").write_text("import os\n\n\ndef f():\n    return 1 // 0\n\n\nf()\n")
    (line,) = refused(["recipe.yaml"], capsys)
    assert line == f"{Path('train.py').resolve()}:5: code: ZeroDivisionError: integer division or modulo by zero"


def test_code_with_a_wrong_word_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(GOOD)
    Path("train.py").write_text("x = 1\nclass = 2\n")
    (line,) = refused(["recipe.yaml"], capsys)
    assert line.startswith(f"{Path('train.py').resolve()}:2:")
    assert line.endswith("code: invalid syntax")


def test_code_that_takes_a_name_names_who_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(GOOD)
    text = "from arctic_training import SFTTrainer\nclass Mine(SFTTrainer):\n    name = 'causal'\n"
    Path("train.py").write_text(text)
    (line,) = refused(["recipe.yaml"], capsys)
    mine = Path("train.py").resolve()
    assert line.startswith(f"{mine}:2: code: RegistryError: the trainer name 'causal' of Mine in {mine} ")
    assert "is taken by arctic_training.objectives.causal.CausalTrainer; choose another name" in line


@pytest.mark.fault(36)
@pytest.mark.parametrize("secret", ["hunter2hunter2", "h2"])
def test_a_secret_is_not_told(secret: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", secret)
    Path("recipe.yaml").write_text(GOOD + "micro_batch_size: ${env:MY_TOKEN}\n")
    (line,) = refused(["recipe.yaml"], capsys)
    assert line.startswith("recipe.yaml:3:19: micro_batch_size: '${env:MY_TOKEN}' should be a valid integer")


def test_the_command_ends_with_two_and_shows_no_traceback(tmp_path: Path) -> None:
    Path("recipe.yaml").write_text(GOOD + "seed: x\n")
    ended = execute(tmp_path, "recipe.yaml", "--num_gpus", "2")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert (
        ended.stderr == "recipe.yaml:3:7: seed: 'x' should be a valid integer, unable to parse string as an integer\n"
    )
    shown = execute(tmp_path, "recipe.yaml", "--num_gpus", "2", "--debug")
    assert shown.returncode == 2
    assert "Traceback" in shown.stderr
    assert os.listdir(tmp_path) == ["recipe.yaml"]
