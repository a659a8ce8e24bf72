"""Names and modules of ArcticTraining 0.8 lead to what they are here, and say so."""

from abc import ABC
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

import arctic_training
from arctic_training.callback.hooks import Hooked, hook
from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointEngine
from arctic_training.compatibility.names import GONE, MODULES, ROOT
from arctic_training.config.sections.model import ModelConfig
from arctic_training.errors.types import RegistryError
from arctic_training.model.factory import NetworkFactory
from arctic_training.registry import lookup, names

EVERY = [(module, name) for module, names in MODULES.items() for name in names] + [("", name) for name in ROOT]


@pytest.mark.parametrize(("module", "name"), EVERY)
def test_a_former_name_is_found_and_says_where_it_is(module: str, name: str) -> None:
    home: Any = import_module(f"arctic_training.{module}") if module else arctic_training
    path = MODULES[module][name] if module else ROOT[name]
    with pytest.warns(FutureWarning, match=rf"{name} is arctic_training\.{path} here") as warned:
        value = getattr(home, name)
    assert value is getattr(import_module(f"arctic_training.{path.rpartition('.')[0]}"), path.rpartition(".")[2])
    assert warned[0].filename == __file__


def test_former_modules_are_imported_as_any_other() -> None:
    with pytest.warns(FutureWarning):
        from arctic_training.callback.mixin import CallbackMixin, callback_wrapper
    with pytest.warns(FutureWarning):
        from arctic_training.checkpoint.ds_engine import DSCheckpointEngine
    assert (CallbackMixin, callback_wrapper, DSCheckpointEngine) == (Hooked, hook, DeepSpeedCheckpointEngine)
    with pytest.raises(ModuleNotFoundError, match=r"arctic_training\.checkpoint\.other"):
        import_module("arctic_training.checkpoint.other")
    with pytest.raises(ImportError, match="cannot import name 'Other'"):
        exec("from arctic_training.checkpoint.ds_engine import Other")


@pytest.mark.parametrize("name", GONE)
def test_what_no_class_stands_for_is_refused_by_name(name: str) -> None:
    callbacks = {f"{lookup('callback', one).__name__}Config": one for one in names("callback")}
    what = f"is the callback {callbacks[name]}" if name in callbacks else "has no counterpart"
    home, _, own_name = f"arctic_training.{name}".rpartition(".")
    with pytest.raises(ImportError, match=rf"arctic_training\.{name} {what} here.*: see docs/") as error:
        exec(f"from {home} import {own_name}")
    assert (Path(__file__).parents[2] / str(error.value).rpartition(" ")[2]).is_file()
    assert not hasattr(arctic_training, "Nothing")


@pytest.mark.parametrize("name", ["testing_utils", "utils"])
def test_a_module_that_is_gone_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"arctic_training.{name} has no counterpart here"):
        exec(f"from arctic_training.{name} import read_json_file")


def test_the_decorator_changes_nothing() -> None:
    with pytest.warns(FutureWarning):
        from arctic_training import register

    class One:
        pass

    assert register(One) is One and register()(One) is One and register(force=True)(One) is One


def test_the_sections_of_models_and_tokenizers_have_a_name() -> None:
    with pytest.warns(FutureWarning):
        from arctic_training.config.model import ModelConfig
    with pytest.warns(FutureWarning):
        from arctic_training.config.tokenizer import TokenizerConfig
    model = ModelConfig(type="huggingface", name_or_path="some/model", dtype=torch.float16)
    tokenizer = TokenizerConfig(type="huggingface", name_or_path="some/model")
    assert (model.name_or_path, model.dtype, tokenizer.name_or_path) == ("some/model", "fp16", "some/model")


def test_what_moves_a_batch_leaves_out_what_batches_did_not_have() -> None:
    with pytest.warns(FutureWarning):
        from arctic_training.trainer.sft_trainer import to_device
    batch = {"input_ids": torch.ones(2, 3), "sequence_share": object(), "num_items_in_batch": 4.0}
    moved = to_device(batch, torch.device("cpu"))
    assert moved.keys() == {"input_ids", "sequence_share"} and torch.equal(moved["input_ids"], batch["input_ids"])
    assert "num_items_in_batch" in batch


def test_numbers_have_a_sign_before_a_power() -> None:
    with pytest.warns(FutureWarning):
        from arctic_training.config.utils import HumanFloat
    with pytest.warns(FutureWarning):
        from arctic_training.config.utils import HumanInt
    assert TypeAdapter(HumanInt).validate_python("-10^6") == -(10**6)
    assert TypeAdapter(HumanFloat).validate_python("-10.1^3") == -(10.1**3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_functions_of_the_registry_find_the_classes_of_this_package() -> None:
    from arctic_training.objectives.sft import SFTTrainer
    from arctic_training.optimizer.torch_factories import AdamWFactory

    registry: Any = import_module("arctic_training.registry")
    assert registry.get_registered_trainer("sft") is SFTTrainer
    assert registry.get_registered_optimizer_factory(name="adamw") is AdamWFactory
    assert registry.get_registered_class(class_type="CheckpointEngine", name="deepspeed") is DeepSpeedCheckpointEngine
    with pytest.raises(RegistryError, match="no data source is named 'hugingface'; did you mean 'huggingface'"):
        registry.get_registered_data_source("hugingface")
    with pytest.raises(RegistryError, match="no class with a registry is named 'Trainr'; did you mean 'Trainer'"):
        registry.get_registered_class("Trainr", "sft")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_metaclass_of_the_registry_registers_classes_of_others() -> None:
    registry: Any = import_module("arctic_training.registry")
    checked: list[str] = []

    class Verifier(ABC, metaclass=registry.RegistryMeta):
        @classmethod
        def _validate_subclass(cls) -> None:
            checked.append(cls.__name__)

    class Sql(Verifier):
        name = "sql"

    assert registry.get_registered_class("Verifier", "sql") is Sql and checked == ["Sql"]
    with pytest.raises(RegistryError, match="no Verifier is named 'sqll'; did you mean 'sql'"):
        registry.get_registered_class("Verifier", "sqll")
    with pytest.raises(RegistryError, match="has no name"):
        type(Verifier)("Nameless", (Verifier,), {})
    with pytest.raises(RegistryError, match=r"the name 'sql' of .*Other is taken by .*Sql"):
        type(Verifier)("Other", (Verifier,), {"name": "sql", "__qualname__": "Other"})

    class Own(arctic_training.SFTTrainer, metaclass=registry.RegistryMeta):  # as its users may write it
        pass

    assert issubclass(Own, arctic_training.SFTTrainer)


def test_a_factory_may_define_a_method_by_its_former_name() -> None:
    with pytest.warns(FutureWarning, match=r"Own\.skeleton is create_meta_model here") as warned:

        class Own(NetworkFactory[ModelConfig]):
            def create_model(self, config: object) -> torch.nn.Module:
                return torch.nn.Linear(2, 3)

            def skeleton(self) -> torch.nn.Module:
                return torch.nn.Sequential(super().skeleton())  # type: ignore[misc]

    assert warned[0].filename == __file__
    model = Own(None, ModelConfig()).create_meta_model()
    assert [one.device.type for one in model.parameters()] == ["meta", "meta"] and type(model[0]) is torch.nn.Linear
