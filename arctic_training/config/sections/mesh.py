"""The ``mesh`` section: how the processes of a run divide rows and weights."""

from pydantic import Field

from arctic_training.config.sections.base import BaseConfig
from arctic_training.errors.types import RecipeError


class MeshConfig(BaseConfig):
    """Processes along each axis. Consecutive ranks are those of one model."""

    data: int | None = Field(default=None, ge=1)
    """Groups of processes that read different rows; by default as many as there are processes for."""
    model: int = Field(default=1, ge=1)
    """Processes that divide the weights of the layers among themselves (tensor parallelism) and read the same rows.
    The number of the model's heads must be a multiple of it; losses do not depend on it."""

    def check_processes(self, world: int, *, sequence_parallel_size: int = 1) -> None:
        """Raises `RecipeError` where ``world`` processes do not make up the mesh."""
        own = self.model * sequence_parallel_size
        if world % own:
            raise RecipeError(
                f"mesh.model: {self.model} processes share a model, and the run has {world}; "
                f"start a multiple of {own}, such as --num_gpus {own}"
            )
        if self.data is not None and self.data * own != world:
            factors = f"data {self.data} x model {self.model}"
            factors += f" x sequence_parallel_size {sequence_parallel_size}" if sequence_parallel_size > 1 else ""
            raise RecipeError(
                f"mesh.data: {factors} are {self.data * own} processes, and the run has {world}; "
                f"start {self.data * own}, such as --num_gpus {self.data * own}, or leave data out"
            )
