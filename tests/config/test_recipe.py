"""Bases merge, overrides win, references resolve, and where a value comes from stays known."""

import os
import re
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from arctic_training import get_config
from arctic_training.config.checks.problems import problems_of
from arctic_training.config.recipe.interpolation import interpolate
from arctic_training.config.recipe.node import from_python, merge, set_path, to_python
from arctic_training.config.recipe.yaml_reader import read_value, read_yaml
from arctic_training.config.recipe.yaml_writer import write_yaml
from arctic_training.config.sections.component import listed
from arctic_training.config.show import show
from arctic_training.errors.types import RecipeError
from arctic_training.registry import lookup

SMALL: dict[str, Any] = {"model": {"name_or_path": "m"}, "data": {"sources": ["a/b"]}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def resolved(recipe: dict[str, Any]) -> Any:
    tree, problems = interpolate(from_python(recipe))
    assert not problems
    return to_python(tree)


def complaint(recipe: dict[str, Any]) -> str:
    _, problems = interpolate(from_python(recipe))
    (problem,) = problems
    return problem.text


# bases


def test_a_base_is_merged_deeply_and_relative_to_the_recipe(here: Path) -> None:
    write("lib/base.yaml", "extends: ../root.yaml\noptimizer: {betas: [0.8, 0.9]}\nmodel: {dtype: fp32}\n")
    write(
        "root.yaml", "model: {name_or_path: m}\ndata: {sources: [a, b]}\noptimizer: {weight_decay: 0, betas: [0, 0]}\n"
    )
    config = get_config(write("mine/recipe.yaml", "extends: ../lib/base.yaml\ndata: {sources: [c]}\n"))
    assert (config.model.dtype, config.optimizer.weight_decay) == ("fp32", 0)
    assert config.dump()["optimizer"]["betas"] == [0.8, 0.9]
    assert [source["name_or_path"] for source in config.dump()["data"]["sources"]] == ["c"]


def test_one_base_may_be_reached_twice_from_different_recipes(here: Path) -> None:
    write("base.yaml", yaml.safe_dump(SMALL))
    write("a.yaml", "extends: base.yaml\n")
    assert get_config(write("b.yaml", "extends: a.yaml\n")).type == "sft"


def test_a_section_may_begin_in_a_file(here: Path) -> None:
    write("lib/words.yaml", "extends: deeper/plus.yaml\nvocab: {range: {x: [x, 0, 2]}}\n")
    write(
        "lib/deeper/plus.yaml", "type: lexer\nstrict: false\nvocab: {range: {x: [y, 0, 2], n: ['', 0, 9]}, misc: [+]}\n"
    )
    write("base.yaml", yaml.safe_dump(SMALL | {"tokenizer": {"extends": "lib/words.yaml"}}))
    recipe = write(
        "mine/recipe.yaml", "extends: ../base.yaml\ntokenizer: {strict: true}\ndata: {sources: [{extends: s.yaml}]}\n"
    )
    write("mine/s.yaml", "name_or_path: a/b\n")
    config = get_config(recipe, ["tokenizer.vocab.misc.0='-'"])
    assert config.dump()["tokenizer"]["vocab"] == {"range": {"x": ["x", 0, 2], "n": ["", 0, 9]}, "misc": ["-"]}
    assert config.dump()["tokenizer"]["strict"] is True
    assert config.dump()["data"]["sources"][0]["name_or_path"] == "a/b"
    assert re.search(r"name_or_path: a/b +# .*s.yaml:1:15", show(config)) and "plus.yaml:3:" in show(config)


def test_a_learning_rate_takes_the_place_of_the_bases(here: Path) -> None:
    write("base.yaml", yaml.safe_dump(SMALL | {"optimizer": {"learning_rate": 1}}))
    recipe = write("recipe.yaml", "extends: base.yaml\noptimizer: {lr: 2}\n")
    assert get_config(recipe).optimizer.learning_rate == 2
    assert get_config(recipe, ["optimizer.learning_rate=3"]).optimizer.learning_rate == 3


def test_null_takes_back_what_a_base_says(here: Path) -> None:
    write("base.yaml", yaml.safe_dump(SMALL | {"data": {"sources": ["a/b"], "max_length": 12}}))
    assert (
        get_config(write("recipe.yaml", "extends: base.yaml\ndata: {max_length: null}\n")).dump()["data"]["max_length"]
        is None
    )


_TREES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
_MAPPINGS = st.dictionaries(st.sampled_from("abc"), _TREES, max_size=3)


@given(_MAPPINGS, _MAPPINGS)
def test_of_what_is_merged_the_last_wins(first: dict[str, Any], second: dict[str, Any]) -> None:
    a, b = from_python(first), from_python(second)
    assert to_python(merge(a, a)) == first
    merged = to_python(merge(a, b))
    assert {key: merged[key] for key, one in second.items() if not isinstance(one, dict)} == {
        key: one for key, one in second.items() if not isinstance(one, dict)
    }


# overrides


def test_an_override_is_read_as_yaml(here: Path) -> None:
    words = [
        "optimizer.lr=1e-4",
        "data.max_length=2k",
        "model.name_or_path='3'",
        "data.pack_samples=true",
        "data.sources.0.split=train[:10]",
        "deepspeed.zero_optimization={stage: 1}",
        "logger.print_output_ranks=[0, 1]",
        "seed=",
    ]
    recipe = SMALL | {"data": {"sources": [{"name_or_path": "a/b"}]}}
    with pytest.raises(RecipeError, match=r"^command line: seed: null should be a valid integer$"):
        get_config(recipe, words)
    config = get_config(recipe, words[:-1])
    dumped = config.dump()
    assert config.optimizer.learning_rate == 1e-4
    assert (dumped["data"]["max_length"], dumped["data"]["pack_samples"]) == (2000, True)
    assert dumped["model"]["name_or_path"] == "3"
    assert dumped["data"]["sources"][0]["split"] == "train[:10]"
    assert (config.deepspeed, config.logger.print_output_ranks) == ({"zero_optimization": {"stage": 1}}, [0, 1])


def test_a_later_override_wins() -> None:
    assert get_config(SMALL, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("word", ["seed", "=1", "a..b=1", ".a=1"])
def test_what_is_no_override_is_refused(word: str) -> None:
    with pytest.raises(RecipeError, match=r"expected key\.path=value"):
        get_config(SMALL, [word])


@given(_MAPPINGS, st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers())
def test_an_override_sets_its_value_and_no_other(tree: dict[str, Any], path: list[str], value: int) -> None:
    try:
        after = to_python(set_path(from_python(tree), tuple(path), from_python(value)))
    except ValueError:
        return  # it leads through something that is no mapping
    for key in path[:-1]:
        assert {k: v for k, v in after.items() if k != key} == {k: v for k, v in tree.items() if k != key}
        after, tree = after[key], tree.get(key) or {}
    assert after == {**tree, path[-1]: value}


# references


def test_a_reference_that_is_the_whole_value_keeps_its_type() -> None:
    recipe = {"a": {"x": [1, {"y": 2.5}], "t": True}, "b": "${a}", "c": "${a.x.1.y}", "d": "${a.t}", "e": "${b.x.0}"}
    done = resolved(recipe)
    assert done["b"] == recipe["a"]
    assert (done["c"], done["d"], done["e"]) == (2.5, True, 1)


def test_a_reference_inside_a_text_is_written_as_yaml_would() -> None:
    done = resolved({"n": 3, "t": True, "none": None, "w": "x", "s": "${w}-${n}-${t}-${none}-$${w}-$w"})
    assert done["s"] == "x-3-true-null-${w}-$w"


def test_references_are_followed_and_moved_by_overrides() -> None:
    assert resolved({"a": "${b}", "b": "${c}1", "c": "x"})["a"] == "x1"
    config = get_config(SMALL | {"eval_interval": "${train_iters}", "evaluators": ["generate"]}, ["train_iters=7"])
    assert config.eval_interval == 7


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ({"a": "${a}"}, "refers to itself: a -> a"),
        ({"a": {"b": "${a}"}}, "refers to itself: a -> a"),
        ({"a": "${b}"}, "${b}: the recipe has no such key; there are: a"),
        ({"abc": 1, "c": "${acb}"}, "${acb}: the recipe has no such key; did you mean 'abc'? there are: abc, c"),
        ({"a": "${}"}, "the recipe has no such key"),
        ({"a": "${env:}"}, "is not set"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(recipe: dict[str, Any], what: str) -> None:
    assert what in complaint(recipe)


@pytest.mark.fault(21)
def test_references_that_explode_are_refused() -> None:
    recipe: dict[str, Any] = {"a0": ["x"] * 10} | {f"a{n + 1}": [f"${{a{n}}}"] * 10 for n in range(8)}
    _, problems = interpolate(from_python(recipe))
    assert any("more than 10,000 values" in one.text for one in problems)
    texts: dict[str, Any] = {"b0": "x" * 100} | {f"b{n + 1}": f"${{b{n}}}" * 10 for n in range(8)}
    _, problems = interpolate(from_python(texts))
    assert any("more than 1,000,000 characters" in one.text for one in problems)


def test_a_package_is_found_and_not_imported() -> None:
    name = "mailcap" if sys.version_info < (3, 13) else "wsgiref"
    assert resolved({"a": "${package:yaml}/x"})["a"].endswith(f"yaml{os.sep}x")
    assert complaint({"a": "${package:no_such}"}).startswith("the Python package no_such is not installed")
    assert name not in sys.modules


@pytest.mark.fault(33)
@given(st.dictionaries(st.sampled_from("abc"), st.text(st.sampled_from("${}abc.:0 "), max_size=12), max_size=3))
def test_any_reference_is_resolved_or_refused(recipe: dict[str, Any]) -> None:
    tree, problems = interpolate(from_python(recipe))
    for problem in problems:
        assert tree.step(problem.path[0]) == from_python(recipe).step(problem.path[0])  # stays as it is written


# secrets


@pytest.mark.fault(36)
def test_a_secret_is_used_but_never_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2hunter2")
    monkeypatch.setenv("MY_COUNT", "77")
    recipe = write(
        "recipe.yaml",
        "model: {name_or_path: m, hf_config_kwargs: {token: '${env:MY_TOKEN}', again: "
        "'${model.hf_config_kwargs.token}'}}\n"
        "data: {sources: [{type: huggingface, name_or_path: 'https://x:${env:MY_TOKEN}@y/'}]}\n"
        "seed: ${env:MY_COUNT}\nepochs: 77\n",
    )
    config = get_config(recipe)
    assert config.model_dump()["model"]["hf_config_kwargs"] == {"token": "hunter2hunter2", "again": "hunter2hunter2"}
    assert config.seed == 77
    for text in (write_yaml(config.dump()), show(config)):
        assert "hunter2" not in text
        assert "https://x:${env:MY_TOKEN}@y/" in text
        assert yaml.safe_load(text)["seed"] == "${env:MY_COUNT}"
        assert yaml.safe_load(text)["epochs"] == 77  # the same number, and nothing to do with it
    assert get_config(config.dump()).model_dump() == config.model_dump()


# where values come from


def test_every_value_is_shown_with_its_origin(here: Path) -> None:
    write("base.yaml", "model: {name_or_path: m}\noptimizer:\n  lr: 1e-3\n")
    recipe = write("recipe.yaml", "extends: base.yaml\ndata:\n  sources: [a/b, x.jsonl]\nseed: ${epochs}\nepochs: 2\n")
    text = show(get_config(recipe, ["epochs=3"]))
    origins = {line.partition("#")[0].strip(): line.partition("#")[2].strip() for line in text.splitlines()}
    assert origins["epochs: 3"] == "command line"
    assert origins["learning_rate: 0.001"] == "base.yaml:3:7"
    assert origins["seed: 3"] == "recipe.yaml:4:7"
    assert origins["name_or_path: a/b"] == "recipe.yaml:3:13"
    assert origins["name_or_path: m"] == "base.yaml:1:23"
    assert origins["micro_batch_size: 1"] == "default"
    assert yaml.safe_load(text)["data"]["sources"][1]["type"] == "jsonl"


@pytest.mark.parametrize(
    "more",
    [
        {"checkpoint": {"type": "huggingface"}},
        {"scheduler": {"name": "constant"}},
        {"type": "grpo", "rewards": ["ended"], "loss_type": "cispo"},
    ],
)
def test_what_is_shown_is_a_recipe_again(here: Path, more: dict[str, Any]) -> None:
    config = get_config(write("recipe.yaml", yaml.safe_dump(SMALL | more)))
    again = write("again.yaml", show(config))
    assert get_config(again).dump() == config.dump()
    written = write("written.yaml", write_yaml(config.dump()))
    assert get_config(written).dump() == config.dump()


# the user's own code


MINE = "from arctic_training import SFTTrainer\nclass Mine(SFTTrainer):\n    name = {name!r}\n"


def test_code_beside_the_recipe_makes_its_names_known(here: Path) -> None:
    write("train.py", MINE.format(name="own_beside"))
    config = get_config(write("recipe.yaml", yaml.safe_dump(SMALL | {"type": "own_beside"})))
    assert config.type == "own_beside"
    assert config.code == Path("train.py").resolve()


def test_code_is_named_relative_to_the_recipe(here: Path) -> None:
    write("lib/mine.py", "import helper\n" + MINE.format(name="own_named"))
    write("lib/helper.py", "x = 1\n")
    recipe = write("sub/recipe.yaml", yaml.safe_dump(SMALL | {"type": "own_named", "code": "../lib/mine.py"}))
    assert get_config(recipe).type == "own_named"
    assert get_config(recipe).type == "own_named"  # read a second time, it is the same class
    assert not list(here.rglob("__pycache__"))


def test_a_part_the_trainer_does_not_list_needs_leave(here: Path) -> None:
    code = "from arctic_training import ModelFactory\nclass Mine(ModelFactory):\n    name = 'own_model'\n"
    write("train.py", code + "    def create_model(self, config):\n        return None\n")
    recipe = write("recipe.yaml", "type: sft\nmodel: {type: own_model}\ndata: {sources: [a/b]}\n")
    with pytest.raises(RecipeError, match="'own_model' is not accepted here") as refused:
        get_config(recipe)
    # the message names both ways, and both lead there
    assert "write skip_validation: true" in str(refused.value)
    assert get_config(recipe, ["skip_validation=true"]).model.type == "own_model"
    stated = str(refused.value).partition("subclass of the trainer: ")[2]
    imports = (
        "from arctic_training import SFTTrainer\nfrom arctic_training.model.huggingface_factory import HFModelFactory\n"
    )
    imports += "from arctic_training.model.liger_factory import LigerModelFactory\n"
    code = imports + code + "    def create_model(self, config):\n        return None\n"
    write("train.py", f"{code}class Admits(SFTTrainer):\n    name = 'admits_own_model'\n    {stated}\n")
    assert get_config(recipe, ["type=admits_own_model"]).model.type == "own_model"


def test_attention_that_processes_cannot_share_is_refused_before_the_model_is_opened() -> None:
    shared = {**SMALL, "sequence_parallel_size": 2}
    for how in ("auto", "documents", "sdpa", "flash_attention_2"):
        assert get_config({**shared, "model": {**SMALL["model"], "attn_implementation": how}})
    for how in ("flex_attention", "eager"):
        settings = {**shared, "model": {**SMALL["model"], "attn_implementation": how}}
        with pytest.raises(RecipeError, match=r"^sequence_parallel_size: 2 processes share .*: auto$"):
            get_config(settings)
        assert get_config({**settings, "sequence_parallel_size": 1})


@pytest.mark.parametrize(
    ("annotation", "attribute", "chosen"),
    [
        ("model_factory: Mine", "model_factory_type", "Mine"),
        ("model_factory: HFModelFactory | Mine", "model_factory_type", "HFModelFactory Mine"),
        ("model_factory: 'Mine'", "model_factory_type", "Mine"),
        ("optimizer_factory: FusedAdamFactory", "optimizer_factory_type", "FusedAdamFactory"),
        ("config: MineConfig; config_type = MineConfig", "config_type", "MineConfig"),
        ("config: TrainerConfig", "config_type", "LanguageModelConfig"),
        ("config: LanguageConfig", "config_type", "LanguageConfig"),
        ("model_factory: HFModelFactory; model_factory_type = Mine", "model_factory_type", "Mine"),
        ("model_factory: 'Nobody'", "model_factory_type", "HFModelFactory LigerModelFactory"),
        ("other: 'Nobody'; model_factory: 'Mine'", "model_factory_type", "Mine"),
        ("optimizer_factory_type = Sgd", "optimizer_factory_type", "Sgd"),
        ("optimizer_factory_type = Stated", "optimizer_factory_type", "Stated"),
    ],
)
def test_an_annotation_is_an_assignment(here: Path, annotation: str, attribute: str, chosen: str) -> None:
    name = f"own_annotated_{abs(hash(annotation))}"
    code = "from arctic_training import HFModelFactory, LanguageModelConfig, SFTTrainer, TrainerConfig\n"
    code += "from arctic_training.config.sections.optimizer import OptimizerConfig\n"
    code += "from arctic_training.optimizer.deepspeed_factories import FusedAdamFactory\n"
    code += "from arctic_training.optimizer.factory import OptimizerFactory\n"
    code += "class Mine(HFModelFactory):\n    pass\nclass MineConfig(TrainerConfig):\n    own: int = 1\n"
    code += "class LanguageConfig(LanguageModelConfig):\n    own: int = 1\n"
    code += "class SgdConfig(OptimizerConfig):\n    own: int = 1\n"
    code += f"class Sgd(OptimizerFactory[SgdConfig]):\n    name = 'sgd_{name}'\n"
    code += "    def create_optimizer(self, model, config): ...\n"
    code += f"class Stated(Sgd):\n    name = 'stated_{name}'\n    config_type = OptimizerConfig\n"
    write("train.py", f"{code}class Annotated(SFTTrainer):\n    name = '{name}'\n    {annotation}\n")
    recipe = write("recipe.yaml", yaml.safe_dump(SMALL | {"type": name}))
    config = get_config(recipe)
    classes = getattr(lookup("trainer", name), attribute)
    assert " ".join(one.__name__ for one in listed(classes)) == chosen
    assert config.optimizer.model_dump().get("own") == (1 if "Sgd" in chosen else None)


def test_an_annotation_that_cannot_be_read_is_refused(here: Path) -> None:
    code = "from arctic_training import HFModelFactory, SFTTrainer\n"
    code += "class Annotated(SFTTrainer):\n    name = 'own_annotated_too_early'\n    model_factory: 'Mine'\n"
    write("train.py", f"{code}class Mine(HFModelFactory):\n    pass\n")
    recipe = write("recipe.yaml", yaml.safe_dump(SMALL | {"type": "own_annotated_too_early"}))
    with pytest.raises(RecipeError, match=r"has an annotation that chooses nothing; write model_factory_type = Mine$"):
        get_config(recipe)


# from Python


def test_a_mapping_is_a_recipe_and_stays_as_it_is() -> None:
    recipe = {**SMALL, "optimizer": {"lr": 1e-3}}
    before = repr(recipe)
    config = get_config(recipe)
    assert repr(recipe) == before
    assert config.type == "sft"
    assert config.recipe_path is None
    assert config.recipe_dir == Path.cwd()


def test_problems_of_a_mapping_are_named_by_their_keys() -> None:
    with pytest.raises(RecipeError) as error:
        get_config(SMALL | {"seed": "x", "optimzer": {}})
    assert sorted(error.value.problems) == [
        "optimzer: unknown; did you mean 'optimizer'?",
        "seed: 'x' should be a valid integer, unable to parse string as an integer",
    ]


def test_a_value_of_several_types_has_one_problem_at_its_own_place() -> None:
    class Section(BaseModel):
        sizes: list[int] | dict[str, int] = []
        rate: float | Literal["auto"] = "auto"

    with pytest.raises(ValidationError) as error:
        Section.model_validate({"sizes": [1, "x"], "rate": "fast"})
    problems = {".".join(one.path): one.text for one in problems_of(error.value, Section)}
    assert list(problems) == ["sizes.1", "rate"]
    assert problems["sizes.1"].startswith("'x' should be a valid integer")
    assert "valid number" in problems["rate"] and "; or 'auto'" in problems["rate"]


def test_reading_a_value_of_any_depth_needs_no_stack() -> None:
    deep: Any = {"a": 1}
    for _ in range(40):
        deep = {"a": deep}
    assert to_python(read_yaml(write_yaml(deep), "r")) == deep
    assert to_python(read_value("{a: " * 30 + "1" + "}" * 30, "r")) is not None
