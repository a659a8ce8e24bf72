"""The same reward for every completion, to try a recipe."""

from collections.abc import Sequence

from arctic_training.config.sections.types import HumanFloat
from arctic_training.reward.reward import Completion, Reward, RewardConfig


class ConstantConfig(RewardConfig):
    """Keys of the reward `constant`."""

    value: HumanFloat = 1.0
    """The reward of every completion."""


class ConstantReward(Reward[ConstantConfig]):
    """``value`` for every completion. In `grpo` all advantages are then 0: only other terms of the loss are learned."""

    name = "constant"

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        return [self.config.value] * len(completions)
