"""A validator of `TrainerConfig` sees the fields above its own only: the order of the fields is part of its meaning."""

import ast
import inspect
from collections.abc import Iterator

import pytest

from arctic_training.config.sections import cross_field
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.registry import lookup, names


def validators() -> Iterator[tuple[list[str], set[str]]]:
    """Yields the fields of every validator, and the other fields that it reads."""
    for node in ast.walk(ast.parse(inspect.getsource(cross_field))):
        if not isinstance(node, ast.FunctionDef):
            continue
        calls = [one for one in node.decorator_list if isinstance(one, ast.Call)]
        checked = [arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)]
        texts = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)} - set(checked)
        if checked and "info.data" in ast.unparse(node):
            yield [str(one) for one in checked], {one for one in texts if one in TrainerConfig.model_fields}


@pytest.mark.parametrize("trainer", names("trainer"))
def test_a_validator_reads_fields_above_its_own_only(trainer: str) -> None:
    fields = list(lookup("trainer", trainer).config_type.model_fields)  # type: ignore[attr-defined]
    pairs = [(one, other) for checked, read in validators() for one in checked for other in read]
    assert len(pairs) > 15
    assert [(one, other) for one, other in pairs if fields.index(other) > fields.index(one)] == []
    assert fields[0] == "type"
