"""Base of the trainers that learn from preferences, and hold the policy to a frozen reference model."""

from abc import abstractmethod
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import model_validator
from torch import Tensor

from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.data.batching.loader import Batch
from arctic_training.engine.engine import Engine
from arctic_training.objectives.language_model import LanguageModelTrainer
from arctic_training.objectives.precomputed import add_precomputed_columns
from arctic_training.objectives.reference import Probe, check_reference_is_policy, probe
from arctic_training.objectives.reference_config import REFERENCE, ReferenceConfig
from arctic_training.trainer.role import Role


class PreferenceConfig(ReferenceConfig):
    """Keys of the trainers that learn from preferences."""

    precompute_ref_log_probs: Annotated[bool, RESUME_SAFE] = False
    """Compute the log-probabilities under the reference before training, once for each sample, and keep them in the
    data cache: no step runs the reference, and it is not in memory beside the policy."""

    @model_validator(mode="after")
    def _check_precomputing(self) -> "PreferenceConfig":
        if not self.precompute_ref_log_probs:
            return self
        if reason := self.reference_not_needed:
            raise ValueError(f"precompute_ref_log_probs: {reason}; remove it")
        if self.data.endless:
            raise ValueError("precompute_ref_log_probs: nothing can be computed for all samples of a stream; remove it")
        return self


class PreferenceTrainer(LanguageModelTrainer):
    """Trains a policy that is compared with a reference, whose log-probabilities may be computed once."""

    config: PreferenceConfig
    roles: ClassVar[tuple[Role, ...]] = (Role("model"), replace(REFERENCE, precompute_key="precompute_ref_log_probs"))
    reference_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of the recipe on which `reference_columns` depend."""
    _reference_probe: Probe | None = None

    def check(self) -> None:
        """Raises `InputError` for what its base refuses, and for a default reference that is not the policy."""
        super().check()
        is_default = not self.config.reference_not_needed and "ref_model" not in self.config.model_fields_set
        if is_default and self.has_weights:
            check_reference_is_policy(self, self._reference_probe)

    def precompute(self, role: str, engine: Engine) -> None:
        """Adds the log-probabilities under the reference to the samples. Raises `ModelError`."""
        self._reference_probe = probe(engine)
        section: Any = getattr(self.config, role)
        settings = section.model_dump(mode="json", exclude={"name_or_path"})
        settings |= {key: getattr(self.config, key) for key in self.reference_keys}
        add_precomputed_columns(self, engine, self.reference_columns, settings=settings)

    @abstractmethod
    def reference_columns(self, engine: Engine, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-probabilities of a batch under the reference, float32 ``[samples]`` in nats, by the key that
        they have in a batch afterwards."""
