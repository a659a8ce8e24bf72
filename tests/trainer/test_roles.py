"""A model that takes part in a run beside the one that is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from arctic_training import SFTTrainer, TrainerConfig, get_config
from arctic_training.config.recipe.describe import descriptions
from arctic_training.errors.types import RecipeError, RegistryError
from arctic_training.registry import lookup
from arctic_training.trainer.role import Role
from tests import tiny


class Distill(SFTTrainer):
    """States its roles, and nothing of a config."""

    name = "distill_of_a_test"
    roles: ClassVar[tuple[Role, ...]] = (Role("model"), Role("teacher", frozen=True), Role("student"))

    def loss(self, batch: Any) -> torch.Tensor:
        rows = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            right = self.engines["teacher"](**rows).logits.softmax(-1)
        # the second model is trained by the same loss, and steps by itself
        wrong = [
            -(right * engine(**rows).logits.log_softmax(-1)).mean() for engine in (self.model, self.engines["student"])
        ]
        self.engines["student"].set_gradient_accumulation_boundary(self.window.is_last_micro_batch)
        self.engines["student"].backward(wrong[1])
        self.engines["student"].step()
        return wrong[0]


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    teacher = tiny.save_model(tmp_path / "teacher", seed=1)
    return {
        "type": "distill_of_a_test",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "teacher": {"name_or_path": str(teacher), "dtype": "fp32"},
        "student": {"name_or_path": str(tiny_model), "dtype": "fp32", "random_weights": True},
        "student_optimizer": {"type": "adamw", "lr": 0.25},
        "data": {"sources": [str(tiny.save_chats(tmp_path / "chats.jsonl", 4))], "max_length": 400},
        "output_dir": str(tmp_path / "run"),
        "train_iters": 2,
    }


def test_a_role_brings_the_sections_that_its_recipe_has(recipe: dict[str, Any]) -> None:
    config: Any = get_config(recipe)
    assert get_config(config.dump()).dump() == config.dump()
    assert (config.teacher.type, config.student_optimizer.learning_rate) == ("huggingface", 0.25)
    assert not hasattr(config, "teacher_optimizer") and "teacher" not in SFTTrainer.config_type.model_fields
    assert {"teacher", "student", "student_optimizer", "student_scheduler", "model"} <= descriptions(
        type(config)
    ).keys()
    trainer: Any = Distill(config)
    frozen = {name: weight.clone() for name, weight in trainer.engines["teacher"].module.state_dict().items()}
    moving = trainer.engines["student"].module.lm_head.weight.detach().clone()
    trainer.train()
    assert all(torch.equal(frozen[name], one) for name, one in trainer.engines["teacher"].module.state_dict().items())
    assert not torch.equal(moving, trainer.engines["student"].module.lm_head.weight)
    assert set(trainer.trainable_engines) == {"model", "student"}
    trainer.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda recipe: recipe.pop("teacher"), "teacher.name_or_path: Field required"),
        (lambda recipe: recipe["teacher"].update(name_or_pat="m"), "teacher.name_or_pat: unknown; did you mean"),
        (lambda recipe: recipe.update(teacher_optimizer={}), "teacher_optimizer: unknown"),
        (lambda recipe: recipe["student_optimizer"].update(type="adamm"), "student_optimizer.type: 'adamm'"),
    ],
)
def test_its_sections_are_checked_as_any(
    recipe: dict[str, Any], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    change(recipe)
    with pytest.raises(RecipeError, match=message):
        get_config(recipe)


class PlainConfig(TrainerConfig):
    teacher: dict[str, Any] = {}


class Plain(SFTTrainer):
    name = "plain_section_of_a_test"
    config_type = PlainConfig
    roles: ClassVar[tuple[Role, ...]] = (Role("model"), Role("teacher", frozen=True))


class Taken(SFTTrainer):
    name = "taken_section_of_a_test"
    roles: ClassVar[tuple[Role, ...]] = (Role("model"), Role("data"))


class Twofold(SFTTrainer):
    name = "section_of_two_roles_of_a_test"
    roles: ClassVar[tuple[Role, ...]] = (Role("model"), Role("a"), Role("a_optimizer"))


class Paced(SFTTrainer):
    name = "paced_role_of_a_test"
    roles: ClassVar[tuple[Role, ...]] = (Role("model", steps_per_update_key="turns"),)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (Plain, "has a role teacher, and its config does not read teacher as a section for the model; remove it there"),
        (Taken, "has a role data, and its config does not read data as a section for the model; give the role"),
        (
            Twofold,
            "has a role a, and its config does not read a_optimizer as a section for the optimizer; give the role "
            "another name",
        ),
        (Paced, "has a role model that is given turns, and its config has no such key"),
    ],
)
def test_a_role_that_its_config_does_not_fit_is_refused(
    recipe: dict[str, Any], trainer: type[SFTTrainer], message: str
) -> None:
    assert lookup("trainer", trainer.name) is trainer
    with pytest.raises(RecipeError, match=message):
        get_config({**recipe, "type": trainer.name})


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (Role("model"), "expected a tuple of Role, such as"),
        (("model", "teacher"), "expected a tuple of Role, such as"),
        ((Role("teacher", frozen=True),), "roles: teacher; Role.*model.*, which the loop trains, is missing"),
        ((Role("model"), Role("other"), Role("other", frozen=True)), "roles: other occurs twice"),
        ((Role("model"), Role("_other")), "roles: '_other' cannot be a section of a recipe"),
    ],
)
def test_roles_that_cannot_be_are_refused_where_the_class_is_written(roles: Any, message: str) -> None:
    with pytest.raises(RegistryError, match=f"^Wrong: {message}" if message.startswith("roles") else message):
        type("Wrong", (SFTTrainer,), {"roles": roles})
