"""Keys of a recipe for a policy that is compared with a frozen reference model."""

from typing import Annotated, Any

from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.trainer.role import Role


class ReferenceConfig(TrainerConfig):
    """Keys of the trainers that compare a policy with the `REFERENCE`."""

    reference_model_deepspeed: Annotated[dict[str, Any] | None, RESUME_SAFE] = None
    """Replaces ``deepspeed`` for the reference model; stage 3 shards it over the ranks."""
    disable_dropout: bool = True
    """Train without dropout, that of an adapter included; otherwise the policy differs from its reference, and from the
    model that generated the completions, before the first step."""

    @property
    def reference_not_needed(self) -> str:
        """Why this recipe needs no reference model; empty when it needs one."""
        return ""


REFERENCE = Role(
    "ref_model",
    frozen=True,
    default_to="model",
    same_vocabulary=True,
    not_needed_key="reference_not_needed",
    deepspeed="reference_model_deepspeed",
    description="The reference model.",
)
"""The role of the model that the policy is held to."""
