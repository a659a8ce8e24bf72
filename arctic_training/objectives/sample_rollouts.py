"""Writes completions that a policy was trained on, with their rewards."""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from arctic_training.callback.hooks import Hooked
from arctic_training.callback.sampler import Sampler, SamplerConfig
from arctic_training.component import TrainerView
from arctic_training.config.sections.types import HumanInt
from arctic_training.errors.types import InputError
from arctic_training.objectives.rollout_batch import Rollout, split_inputs
from arctic_training.tracker.samples import TextSamples


class SampleRolloutsConfig(SamplerConfig):
    """Options of the callback `sample_rollouts`."""

    count: HumanInt = Field(default=32, ge=1)
    """Most completions to write of a step, those of its first prompts."""


class SampleRollouts(Sampler[SampleRolloutsConfig]):
    """Writes completions of the step with their rewards and advantages, for `grpo`, `reinforce` and `ppo`."""

    name = "sample_rollouts"
    _rollouts: Sequence[Rollout] = ()

    def attach(self, host: Hooked) -> None:
        """Listens to ``host``. Raises `InputError` for a trainer that generates no completions."""
        if "generate_rollouts" not in host.events():
            raise InputError("callbacks: sample_rollouts writes what grpo, reinforce and ppo generate; remove it")
        super().attach(host)
        host.listen("pre-generate_rollouts", self._forget)
        host.listen("post-generate_rollouts", self._keep)

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `InputError` where each rank has a part of every completion."""
        if trainer.config.sequence_parallel_size > 1:
            raise InputError("callbacks: sample_rollouts needs sequence_parallel_size: 1, where a rank has all tokens")

    def _forget(self, trainer: TrainerView) -> None:
        """Forgets the rollouts of the window before, so that two are never in memory."""
        self._rollouts = ()

    def _keep(self, trainer: TrainerView, rollouts: Sequence[Rollout]) -> None:
        self._rollouts = rollouts

    def sample(self, trainer: TrainerView) -> TextSamples:
        rows = [row for rollout in self._rollouts for row in _rows(rollout, trainer.tokenizer)]
        return TextSamples(rows[: self.config.count])


def _rows(rollout: Rollout, tokenizer: Any) -> Iterator[dict[str, str | float]]:
    """Yields prompt, completion and numbers of each completion that counts."""
    numbers = {"reward": rollout["rewards"], "advantage": rollout["advantages"]}
    numbers |= {name: value for name, value in rollout["metrics"].items() if name.startswith("reward/")}
    columns = {name: value.tolist() for name, value in numbers.items() if len(value) == len(rollout["lengths"])}
    pairs = split_inputs(rollout["inputs"])
    for n, (pair, weight) in enumerate(zip(pairs, rollout["weights"].tolist(), strict=True)):
        if weight:
            prompt, completion = (tokenizer.decode(ids, skip_special_tokens=False) for ids in pair)
            own = {name: column[n] for name, column in columns.items() if column[n] == column[n]}
            yield {"prompt": prompt, "completion": completion} | own
