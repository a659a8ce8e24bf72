"""Recipe keys of grpo: former names, and the reference that a recipe gets."""

from typing import Any

import pytest
from pydantic import ValidationError

from arctic_training import GRPOTrainer

MODEL = {"name_or_path": "some/model", "dtype": "fp32"}


def config(**keys: Any) -> Any:
    recipe = {"type": "grpo", "model": MODEL, "data": {"sources": ["rows.jsonl"]}, "rewards": "exact_match", **keys}
    return GRPOTrainer.config_type.model_validate(recipe)


def test_the_former_name_of_generation_batch_size_warns() -> None:
    with pytest.warns(FutureWarning, match="generate_together is now generation_batch_size"):
        assert config(generate_together=3).generation_batch_size == 3


def test_the_policy_is_the_reference_unless_beta_is_0() -> None:
    policy = config()
    assert policy.ref_model == policy.model and "ref_model" not in policy.model_fields_set
    assert config(**policy.dump()).dump() == policy.dump()
    assert config(beta=0).ref_model is None
    with pytest.raises(ValidationError, match="ref_model: beta is 0, so that nothing is compared with a reference"):
        config(beta=0, ref_model=MODEL)
