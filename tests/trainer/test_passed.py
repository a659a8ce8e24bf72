"""Objects that a program passes to a trainer: the run is that of a recipe which names them."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from arctic_training import DPOTrainer, PPOTrainer, SFTTrainer, TensorClassifierTrainer, get_config
from arctic_training.errors.types import DataError, InputError, ModelError, RecipeError, ResumeError
from arctic_training.registry import lookup
from arctic_training.testing.runs import Metrics, first_difference
from tests import tiny
from tests.contract.cases import CASES, recipe
from tests.trainer.passing import split

# a head with new weights is drawn by whoever builds the model
EQUAL = sorted(CASES.keys() - {"classifier", "reward"})


def run(settings: dict[str, Any], **objects: Any) -> Metrics:
    config = get_config(settings)
    trainer: Any = lookup("trainer", config.type)(config, **objects)  # type: ignore[call-arg]
    metrics = Metrics()
    metrics.listen(trainer)
    trainer.train()
    trainer.close()
    return metrics


def by_name(metrics: Metrics) -> dict[str, dict[str, float]]:
    return {f"{event} {step}": values for (event, step), values in metrics.items()}


def require_equal_runs(name: str, folder: Path, **more: Any) -> None:
    settings = recipe(name, folder, train_iters=2, **more)
    stated = run({**settings, "output_dir": str(folder / "stated")})
    rest, objects = split({**settings, "output_dir": str(folder / "passed")})
    passed = run(rest, **objects)
    assert len(stated) == 2 and first_difference(by_name(stated), by_name(passed)) == ""


@pytest.mark.parametrize("name", EQUAL)
def test_a_run_is_that_of_a_recipe_that_names_what_is_passed(name: str, tmp_path: Path) -> None:
    require_equal_runs(name, tmp_path)


@pytest.mark.parametrize("name", ["classifier", "reward"])
def test_a_classifier_that_is_passed_trains(name: str, tmp_path: Path) -> None:
    rest, objects = split(recipe(name, tmp_path, train_iters=2, output_dir=str(tmp_path / "run")))
    head = objects["model"].score.weight.detach().clone()
    assert len(run(rest, **objects)) == 2
    assert not torch.equal(head, objects["model"].score.weight)


@pytest.fixture
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "type": "sft",
        "data": {"max_length": 400},
        "micro_batch_size": 2,
        "output_dir": str(tmp_path / "run"),
        "loss_log_interval": 0,
        "logger": {"level": "ERROR"},
    }


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Stream(torch.utils.data.IterableDataset[dict[str, Any]]):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def test_rows_of_every_kind_are_the_same_rows(settings: dict[str, Any], tiny_model: Path, tokenizer: Any) -> None:
    from datasets import Dataset, IterableDataset

    settings |= {"model": {"name_or_path": str(tiny_model), "dtype": "fp32"}}
    rows = tiny.chats(6)
    path = tiny.save_chats(Path(settings["output_dir"]).parent / "rows.jsonl", 6)
    stated = by_name(run({**settings, "data": {**settings["data"], "sources": [str(path)]}}))
    kinds = [rows, Dataset.from_list(rows), Rows(rows), Stream(rows), iter(rows)]
    for one in kinds:
        assert first_difference(stated, by_name(run(settings, train_dataset=one))) == "", type(one)
    tokens = [{"input_ids": torch.arange(4, 9), "labels": torch.arange(4, 9)} for _ in range(6)]
    assert len(run(settings, train_dataset=tokens, tokenizer=tokenizer)) == 3
    stream = IterableDataset.from_generator(lambda: itertools.chain(rows))
    assert len(run({**settings, "train_iters": 5}, train_dataset=stream)) == 5


def test_tensors_of_every_kind_are_the_same_columns(settings: dict[str, Any]) -> None:
    points, labels = torch.randn(8, 2), torch.arange(8) % 3
    rest = {key: one for key, one in settings.items() if key != "data"} | {"type": "tensor_classifier"}
    kinds = [
        torch.utils.data.TensorDataset(points, labels),
        {"rows": points, "labels": labels},
        {"rows": points.numpy(), "labels": labels.numpy()},
        list(zip(points, labels.tolist(), strict=True)),
        [{"rows": point, "labels": label} for point, label in zip(points, labels, strict=True)],
    ]
    losses = []
    for rows in kinds:
        torch.manual_seed(0)
        trainer = TensorClassifierTrainer(get_config(rest), model=torch.nn.Linear(2, 3), train_dataset=rows)
        losses.append(trainer.train_loader.dataset["rows"] is not points and trainer.evaluate())  # type: ignore[union-attr]
        metrics = Metrics()
        metrics.listen(trainer)
        trainer.train()
        trainer.close()
        losses[-1] = by_name(metrics)
    assert all(one == losses[0] for one in losses) and len(losses[0]) == 4  # type: ignore[arg-type]
    with pytest.raises(DataError, match="rows of 3 parts; name them"):
        TensorClassifierTrainer(
            get_config(rest),
            model=torch.nn.Linear(2, 3),
            train_dataset=torch.utils.data.TensorDataset(points, labels, labels),
        )


def test_the_next_trainer_goes_on_with_the_same_objects(settings: dict[str, Any], model: Any, tokenizer: Any) -> None:
    rows = tiny.chats(6)
    objects = {"model": model, "tokenizer": tokenizer, "train_dataset": rows}
    config, template = get_config(settings), tokenizer.chat_template
    first = SFTTrainer(config, eval_dataset={"all": rows, "one": rows[:1]}, **objects)
    before = first.evaluate()
    first.train()
    after = first.evaluate()
    first.close()
    assert {"loss/all", "loss/one"} <= set(before) and after["loss/all"] < before["loss/all"]
    second = SFTTrainer(config, eval_dataset=rows, **objects)
    assert second.evaluate() == {name[:-4] + "/eval": value for name, value in after.items() if name.endswith("/all")}
    second.close()
    assert len(rows) == 6 and tokenizer.chat_template == template


def test_the_recipe_decides_dtype_adapter_and_checkpointing(
    settings: dict[str, Any], model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    section = {"dtype": "bf16", "activation_checkpointing": True, "attn_implementation": "eager"}
    section["peft_config"] = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}
    objects = {"model": model, "tokenizer": tokenizer, "train_dataset": tiny.chats(4)}
    trainer: Any = SFTTrainer(get_config({**settings, "model": section}), **objects)
    base = trainer.model.module.get_base_model()
    assert base is model and model.is_gradient_checkpointing and model.config._attn_implementation == "eager"
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    trained = {name.split(".")[-3] for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {"lora_A", "lora_B"}
    trainer.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "base" / "model.safetensors").exists()  # no name loads it for certain
    trainer.close()
    with pytest.raises(ModelError, match="has an adapter already"):
        SFTTrainer(get_config(settings), **objects)


def test_a_run_resumes_but_not_with_another_frozen_model(
    settings: dict[str, Any], model: Any, tokenizer: Any, tiny_model: Path
) -> None:
    from transformers import AutoModelForCausalLM

    pairs = [
        {"chosen": good["messages"][:2], "rejected": [good["messages"][0], bad["messages"][1]]}
        for good, bad in zip(tiny.chats(6, seed=4), tiny.chats(6, seed=5), strict=True)
    ]
    settings |= {"type": "dpo", "optimizer": {"lr": 1e-2}}
    settings["checkpoint"] = {"type": "deepspeed", "save_every_n_steps": 1, "auto_resume": True}
    config = get_config({**settings, "exit_iteration": 2})
    objects = {"tokenizer": tokenizer, "train_dataset": pairs}
    first = DPOTrainer(config, model=model, **objects)
    assert first.engines["ref_model"].module is not model
    first.train()
    first.close()
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    second = DPOTrainer(get_config(settings), model=fresh, **objects)
    assert second.progress.step == 2 and torch.equal(second.model.module.lm_head.weight, model.lm_head.weight)  # type: ignore[union-attr]
    second.train()
    assert second.progress.step == 3
    second.close()
    with pytest.raises(ResumeError, match=r"ref_model.weights: saved \w+, now \w+"):
        DPOTrainer(get_config(settings), model=model, **objects)


def test_what_is_neither_passed_nor_stated_is_refused_as_in_a_file(settings: dict[str, Any], model: Any) -> None:
    config = get_config(settings)
    assert config.missing_objects == ["model.name_or_path: Field required", "data.sources: Field required"]
    stated = {"model": {"name_or_path": "m"}, "data": {"sources": ["a/b"]}}
    assert get_config({**settings, **stated}).missing_objects == []
    with pytest.raises(RecipeError, match=r"\Amodel.name_or_path: Field required\ndata.sources: Field required\Z"):
        SFTTrainer(config)
    with pytest.raises(RecipeError, match=r"\Adata.sources: Field required\Z"):
        SFTTrainer(config, model=model)
    with pytest.raises(RecipeError, match=r"eval_interval: there is nothing to evaluate on"):
        SFTTrainer(get_config({**settings, "eval_interval": 1}), model=model, train_dataset=tiny.chats(2))
    ppo = {"type": "ppo", "rewards": ["exact_match"], "critic": {"new_weights": ["score"]}, "num_generations": 2}
    model.name_or_path = ""
    with pytest.raises(RecipeError, match=r"critic.name_or_path: Field required"):
        PPOTrainer(get_config({**settings, **ppo}), model=model, train_dataset=tiny.chats(2))
    with pytest.raises(RecipeError, match=r"optimizer.lr"):
        get_config({**settings, "optimizer": {"lr": "fast"}})


@pytest.mark.parametrize(
    ("more", "objects", "message"),
    [
        ({}, {"modle": 1}, "SFTTrainer: no argument is named 'modle'; there are model, tokenizer"),
        ({}, {"model": "a name"}, "model: expected a model of transformers, not str"),
        ({}, {"model": torch.nn.Linear(2, 2)}, "model: expected a model of transformers, not Linear"),
        ({}, {"tokenizer": 5}, "tokenizer: expected a tokenizer of transformers, not int"),
        ({}, {"train_dataset": "rows.jsonl"}, "data.sources: train_dataset is a str; expected a list"),
        ({}, {"train_dataset": []}, "train_dataset: there are no rows"),
        ({}, {"train_dataset": {"messages": []}}, "data.sources: train_dataset is a dict; pass one of its parts"),
        (
            {},
            {"train_dataset": pandas.DataFrame({"a": [1]})},
            r"a DataFrame; pass datasets\.Dataset\.from_pandas",
        ),
        ({}, {"train_dataset": [3]}, "train_dataset: row 1: a row is a mapping of columns, not int"),
        ({}, {"train_dataset": [{"messages": 3}]}, "train_dataset: row 1: a chat is a list of messages"),
        ({"model": {"name_or_path": "m"}}, {}, "model.name_or_path: m, and a model is passed; give one of them"),
        ({"model": {"random_weights": True}}, {}, "model.random_weights: says how a model is loaded"),
        ({"tokenizer": {"name_or_path": "m"}}, {}, "tokenizer: name_or_path: m, and a tokenizer is passed|tokenizer"),
        ({"data": {"sources": ["a.jsonl"]}}, {}, "data.sources: they are stated, and train_dataset is passed"),
        ({"type": "causal"}, {}, "type: causal; SFTTrainer takes a recipe of type sft"),
    ],
)
def test_what_cannot_be_passed_is_refused(
    more: dict[str, Any], objects: dict[str, Any], message: str, settings: dict[str, Any], model: Any, tokenizer: Any
) -> None:
    rows = tiny.chats(2)
    with pytest.raises((InputError, TypeError), match=message):
        SFTTrainer(
            get_config({**settings, **more}),
            **{"model": model, "tokenizer": tokenizer, "train_dataset": rows, **objects},
        )
    assert not Path(settings["output_dir"]).exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model": {"type": "passed"}}, "model.module: no recipe can hold it; pass it in Python"),
        ({"data": {"sources": ["passed"]}}, "data.sources.0.rows: no recipe can hold them"),
        ({"tokenizer": {"type": "passed"}}, "tokenizer.type: 'passed' is not accepted|tokenizer.tokenizer: no recipe"),
    ],
)
def test_a_recipe_cannot_hold_objects(section: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_config({"model": {"name_or_path": "m"}, "data": {"sources": ["a/b"]}, **section})


def test_a_model_that_cannot_be_trained_is_refused(settings: dict[str, Any], model: Any, tokenizer: Any) -> None:
    from transformers import AutoModelForSequenceClassification, LlamaForCausalLM

    other = AutoModelForSequenceClassification.from_config(model.config)
    with torch.device("meta"):
        empty = LlamaForCausalLM(model.config)
    for passed, message in (
        (other, "the passed model is a LlamaForSequenceClassification; expected a causal language model"),
        (empty, "has parameters without values, on the meta device"),
    ):
        with pytest.raises(ModelError, match=message):
            SFTTrainer(get_config(settings), model=passed, tokenizer=tokenizer, train_dataset=tiny.chats(2))
