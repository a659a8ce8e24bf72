"""Data for reward models: two completions to each prompt, the first preferred, each a row."""

from typing import ClassVar

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.data.factories.dpo import DPODataConfig, DPODataFactory


class PreferenceDataConfig(DPODataConfig):
    """The data of the reward trainer."""

    pack_samples: bool = False
    """Always false with a model that computes one vector for a row."""


class PreferenceDataFactory(DPODataFactory):
    """Encodes the rows of `DPODataFactory`; each completion is a row of its own, which ends with its last label."""

    name = "preference"
    config_type: ClassVar[type[ComponentConfig]] = PreferenceDataConfig
    needs_prompt = False
