"""The metrics that a recipe shows before its data are prepared: all that evaluations measure, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from arctic_training import Evaluator, get_config
from arctic_training.cli.validate import validate
from arctic_training.errors.types import RecipeError
from arctic_training.launch.arguments import Arguments
from arctic_training.registry import lookup, names, stated
from arctic_training.trainer.assembly import build_evaluators
from arctic_training.trainer.expected_metrics import expected_metrics
from arctic_training.trainer.trainer import Trainer
from arctic_training.trainer.validation import unstarted
from tests.contract.cases import CASES, recipe

STATING = [
    name
    for name in names("trainer")
    if name in CASES and stated(lookup("trainer", name), "eval_metrics", "loss") is not None
]
OF_THE_RECIPE = [name for name in STATING if not isinstance(vars(lookup("trainer", name)).get("eval_metrics"), tuple)]
"""Trainers whose metrics depend on the recipe: all that is expected has to be measured."""
MORE = {"flow": {"eval_likelihood": True}, "grpo": {"beta": 0.1, "dynamic_sampling": 1}}
"""Settings with which a trainer measures more."""


BEST = {"best_metric": "f1/eval", "best_mode": "max"}


class Unknown(Evaluator):
    """Measures what only an evaluation shows."""

    name = "unknown_metrics_for_the_test"

    def __call__(self, trainer: Any) -> dict[str, float]:
        return {"score": 1.0}


@pytest.mark.parametrize("name", STATING)
def test_an_evaluation_measures_nothing_else(tmp_path: Path, name: str) -> None:
    own = recipe(name, tmp_path, output_dir=str(tmp_path / "run"), **MORE.get(name, {}))
    first = own["data"]["sources"]
    own["data"]["eval_sources"] = [*first, *first]  # two sets, the second of which is numbered
    trainer: Any = lookup("trainer", name)(get_config(own))  # type: ignore[call-arg]
    try:
        measured = trainer.evaluate()
    finally:
        trainer.close()
    expected = expected_metrics(trainer)
    assert expected is not None and expected.complete
    missing = set(expected.names) - measured.keys()
    assert measured.keys() <= set(expected.names) and not (missing and name in OF_THE_RECIPE)
    assert {one.rpartition("/")[0] for one in measured} >= {"loss"} and len(trainer.eval_loaders or measured) >= 2


def refused(folder: Path, **more: Any) -> str:
    """Returns why `validate` refuses a recipe that evaluates, or an empty text."""
    own = recipe("tensor_classifier", folder, eval_interval=1, **more)
    own["data"]["eval_sources"] = own["data"]["sources"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(own))
    try:
        validate(get_config(folder / "recipe.yaml"), Arguments())
    except RecipeError as error:
        return str(error)
    return ""


def follow(metric: str, mode: str = "max") -> dict[str, Any]:
    return {"callbacks": [{"type": "early_stopping", "monitor": metric, "mode": mode}]}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (follow("loss/evil"), "callbacks.early_stopping.monitor: no evaluation measures loss/evil; did you mean"),
        (follow("acuracy/eval"), "no evaluation measures acuracy/eval; did you mean 'accuracy/eval'?"),
        (follow("accuracy/eval"), ""),
        (
            {"checkpoint": {"type": "deepspeed", "save_every_n_steps": 1, "keep_last": 1, "keep_best": 1, **BEST}},
            "checkpoint.best_metric: no evaluation measures f1/eval; did you mean 'macro_f1/eval'?",
        ),
        ({**follow("score"), "evaluators": [Unknown.name]}, ""),
        ({**follow("loss/evil"), "evaluators": [Unknown.name]}, "no evaluation measures loss/evil"),
    ],
)
def test_validate_names_a_metric_that_there_is_not(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    text = refused(tmp_path, **more)
    assert message in text and bool(message) == bool(text)
    assert not text or "recipe.yaml:" in text


def test_a_loss_of_its_own_may_record_anything(tmp_path: Path) -> None:
    class Own(lookup("trainer", "tensor_classifier")):  # type: ignore[misc]
        name = "recording_loss_for_the_test"

        def loss(self, batch: Any) -> Any:
            self.record("more", 1.0)
            return super().loss(batch)

    own = recipe("tensor_classifier", tmp_path) | {"type": Own.name}
    expected = expected_metrics(unstarted(get_config(own)))
    assert issubclass(Own, Trainer) and expected is not None and not expected.complete


def test_the_scores_of_generated_texts_are_known(tmp_path: Path) -> None:
    scorers = ["exact_match", "exact_match", "numeric"]
    own = recipe("sft", tmp_path, evaluators=[{"type": "generate", "scorers": scorers}, "generate"])
    own["data"]["train_eval_split"] = [0.5, 0.5]
    config = get_config(own)
    trainer = unstarted(config)
    trainer.evaluators = build_evaluators(config.evaluators)
    expected = expected_metrics(trainer)
    assert expected is not None and expected.complete
    assert {"exact_match/eval", "exact_match#2/eval", "abstained/exact_match/eval"} <= set(expected.names)
