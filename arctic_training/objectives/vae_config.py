"""The keys of the trainer of variational autoencoders."""

from typing import Annotated

from pydantic import Field, model_validator

from arctic_training.config.sections.only_with import OnlyWith
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.loss.variational import KLAnnealing, Reconstruction

_RISES = OnlyWith("kl_annealing", "linear", "sigmoid", "cyclical")
_WARMUPS = ("kl_warmup_ratio", "kl_warmup_steps", "kl_warmup_epochs")


class VAEConfig(TrainerConfig):
    """Keys of the trainer `vae`."""

    beta: HumanFloat = Field(default=1.0, ge=0)
    """Weight of the divergence of the posterior from the prior in training; in evaluations it is 1."""
    kl_annealing: KLAnnealing = "none"
    """How the weight rises from 0 to ``beta``: none (it is ``beta`` from the first step), linear, sigmoid, or cyclical
    (four times along a line)."""
    kl_warmup_ratio: Annotated[HumanFloat, _RISES] = Field(default=0.5, ge=0, le=1)
    """Share of the run's steps after which the weight is ``beta``."""
    kl_warmup_steps: Annotated[HumanInt | None, _RISES] = Field(default=None, ge=0)
    """These steps as a number, instead of ``kl_warmup_ratio``."""
    kl_warmup_epochs: Annotated[HumanFloat | None, _RISES] = Field(default=None, ge=0)
    """These steps in epochs, instead of ``kl_warmup_ratio``."""
    free_bits: HumanFloat = Field(default=0.0, ge=0)
    """Nats of the mean divergence of each latent below which it is not lowered, so that the latent stays in use."""
    reconstruction: Reconstruction = "bernoulli"
    """The loss of a decoded row: bernoulli (of values from 0 to 1; the decoder computes logits), mse (squared
    differences) or mae (absolute differences), summed over the row."""
    importance_samples: HumanInt = Field(default=0, ge=0)
    """Draws of each row's latents by which evaluations compute the importance-weighted bound; 0: they do not."""

    @model_validator(mode="after")
    def _check_kl_warmup(self) -> "VAEConfig":
        # a default has no effect beside another length: `dump` writes all three
        defaults = {name: type(self).model_fields[name].default for name in _WARMUPS}
        stated = [name for name, default in defaults.items() if getattr(self, name) not in (None, default)]
        if len(stated) > 1:
            raise ValueError(f"{' and '.join(stated)} both set how long the weight rises; give one of them")
        return self

    def kl_warmup(self, horizon: int, per_epoch: int) -> int:
        """Returns the steps after which the weight is ``beta``, of a run of ``horizon``, ``per_epoch`` in an epoch."""
        if self.kl_warmup_steps is not None:
            return self.kl_warmup_steps
        if self.kl_warmup_epochs is not None:
            return round(self.kl_warmup_epochs * per_epoch)
        return int(self.kl_warmup_ratio * horizon)
