"""The classifier of handwritten digits: better than a linear one."""

from pathlib import Path

import pytest

from arctic_training import get_config
from arctic_training.registry import lookup

RECIPE = Path(__file__).parents[2] / "projects" / "digits" / "recipe.yaml"


@pytest.mark.parametrize(("epochs", "bound"), [(10, 0.94), pytest.param(60, 0.98, marks=pytest.mark.nightly)])
def test_it_reads_what_is_held_out(epochs: int, bound: float, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    config = get_config(RECIPE, [f"epochs={epochs}", f"output_dir={tmp_path}", "loss_log_interval=0"])
    trainer = lookup("trainer", "tensor_classifier")(config)  # type: ignore[call-arg]
    trainer.train()  # type: ignore[attr-defined]
    metrics = trainer.evaluate()  # type: ignore[attr-defined]
    trainer.close()  # type: ignore[attr-defined]
    assert metrics["accuracy/eval"] >= bound
    assert metrics["macro_f1/eval"] >= bound
