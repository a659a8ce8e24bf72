"""Names of evaluation sets in metrics."""

import pytest

from arctic_training.data.factories.config import SourcedDataConfig, evaluation_names


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["held_out.jsonl"], ["eval"]),
        (["a/held_out.jsonl", "b/held_out.jsonl.gz"], ["held_out", "held_out#2"]),
        (["org/squad_v1.1", "org/squad_v2.0"], ["squad_v1.1", "squad_v2.0"]),
        (["org/Magpie-Llama-3.1-Pro", "rows.csv"], ["Magpie-Llama-3.1-Pro", "rows"]),
    ],
)
def test_names_are_those_of_files_and_data_sets(sources: list[str], names: list[str]) -> None:
    config = SourcedDataConfig.model_validate({"type": "sft", "sources": ["rows.jsonl"], "eval_sources": sources})
    assert evaluation_names(config.eval_sources) == names
