"""REINFORCE: the log-probability of a completion is weighed by its reward, less a baseline."""

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from arctic_training.config.sections.types import HumanFloat
from arctic_training.loss.gae import discounted_returns
from arctic_training.loss.policy import Baseline, leave_one_out_means, segment_sums
from arctic_training.objectives.rollout import RolloutTrainer
from arctic_training.objectives.rollout_batch import Rollout, of_tokens
from arctic_training.objectives.rollout_config import Normalize, RolloutConfig


class ReinforceConfig(RolloutConfig):
    """Keys of the trainer `reinforce`."""

    gamma: HumanFloat | None = Field(default=None, gt=0, le=1)
    """Discount of a reward by the number of tokens until it: each token is trained on the rewards from it on. Left out,
    all tokens of a completion are trained on its whole reward."""
    baseline: Baseline = "leave_one_out"
    """What is subtracted from the rewards of a completion: ``leave_one_out``, the mean of the other completions of its
    prompt (RLOO); ``mean``, that of all completions of the window; or ``none``, nothing."""
    normalize_returns: bool = False
    """Subtract from what is left its mean over the window, and divide it by its standard deviation."""
    normalize: Normalize = "none"
    """What the losses of a completion's tokens are divided by: ``none``, nothing, which is the gradient of the expected
    reward; ``sequence``, ``token`` and ``constant`` as in `grpo`."""
    entropy_coefficient: HumanFloat = Field(default=0.01, ge=0)
    """Weight of the entropy of the policy at every token, which is subtracted from the token's loss."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Where the divergence from the reference counts, times ``beta``: added to the loss of every token, or subtracted
    from the rewards."""

    @model_validator(mode="after")
    def _check_baseline(self) -> "ReinforceConfig":
        if self.baseline == "leave_one_out" and self.num_generations < 2:
            raise ValueError(
                "baseline: leave_one_out compares the completions of a prompt; set num_generations above 1"
            )
        return self


class ReinforceTrainer(RolloutTrainer):
    """Trains on completions by their reward, less a baseline (REINFORCE, and RLOO by default).

    Williams 1992, "Simple statistical gradient-following algorithms", with the baseline of Kool et al. 2019; Ahmadian
    et al. 2024 (arXiv 2402.14740). Further steps on the same completions are clipped as in PPO.
    """

    name = "reinforce"
    config: ReinforceConfig
    shares_sequences = True
    tensor_parallel = True

    def advantages(self, rollout: Rollout) -> Tensor:
        """Returns the rewards of completions, or with ``gamma`` the returns of tokens, less their baseline: float64
        ``[completions]`` or float32 ``[tokens]``."""
        lengths, rewards = rollout["lengths"], rollout["rewards"]
        returns = of_completions = rewards
        if self.config.gamma is not None:
            returns = discounted_returns(rollout["token_rewards"], lengths, gamma=self.config.gamma)
            of_completions = (segment_sums(returns, lengths) / lengths).masked_fill(rewards.isnan(), float("nan"))
        if self.config.baseline == "mean":
            returns = returns - self.moments(of_completions, rollout)[0]
        elif self.config.baseline == "leave_one_out":
            others = leave_one_out_means(of_completions.reshape(-1, self.config.num_generations)).flatten()
            returns = returns - (others if self.config.gamma is None else of_tokens(others, rollout))
        if self.config.normalize_returns:
            mean, deviation = self.moments(returns, rollout)
            returns = (returns - mean) / (deviation + 1e-8)
        return returns
