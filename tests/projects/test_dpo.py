"""Preferences on sums modulo 17: a pair is a right answer and a wrong one of the policy."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from arctic_training import get_config
from arctic_training.registry import lookup
from tests import tiny

PROJECT = Path(__file__).parents[2] / "projects" / "dpo"


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "recipe.yaml", ["model.name_or_path=projects/grpo/model"])
    return sys.modules[lookup("data_source", "sums_pairs").__module__]


def test_pairs_are_of_a_right_and_a_wrong_answer(
    project: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy answers the first two problems right, the third not with numbers, and the others wrong."""
    tiny.save_model(tmp_path)
    factory = SimpleNamespace(
        cache_folder=None,
        trainer=SimpleNamespace(config=SimpleNamespace(model=SimpleNamespace(name_or_path=tmp_path)), tokenizer=None),
    )
    section = {"type": "sums_pairs", "task": "cumulative_sums", "count": 9, "held_out": 0.25}
    config = project.PairsSource.config_type.model_validate(section)
    rows = {split: project.SumsSource(None, config)(split) for split in ("train", "eval")}
    assert not set(rows["train"]["prompt"]) & set(rows["eval"]["prompt"])

    def complete(model: object, tokenizer: object, prompts: list[str], *, temperature: float) -> list[str]:
        assert prompts == rows["train"]["prompt"] and temperature == 1
        return [*rows["train"]["chosen"][:2], "[UNK] 1 2", *["1 2"] * 6]

    monkeypatch.setattr(project, "complete", complete)
    pairs = project.PairsSource(factory, config)("train")
    assert len(pairs) == 6 and set(pairs["rejected"]) == {"1 2"}
    for row in pairs:
        numbers = [int(word) for word in row["prompt"].removesuffix(" [SEP]").split()]
        assert row["chosen"] == " ".join(str(sum(numbers[: n + 1]) % 17) for n in range(4))
