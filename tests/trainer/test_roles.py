"""A model that takes part in a run beside the one that is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from arctic_training import SFTTrainer, TrainerConfig, get_config
from arctic_training.config.recipe.describe import descriptions
from arctic_training.errors.types import ModelError, RecipeError, RegistryError
from arctic_training.registry import lookup
from arctic_training.trainer.role import Role
from tests import tiny


class Distill(SFTTrainer):
    """States its roles, and nothing of a config."""

    name = "distill_of_a_test"
    roles: ClassVar[tuple[Role, ...]] = (Role("model"), Role("teacher", frozen=True), Role("student"))

    def step(self, batch: Any) -> None:
        super().step(batch)
        self.update("student", self.cross_entropy("student", batch))  # by the same loss

    def loss(self, batch: Any) -> torch.Tensor:
        return self.cross_entropy("model", batch)

    def cross_entropy(self, role: str, batch: Any) -> torch.Tensor:
        with torch.no_grad():
            targets = self.engines["teacher"](**self.inputs(batch)).logits.softmax(-1)
        log_probs = self.engines[role](**self.inputs(batch)).logits.log_softmax(-1)
        return -(targets * log_probs).mean()


class DistillAlike(Distill):
    name = "distill_alike_of_a_test"
    roles: ClassVar[tuple[Role, ...]] = (
        Role("model"),
        Role("teacher", frozen=True, default_to="model", same_vocabulary=True),
        Role("student"),
    )


class Valued(SFTTrainer):
    """A trained model beside the policy, with another head on the same body."""

    name = "valued_of_a_test"
    roles: ClassVar[tuple[Role, ...]] = (
        Role("model"),
        Role("critic", default_to="model", tasks=("token_classification",), num_labels=1),
    )


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


def test_models_of_other_vocabularies_are_refused_where_they_must_agree(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["teacher"]["name_or_path"] = str(tiny.save_model(tmp_path / "large", vocab_size=384))
    trainer = Distill(get_config(recipe))  # this trainer does not say so
    assert trainer.engines["teacher"].module.get_input_embeddings().weight.shape[0] == 384  # type: ignore[operator]
    trainer.close()
    expected = r"teacher.name_or_path: its vocabulary has 384 tokens, and that of model has 320"
    with pytest.raises(ModelError, match=expected):
        DistillAlike(get_config({**recipe, "type": DistillAlike.name}))


def test_a_role_that_is_left_out_is_the_one_that_it_defaults_to(recipe: dict[str, Any]) -> None:
    del recipe["teacher"]
    config: Any = get_config({**recipe, "type": DistillAlike.name})
    assert config.teacher == config.model and "teacher" not in config.model_fields_set
    assert get_config(config.dump()).dump() == config.dump()
    named: Any = get_config({**recipe, "type": DistillAlike.name, "teacher": {"random_weights": True}})
    assert (named.teacher.name_or_path, named.teacher.dtype) == (config.model.name_or_path, "fp32")
    trainer = DistillAlike(config)
    pairs = zip(trainer.model.module.parameters(), trainer.engines["teacher"].module.parameters(), strict=True)
    assert all(torch.equal(own, other) for own, other in pairs)
    trainer.close()
    adapted = recipe | {"model": recipe["model"] | {"peft_config": {"peft_type": "LORA"}}}
    assert get_config({**adapted, "type": DistillAlike.name}).teacher is None  # type: ignore[attr-defined]


def test_a_role_of_another_task_defaults_to_the_body_of_the_other(recipe: dict[str, Any]) -> None:
    recipe = {key: value for key, value in recipe.items() if key not in ("teacher", "student", "student_optimizer")}
    recipe["type"] = "valued_of_a_test"
    config: Any = get_config(recipe)
    assert (config.model.task, config.model.num_labels) == ("causal_lm", None)
    assert (config.critic.task, config.critic.num_labels) == ("token_classification", 1)
    assert config.critic.name_or_path == config.model.name_or_path
    with pytest.raises(
        ModelError, match=r"critic\.name_or_path: .* score\.\w+ is missing.* give critic\.new_weights: "
    ):
        Valued(config)
    trainer = Valued(get_config({**recipe, "critic": {"new_weights": ["score"]}}))
    classes = {role: type(engine.module).__name__ for role, engine in trainer.engines.items()}
    assert classes == {"model": "LlamaForCausalLM", "critic": "LlamaForTokenClassification"}
    trainer.close()
    with pytest.raises(RecipeError, match=r"critic\.task: causal_lm, and the trainer takes token_classification here"):
        get_config({**recipe, "critic": {"task": "causal_lm"}})


def test_a_loss_of_a_role_that_is_not_trained_is_refused(recipe: dict[str, Any]) -> None:
    trainer = Distill(get_config(recipe))
    with pytest.raises(ValueError, match=r"'teacher' is not a trained role; there are: model, student"):
        trainer.update("teacher", torch.zeros(()))
    trainer.close()


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
    recipe: dict[str, Any], change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    change(recipe)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match=message):
        get_config(file)


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
        ((Role("model"), Role("a", default_to="b")), "roles: a defaults to 'b', which is no role before it"),
    ],
)
def test_roles_that_cannot_be_are_refused_where_the_class_is_written(roles: Any, message: str) -> None:
    with pytest.raises(RegistryError, match=f"^Wrong: {message}" if message.startswith("roles") else message):
        type("Wrong", (SFTTrainer,), {"roles": roles})
