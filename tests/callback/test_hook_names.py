"""Methods by the names that users of other trainers know: one for each moment of each event, heard as listeners are."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import Callback, TensorClassifierTrainer, get_config
from arctic_training.callback.hook_names import HOOK_NAMES, OTHER_METHODS
from arctic_training.errors.types import RegistryError, ScoringError
from arctic_training.trainer.trainer import Trainer
from tests.contract.cases import recipe
from tests.processes import ROOT

MOMENTS = {f"{when}-{event}" for event in Trainer.events() for when in ("pre", "post")}
HEARD: list[tuple[str, str]] = []


def test_the_names_are_those_of_the_events() -> None:
    assert sorted(HOOK_NAMES.values()) == sorted(MOMENTS)
    page = (ROOT / "docs" / "extending.md").read_text("utf-8")
    table = re.findall(r"^\| `(\w+)` \| .*? \| `([\w-]+)` \|", page, re.MULTILINE)
    assert dict(table) == HOOK_NAMES


def method(who: str, name: str) -> Callable[..., None]:
    def hear(*args: Any) -> None:
        HEARD.append((who, HOOK_NAMES.get(name, name.replace("_", "-", 1))))

    def metrics(*args: Any) -> Any:
        hear()
        return {}

    return metrics if name == "get_val_metrics" else hear


NAMED = {name: method("named", name) for name in HOOK_NAMES if name != "on_init_start"}
PLAIN = {moment.replace("-", "_", 1): method("plain", moment.replace("-", "_", 1)) for moment in MOMENTS - {"pre-init"}}
NamedCallback: Any = type("NamedCallback", (Callback,), {"name": "named_for_the_test", **NAMED})
PlainCallback: Any = type("PlainCallback", (Callback,), {"name": "plain_for_the_test", **PLAIN})


class HookedTrainer(TensorClassifierTrainer):
    """Its methods are listeners; a base class has one of them too."""

    name = "hooked_for_the_test"

    def on_train_start(self) -> None:
        HEARD.append(("base", "on_train_start"))

    def on_exception(self, error: BaseException) -> None:
        HEARD.append(("trainer", f"{type(error).__name__}: {self.session.lock is not None}"))


class Derived(HookedTrainer):
    name = "derived_for_the_test"

    def on_train_start(self) -> None:
        super().on_train_start()
        HEARD.append(("derived", "on_train_start"))

    def get_val_metrics(self, values: dict[str, float]) -> dict[str, float]:
        assert not torch.is_grad_enabled() and not self.model.module.training
        return {"half": values["loss/eval"] / 2}


def train(folder: Path, trainer: type[TensorClassifierTrainer], callbacks: list[str], **more: Any) -> Any:
    saved = {"type": "deepspeed", "auto_resume": True, "save_every_n_steps": 1}
    keys = {"eval_interval": 1, "train_iters": 2, "checkpoint": saved, "callbacks": callbacks, **more}
    config = recipe("tensor_classifier", folder / "files", output_dir=str(folder / "run"), **keys)
    config["data"]["eval_sources"] = config["data"]["sources"]
    run = trainer(get_config({**config, "type": trainer.name}))
    try:
        run.train()
    finally:
        run.close()
    return run


def test_a_callback_hears_the_same_by_both_names(tmp_path: Path) -> None:
    HEARD.clear()
    callbacks = ["plain_for_the_test", "named_for_the_test"]
    train(tmp_path, TensorClassifierTrainer, callbacks)
    train(tmp_path, TensorClassifierTrainer, callbacks, exit_iteration_this_run=1)  # resumes
    plain, named = ([moment for who, moment in HEARD if who == one] for one in ("plain", "named"))
    assert plain == named
    assert set(plain) == MOMENTS - {"pre-init", "pre-exception", "post-exception"}


def test_methods_of_a_trainer_are_overridden_like_methods(tmp_path: Path) -> None:
    HEARD.clear()
    train(tmp_path, Derived, [])
    assert HEARD == [("base", "on_train_start"), ("derived", "on_train_start")]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in records if "half" in record]
    assert len(evaluations) == 2
    assert all(record["half"] == record["loss/eval"] / 2 and "accuracy/eval" in record for record in evaluations)


class Failing(Callback):
    """Ends the run by an error, and fails to hear of it."""

    name = "failing_for_the_test"

    def on_train_batch_end(self, trainer: Any) -> None:
        raise OverflowError("mine")

    def on_exception(self, trainer: Any, error: BaseException) -> None:
        raise KeyError("another")


def test_an_error_is_heard_of_and_stays_the_same(tmp_path: Path) -> None:
    HEARD.clear()
    with pytest.raises(OverflowError, match="mine"):
        train(tmp_path, HookedTrainer, ["failing_for_the_test"])
    assert HEARD == [("base", "on_train_start"), ("trainer", "OverflowError: True")]
    assert train(tmp_path / "again", HookedTrainer, []).progress.step == 2


def test_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="nothing calls on_train_strat; did you mean 'on_train_start'"):
        type("Misspelt", (TensorClassifierTrainer,), {"on_train_strat": lambda self: None})
    type("Other", (TensorClassifierTrainer,), {"on_the_moon": lambda self: None})
    type("Wrong", (Callback,), {"name": "wrong_for_the_test", "on_the_moon": lambda self, trainer: None})
    with pytest.raises(RegistryError, match=r"Wrong: nothing calls on_the_moon; .*there are: on_init_start"):
        train(tmp_path, TensorClassifierTrainer, ["wrong_for_the_test"])


def test_metrics_are_numbers(tmp_path: Path) -> None:
    odd: Any = type("Odd", (TensorClassifierTrainer,), {"name": "odd_for_the_test", "get_val_metrics": lambda self: 3})
    with pytest.raises(ScoringError, match="get_val_metrics returned 3; expected a mapping from names to numbers"):
        train(tmp_path, odd, [])


@pytest.mark.parametrize("name", OTHER_METHODS)
def test_a_method_of_another_trainer_is_refused_unless_one_of_the_class_may_call_it(name: str) -> None:
    def nothing(self: object, *args: object) -> None:
        """A method that nobody calls."""

    with pytest.raises(RegistryError, match=rf"Foreign: nothing calls {name}; here it is (loss|finalize|the recipe's)"):
        type("Foreign", (TensorClassifierTrainer,), {name: nothing})
    type("Own", (TensorClassifierTrainer,), {name: nothing, "loss": nothing})
