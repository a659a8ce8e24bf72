"""Reads the section `rewards` of a recipe."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny, WithJsonSchema

from arctic_training.config.checks.problems import Problem, Problems
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.component import COMPONENTS, each, parse_component
from arctic_training.registry import lookup, names, suggest
from arctic_training.reward.reward import RewardConfig, ScoreReward


def read_rewards(value: object) -> list[ComponentConfig]:
    """Returns the configs of ``rewards``: a name, a section, or a list of them. Raises `Problems`."""
    return each(value, _read_reward)


RewardSections = Annotated[
    list[SerializeAsAny[ComponentConfig]],
    BeforeValidator(read_rewards),
    WithJsonSchema({"type": "array", COMPONENTS: ["reward", "scored"]}),
]


def _read_reward(section: object) -> ComponentConfig:
    section = {"type": section} if isinstance(section, str) else section
    if isinstance(section, dict) and isinstance(name := section.get("type"), str) and name not in names("reward"):
        if name not in names("scorer"):
            known = suggest(name, sorted({*names("reward"), *names("scorer")}))
            raise Problems([Problem(("type",), f"no reward is named {name!r}; {known}")])
        section = _score_section(name, section)
    config = parse_component("reward", section)
    if not isinstance(config, RewardConfig):
        raise Problems([Problem(("type",), f"{config.type}: its config_type is not a RewardConfig")])
    return config


def _score_section(name: str, section: Mapping[str, object]) -> dict[str, object]:
    """Returns the section of the reward `score` for one that names a scorer."""
    scorer_config = getattr(lookup("scorer", name), "config_type")  # noqa: B009
    ambiguous = {*RewardConfig.model_fields} & {*scorer_config.model_fields} - {"type"}
    if twice := sorted(ambiguous & section.keys()):
        mend = f"write {{type: score, scorer: {{type: {name}, {twice[0]}: ...}}}}"
        raise Problems([Problem((twice[0],), f"{name} has a key of this name too; {mend}")])
    of_reward = {key: value for key, value in section.items() if key in RewardConfig.model_fields and key != "type"}
    of_scorer = {key: value for key, value in section.items() if key not in of_reward}
    return {"type": ScoreReward.name, "scorer": parse_component("scorer", of_scorer), **of_reward}
