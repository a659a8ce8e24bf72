"""What the card of an export says beside the recipe: license, evaluation results, and how the model is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from arctic_training import get_config
from arctic_training.checkpoint.saved_model import SavedModel
from arctic_training.deployment.model_card import model_card
from arctic_training.deployment.model_index import evaluation_results
from arctic_training.metrics import reported_sets
from tests import tiny

FRONT_MATTER = "---\nlicense: other\nlicense_name: tiny-1\nlicense_link: https://a.example/license\n---\n# A model\n"
LICENSE = ["other", "tiny-1", "https://a.example/license"]


def card_of(folder: Path, name: str = "", config: dict[str, Any] | None = None) -> Any:
    """The card of the export in ``folder`` of the model ``name``, read by huggingface_hub."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"architectures": ["LlamaForCausalLM"]}))
    text = model_card(SavedModel(name or str(folder), "model"), folder, None, "me/model")
    (folder / "README.md").write_text(text)
    return ModelCard.load(folder / "README.md")


def license_of(card: Any) -> list[str | None]:
    return [card.data.license, card.data.license_name, card.data.license_link]


def test_the_license_is_that_of_the_card_in_the_folder_of_the_base(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text(FRONT_MATTER)
    assert license_of(card_of(tmp_path / "out", str(tmp_path / "base"))) == LICENSE
    (tmp_path / "base" / "model.gguf").touch()
    assert license_of(card_of(tmp_path / "out", str(tmp_path / "base" / "model.gguf"))) == LICENSE


def test_the_license_of_a_model_of_the_hub_is_read_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    cache = tmp_path / "models--them--base"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    (cache / "snapshots" / ("0" * 40)).mkdir(parents=True)
    assert license_of(card_of(tmp_path / "out", "them/base")) == [None] * 3
    (cache / "snapshots" / ("0" * 40) / "README.md").write_text(FRONT_MATTER)
    assert license_of(card_of(tmp_path / "out", "them/base")) == LICENSE


@pytest.mark.parametrize(
    "text", ["", "no front matter", "---\n- a list\n---\n", "---\na: [\n---\n", "---\nlicense: 3\n---\n"]
)
def test_a_card_without_a_license_gives_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text(text)
    assert license_of(card_of(tmp_path / "out", str(tmp_path / "base"))) == [None] * 3
    assert license_of(card_of(tmp_path / "out", "no..name")) == [None] * 3


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "AutoModelForCausalLM.from_pretrained(\"me/model\")"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "AutoModelForSeq2SeqLM.from_"),
        ({"architectures": ["BertForSequenceClassification"]}, "AutoModelForSequenceClassification.from_"),
        ({"architectures": ["BertForTokenClassification"]}, "AutoModelForTokenClassification.from_"),
        ({"architectures": ["BertModel"]}, "AutoModel.from_"),
        ({"architectures": ["OwnForCausalLM"], "auto_map": {}}, "(\"me/model\", trust_remote_code=True)"),
        ({"architectures": ["T5ForSeq2SeqTokenClassification"]}, "model, tokenizer = load_pretrained(\"me/model\")"),
        ({"_diffusers_version": "1", "_class_name": "UNet2DModel"}, "UNet2DModel.from_pretrained(\"me/model\")"),
    ],
)  # fmt: skip
def test_the_code_loads_the_class_of_the_task(tmp_path: Path, config: dict[str, Any], code: str) -> None:
    card = card_of(tmp_path / "out", config=config)
    block = card.text.partition("```python\n")[2].partition("```")[0]
    assert code in block and "AutoTokenizer" not in block
    compile(block, "card", "exec")


def test_the_code_of_an_embedding_model_is_that_of_sentence_transformers(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "modules.json").write_text("[]")
    card = card_of(tmp_path / "out", config={"architectures": ["BertModel"]})
    assert 'model = SentenceTransformer("me/model")' in card.text


def recipe_of(folder: Path, **data: Any) -> Any:
    """A recipe with its defaults, as a run folder has it, and the names of its evaluation sets."""
    tiny.save_model(folder / "model")
    config = get_config({"type": "sft", "model": {"name_or_path": str(folder / "model")}, "data": data})
    return config.model_dump(mode="json"), reported_sets(config.data.evaluation_sets)


@pytest.mark.parametrize(
    ("data", "datasets"),
    [
        ({"eval_sources": ["a.jsonl"]}, ["a.jsonl"]),
        ({"eval_sources": ["a.jsonl", "part/a.jsonl", "b.jsonl"]}, ["a.jsonl", "a#2", "b.jsonl"]),
        ({"train_eval_split": [0.9, 0.1]}, ["a.jsonl"]),
        ({"sources": ["a.jsonl", "b.jsonl"], "train_eval_split": [0.9, 0.1]}, ["eval", "a.jsonl", "b.jsonl"]),
        ({"eval_sources": [{"type": "huggingface", "name_or_path": "them/a", "split": "test"}, "them/a:validation"]},
         ["them/a", "them/a"]),
    ],
)  # fmt: skip
def test_results_are_those_of_each_evaluation_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any], datasets: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "part").mkdir()
    for name in ("a.jsonl", "part/a.jsonl", "b.jsonl"):
        tiny.save_chats(tmp_path / name, 2)
    recipe, sets = recipe_of(tmp_path, **{"sources": ["a.jsonl"], **data})
    figures = {"loss": -1.0, "lr": -2.0, "loss/critic": -3.0} | {f"loss/{name}": n for n, name in enumerate(sets)}
    results = evaluation_results(recipe, figures, "text-generation")
    assert [one.dataset_type for one in results] == datasets and [one.metric_type for one in results] == ["loss"] * len(
        sets
    )
    assert [one.metric_value for one in results] == list(range(len(sets)))
    assert len({one.unique_identifier for one in results}) == len(sets)


def test_results_of_tasks_of_the_harness_have_their_names() -> None:
    recipe = {"evaluators": [{"type": "lm_eval", "tasks": ["gsm8k"]}]}
    (one,) = evaluation_results(recipe, {"exact_match,strict/gsm8k": 0.5, "acc/other": 1.0}, "text-generation")
    assert (one.dataset_name, one.metric_type, one.metric_value) == ("gsm8k", "exact_match,strict", 0.5)
