"""Builds what the recipe of a run says, without its weights: the tokenizer, and the model to fill with them."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import nn

from arctic_training.checkpoint.saved_model import SavedModel
from arctic_training.config.get_config import get_config
from arctic_training.config.sections.mesh import MeshConfig
from arctic_training.config.sections.model import DType, ModelConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.tokenization.closing_tokens import add_end_tokens
from arctic_training.display.libraries import without_progress_bars
from arctic_training.errors.types import InputError
from arctic_training.model.factory import ModelFactory
from arctic_training.registry import lookup
from arctic_training.trainer.assembly import build_component, build_factory
from arctic_training.trainer.bare import bare
from arctic_training.trainer.role import RoleView

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_run_recipe(saved: SavedModel, recipe: Path | None = None) -> TrainerConfig:
    """Returns ``recipe``, or by default that of the run folder.

    Raises `InputError` where there is none, and `RecipeError` for one that cannot be read any more.
    """
    path = recipe or saved.recipe
    if path is None:
        raise InputError(f"{saved.name}: a checkpoint of type deepspeed outside its run folder; give its --recipe")
    return get_config(path)


@dataclass(frozen=True)
class Blueprint:
    """The model of a run before it has weights."""

    trainer: Any
    """The trainer of the run, with no more than config and tokenizer."""
    factory: ModelFactory[Any]

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """The tokenizer of the run."""
        tokenizer: PreTrainedTokenizerBase | None = self.trainer.tokenizer
        return tokenizer

    def on_meta_device(self) -> nn.Module | None:
        """Returns the model with its adapter, if it has one, on the meta device; None where it cannot be built so."""
        model = self.factory.meta_model
        if model is not None:
            self._set_generation_config(model)
        return model

    def build(self) -> nn.Module:
        """Returns the model with its adapter, if it has one, and any values in its weights."""
        from transformers.initialization import no_init_weights

        with no_init_weights(), without_progress_bars():
            model = self.factory()
        self._set_generation_config(model)
        return model

    def export_files(self, model: nn.Module) -> dict[str, str]:
        """Returns the text of files, by name, that the exported ``model`` has beside weights, config and tokenizer."""
        self.trainer.engines = {"model": SimpleNamespace(module=model)}
        files: dict[str, str] = self.trainer.export_files()
        return files

    def _set_generation_config(self, model: nn.Module) -> None:
        """Sets how the model generates by the files from which the run took its weights, as far as they say it, and the
        end token of the chat template."""
        model = getattr(model, "get_base_model", lambda: model)()
        self._read_generation_config(model)
        arguments = getattr(self.trainer.config.data, "chat_template_kwargs", None)
        if arguments is not None:
            add_end_tokens(model, self.tokenizer, arguments)

    def _read_generation_config(self, model: nn.Module) -> None:
        from transformers import GenerationConfig

        source = getattr(self.factory, "pretrained", None)
        if source is None or not hasattr(model, "generation_config") or source.is_gguf:
            return
        with contextlib.suppress(OSError):  # where there are none
            config = GenerationConfig.from_pretrained(source.location)
            for name in ("pad_token_id", "decoder_start_token_id"):  # which follow from the tokenizer
                setattr(config, name, getattr(model.generation_config, name, None))
            model.generation_config = config


def blueprint(config: TrainerConfig, dtype: DType | None = None) -> Blueprint:
    """Returns the blueprint of the recipe ``config``, for one process, and weights in ``dtype`` or that of the recipe.

    Raises `ModelError`.
    """
    # what decides how the model is sharded, and not what it is
    changes: dict[str, object] = {"deepspeed": {}, "sequence_parallel_size": 1, "mesh": MeshConfig()}
    config = config.model_copy(update=changes | {"model": without_weights(config.model, dtype)})
    trainer_type: Any = lookup("trainer", config.type)
    trainer = bare(trainer_type, config)
    role = next(role for role in trainer_type.roles if role.name == "model")
    factory: ModelFactory[Any] = build_factory(RoleView(trainer, role), trainer.config.model, "model_factory_type")
    factory.check()
    trainer.tokenizer = build_component(trainer, "tokenizer")
    factory.check_tokenizer(trainer.tokenizer)
    return Blueprint(trainer, factory)


def without_weights(section: ModelConfig, dtype: DType | None = None) -> ModelConfig:
    """Returns the model section for a model that is filled with weights when it is built, to be used and not trained.

    ``dtype``: that of the section where it is left out.
    """
    changes = {"random_weights": True, "activation_checkpointing": False, "compile": False, "dtype": dtype}
    known = type(section).model_fields
    return section.model_copy(
        update={key: value for key, value in changes.items() if key in known and value is not None}
    )
