"""The reference pages say what the code does: messages, events, batch keys, metrics, files, names, recipe keys."""

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import arctic_training
from arctic_training import get_config
from arctic_training.config.checks.not_built import KEYS, TYPES
from arctic_training.errors.types import InputError
from arctic_training.registry import kinds, lookup, names, stated
from tests import documented_messages
from tests.contract import cases
from tests.processes import ROOT
from tests.test_architecture import FLOORS

DOCS = ROOT / "docs"
API = (DOCS / "api.md").read_text(encoding="utf-8")
MIGRATION = (DOCS / "migration.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """Returns the part of the API reference below ``heading``, up to the next one of its level or above."""
    level = len(heading.partition(" ")[0])
    return re.split(rf"^#{{1,{level}}} ", API.partition(f"{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """Returns the cells of the rows of its tables, without headings."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [line for line, below in zip(lines, [*lines[1:], [""]], strict=True) if "---" not in line[0] + below[0]]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_messages_are_those_of_the_command() -> None:
    text = documented_messages.PAGE.read_text(encoding="utf-8")
    assert documented_messages.page() == text, "run python -m tests.documented_messages"
    assert text.count("<!-- c") >= 20


def test_the_other_messages_are_in_the_code() -> None:
    text = documented_messages.PAGE.read_text(encoding="utf-8")
    constants = [
        node.value
        for file in (ROOT / "arctic_training").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    for block in re.findall(r"<!-- code -->\n```text\n(.*?)```", text, re.DOTALL):
        for fragment in re.split(r"\.\.\.|\n", block):
            fragment = fragment.strip(" :;,[]")
            assert len(fragment) < 4 or any(fragment in constant for constant in constants), fragment


def test_every_public_name_is_documented() -> None:
    documented = re.findall(r"^\.\. (?:auto\w+|py:data):: arctic_training\.(\w+)", API, re.MULTILINE)
    assert sorted(documented) == sorted(arctic_training.__all__)


MACHINERY = {
    "copy_target_count",
    "count_targets",
    "count_tokens",
    "linear_argmax",
    "rows_per_chunk",
    "scaled_gradients",
    "sigmoid_ramp",
    "sum_layer_losses",
}
"""Functions of the formulas' room that count, or compute a public function in chunks."""


def test_the_formulas_are_public() -> None:
    """Each is found in the package under its own name."""
    formulas = set()
    for path in (ROOT / "arctic_training" / "loss").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name not in MACHINERY:
                formulas.add(node.name)
                assert getattr(arctic_training, node.name).__module__ == f"arctic_training.loss.{path.stem}"
    assert len(formulas) > 50


def test_every_name_of_this_package_on_the_pages_is_there() -> None:
    pages = [ROOT / "README.md", *DOCS.glob("*.md"), *(DOCS / "guides").glob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        imported = re.findall(r"^from (arctic_training[\w.]*) import (.+)$", text, re.MULTILINE)
        names = [f"{module}.{name.strip()}" for module, some in imported for name in some.split(",")]
        names += re.findall(r"`(arctic_training(?:\.\w+)+)", text) if page.name != "recipe.md" else []
        for name in names:
            resolve(name)


def resolve(name: str) -> Any:
    """Returns the module or attribute that a dotted name means. Raises AttributeError."""
    module, _, rest = name.partition(".")
    value: Any = importlib.import_module(module)
    for part in filter(None, rest.split(".")):
        module += f".{part}"
        try:
            value = getattr(value, part)
        except AttributeError:
            value = importlib.import_module(module)
    return value


def test_the_events_are_those_of_the_classes() -> None:
    trainers, others = [rows(part) for part in section("## Events of a trainer").split("| class | events |")]
    documented = {code(row[0])[0] for row in trainers}
    every = set[str]().union(*(lookup("trainer", name).events() for name in names("trainer")))
    assert documented == every
    for name, *events in ([*code(row[0]), *code(row[1])] for row in others if row[0].startswith("`")):
        assert set(events) == getattr(arctic_training, name).events()


def test_what_batches_count_is_documented() -> None:
    (table,) = [part for part in section("## Batch keys").split("\n\n") if part.startswith("| data factory | counts |")]
    documented = {name: row[1] for row in rows(table) for name in code(row[0])}
    factories = [lookup("data_factory", name) for name in names("data_factory")]
    counts = {one.name: one.counts for one in factories if one.__module__.startswith("arctic_training.")}  # type: ignore[attr-defined]
    assert documented == counts


@pytest.mark.parametrize("name", cases.CASES)
def test_batches_metrics_and_files_are_as_documented(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more: dict[str, Any] = {"epochs": 1, "train_iters": 2, "evaluate_last": True, "output_dir": str(run)}
    recipe = cases.recipe(name, tmp_path, **more, checkpoint={"type": "deepspeed", "save_end_of_training": True})
    recipe["data"]["eval_sources"] = recipe["data"]["sources"]
    if name == "causal":
        recipe["data"]["pack_samples"] = True
    if name == "sft":
        recipe["evaluators"] = ["generate"]
        recipe["checkpoint"] = [recipe["checkpoint"], {"type": "huggingface", "save_end_of_training": True}]
    trainer = lookup("trainer", name)(get_config(recipe))
    batches: list[Any] = []
    trainer.callbacks.append(("pre-loss", lambda trainer, batch: batches.append(batch)))
    trainer.train()
    trainer.close()
    require_keys(name, batches[0], packed="cu_seq_lens_q" in batches[0])
    require_metrics(run / "metrics.jsonl")
    require_files(run)
    if name == "sft":
        (loading,) = blocks("python", "checkpoints.md")
        exec(
            loading.replace("runs/recipe/checkpoints/huggingface/step_40", f"{run}/checkpoints/huggingface/step_2"), {}
        )


def require_keys(name: str, batch: Any, *, packed: bool) -> None:
    tables = {
        "sft": "### sft, causal, autoregressive and distill",
        **dict.fromkeys(("gan", "energy", "vae"), "### gan, vae, energy, and the data factory `tensor`"),
        **dict.fromkeys(("diffusion", "flow"), "### diffusion and flow"),
    }
    plain = ("sft", "causal", "autoregressive", "distill")
    tables |= dict.fromkeys(plain, tables["sft"]) | dict.fromkeys(("grpo", "reinforce"), "### grpo and reinforce")
    documented = {key: row[-1] for row in rows(section(tables.get(name, f"### {name}"))) for key in code(row[0])}
    if name == "ppo":
        documented |= {key: row[-1] for row in rows(section("### grpo and reinforce")) for key in code(row[0])}
    if name in (*plain, "dpo", "kto", "reward"):
        column = 2 if packed else 1
        tokens = {key: row[column] for row in rows(section(tables["sft"])) for key in code(row[0])}
        documented = {key: shape for key, shape in tokens.items() if shape != "absent"} | (
            {} if name in plain else documented
        )
    assert set(batch) <= set(documented)
    assert [one for one in documented if one not in batch and "where the rows have them" not in documented[one]] == []
    for key, value in batch.items():
        if isinstance(value, torch.Tensor) and (dtype := re.match(r"(int|float)\d+", documented[key])):
            assert str(value.dtype) == f"torch.{dtype[0]}", key
            shape = re.search(r"`\[([^\]]*)\]`", documented[key])
            assert shape and value.dim() == len(shape[1].split(",")), key


def require_metrics(path: Path) -> None:
    documented = [re.sub("<[^>]+>", "[^/]+", name) for row in rows(section("## Metrics")) for name in code(row[0])]
    pattern = re.compile("|".join(f"(?:{name})(?:/eval)?" for name in documented))
    logged = set[str]().union(*map(json.loads, path.read_text().splitlines())) - {"step", "time"}
    assert len(logged) > 5
    assert [name for name in logged if not pattern.fullmatch(name)] == []


def require_files(folder: Path) -> None:
    documented = [code(row[0])[0] for row in rows(section("## Files of a run folder"))]
    patterns = [re.sub("<[^>]+>", "[^/]+", name.replace(".", r"\.")) for name in documented]
    patterns = [f"{one}.*" if one.endswith("/") else one for one in patterns]
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [file for file in files if not any(re.fullmatch(pattern, file) for pattern in patterns)] == []


@pytest.mark.parametrize(("key", "feature"), [*((key, features[0]) for key, features in KEYS.items()), *TYPES.items()])
def test_what_is_not_built_is_on_the_migration_page(key: str, feature: str) -> None:
    (row,) = [row for row in rows(MIGRATION) if f"`{key}`" in row[0] and "not built" in row[-1]]
    assert f"{feature} is not built yet" in row[-1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, ""),
        ({"tiled_mlp_compute": True, "activation_checkpoint_cpu_offload": True}, ""),
        ({"arctic_moe": "auto"}, "the grouped-GEMM MoE layer is not built yet"),
        ({"sequence_parallel_size": 8}, ""),
        (
            {"sequence_parallel_size": 8, "model": {"name_or_path": "some/model", "attn_implementation": "eager"}},
            "give model.attn_implementation: auto",
        ),
        ({"data": {"sources": [{"type": "snowflake", "sql": "SELECT 1"}]}}, "reads from Snowflake is not built yet"),
    ],
)
def test_recipes_of_arctic_training_pass_or_are_refused_as_told(more: dict[str, Any], message: str) -> None:
    recipe: dict[str, Any] = {
        "type": "sft",
        "min_iterations": 4,
        "exit_iteration": 4,
        "model": {"type": "liger", "name_or_path": "some/model", "attn_implementation": "flash_attention_2"},
        "data": {
            "sources": [{"type": "huggingface_instruct", "name_or_path": "some/chats", "role_mapping": {"user": "q"}}],
            "cache_dir": "cache",
            "dl_num_workers": 1,
            "max_length": "32_000",
        },
        "optimizer": {"type": "cpu_adam", "learning_rate": 1e-5},
        "deepspeed": {"zero_optimization": {"stage": 3}, "seq_parallel_communication_data_type": "bf16"},
        "logger": {"level": "WARNING", "output_dir": "logs", "print_output_ranks": [0, 1]},
        "wandb": {"enable": False, "project": "mine"},
    }
    if not message:
        assert get_config(recipe | more)
        return
    with pytest.raises(InputError, match=re.escape(message)):
        get_config(recipe | more)


def blocks(kind: str, page: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def own_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python code of the pages as one file: a class can be registered once."""
    path = tmp_path_factory.mktemp("pages") / "train.py"
    parts = [*blocks("python", "extending.md"), *blocks("python", "migration.md")]
    path.write_text("\n\n".join(parts), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["mine", "squared", "uncertain", "grpo", "tied"])
def test_the_classes_on_the_pages_train(
    kind: str, own_code: Path, tmp_path: Path, tiny_model: Path, tiny_chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe: dict[str, Any] = {
        "type": kind,
        "code": str(own_code),
        "output_dir": str(tmp_path / "run"),
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": [str(tiny_chats)], "max_length": 400},
        "train_iters": 2,
        "loss_log_interval": 0,
    }
    if kind == "grpo":
        recipe |= {"rewards": ["brief"], "num_generations": 2, "max_new_tokens": 4}
    elif kind == "mine":
        recipe["callbacks"] = [{"type": "print", "every": 1}]
        recipe["data"]["sources"] = ["questions"]
    config = get_config(recipe)
    trainer = lookup("trainer", kind)(config)
    trainer.train()
    trainer.close()
    if kind == "mine":
        assert re.search(r"^\d+\.\d+$", capsys.readouterr().out, re.MULTILINE)
    elif kind == "tied":
        model = lookup("model_factory", "masked_model")(trainer, config.model)
        assert model.auto_class.__name__ == "AutoModelForMaskedLM"
        assert lookup("trainer", "grade").roles[0].num_labels == 1


def test_the_recipe_reference_has_every_class_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS / "_ext")
    page = importlib.import_module("recipe_reference").pages()
    del sys.modules["recipe_reference"]
    for kind in kinds():
        for name in names(kind):
            cls: Any = lookup(kind, name)
            if not cls.__module__.startswith("arctic_training."):
                continue
            assert re.search(rf"^### .*`{name}`$", page, re.MULTILINE)
            assert [key for key in cls.config_type.model_fields if f"**`{key}`** (`" not in page] == []
    assert "- **`micro_batch_size`** (`int`, default `1`): " in page
    assert "- **`name_or_path`** (`str`, *required*): " in page
    assert "- **`output_dir`** (`path`, optional): " in page


@pytest.mark.parametrize(
    ("page", "sentence", "states"),
    [
        ("trainers.md", r"^- (`sft`.*) support it\.", "shares_sequences"),
        ("guides/mesh.md", r"^(`sft`.* run on a mesh, and so do .*),$", "tensor_parallel"),
    ],
)
def test_the_trainers_that_support_it_are_listed(page: str, sentence: str, states: str) -> None:
    listed = re.search(sentence, (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert listed and sorted(code(listed[1])) == [
        name
        for name in sorted(names("trainer"))
        if (cls := lookup("trainer", name)).__module__.startswith("arctic_training.") and stated(cls, states, "loss")
    ]


def test_the_architecture_page_names_what_is_there() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:\w+/)+(?:\w+(?:\.py)?)?)`", text):
        places = [ROOT / path, ROOT / "arctic_training" / path, ROOT / "arctic_training" / f"{path}.py"]
        assert any(place.exists() for place in places), path
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "arctic_training").rglob("*.py"))
    for name in re.findall(r"`((?:[A-Z]\w+\.)?(?:[A-Z][a-z]\w+|[a-z]+_\w+))`", text):
        for part in name.split("."):
            assert re.search(rf"\b{part}\b", source), name


def test_the_picture_of_the_floors_has_every_room() -> None:
    floors = re.split("<!-- [0-9]: ", (DOCS / "floors.svg").read_text(encoding="utf-8"))[:0:-1]
    assert len(floors) == len(FLOORS)
    for drawn, rooms in zip(floors, FLOORS, strict=True):
        shown = {room.partition(":")[0] for room in re.findall(r'class="room-name"[^>]*>([^<]+)<', drawn)}
        assert shown == {room.partition(".")[0] for room in rooms}, "draw the floors of tests/test_architecture.py"
