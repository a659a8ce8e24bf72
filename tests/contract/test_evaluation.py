"""Every trainer ends a run with evaluations in the state of the same run without them."""

from pathlib import Path
from typing import Any

import pytest

from arctic_training.testing.runs import Metrics, build, final_state, first_difference
from tests.contract.cases import CASES, recipe

_EMA = {"type": "ema", "decay": 0.9, "evaluate": True}
MORE: dict[str, dict[str, Any]] = {
    "causal": {"callbacks": [_EMA]},
    "diffusion": {"callbacks": [_EMA]},
    "flow": {"eval_likelihood": True},
    "grpo": {"beta": 0.1},
    "sft": {"evaluators": [{"type": "generate", "max_new_tokens": 3, "temperature": 1, "save": False}]},
}
"""Settings with which an evaluation computes more."""


def run(name: str, folder: Path, *, evaluates: bool) -> tuple[dict[str, Any], Metrics]:
    """Trains three steps; with ``evaluates``, measures before the first and after each. Returns the final state, and
    what was logged and evaluated."""
    settings = {"train_iters": 3, "output_dir": str(folder / f"run_{evaluates}")}
    if evaluates:
        settings |= {"eval_interval": 1, "evaluate_first": True, "evaluate_last": True}
    own = recipe(name, folder / "files", **MORE.get(name, {}))
    own["data"]["eval_sources"] = own["data"]["sources"]
    trainer, metrics = build(own, [], settings), Metrics()
    try:
        metrics.listen(trainer)
        trainer.train()
        return final_state(trainer), metrics
    finally:
        trainer.close()


@pytest.mark.parametrize("name", CASES)
def test_it_leaves_no_trace(name: str, tmp_path: Path) -> None:
    """Weights, optimizer, random generators and what is logged of the steps are equal to the bit."""
    (expected, steps), (actual, both) = (run(name, tmp_path, evaluates=one) for one in (False, True))
    evaluations = [both.pop(key) for key in sorted(both) if key[0] == "evaluate"]
    assert len(evaluations) == 4 and all("loss/eval" in one for one in evaluations)
    assert len(steps) == 3
    assert (first_difference(expected, actual), first_difference(steps, both)) == ("", "")
