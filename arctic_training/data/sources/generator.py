"""The source of generated problems."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field, SerializeAsAny, WithJsonSchema, field_validator

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.component import COMPONENTS, parse_component
from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.data.sources.base import DataSource
from arctic_training.data.sources.json_columns import to_dataset
from arctic_training.errors.types import DataError
from arctic_training.symbolic.generator import create_generator
from arctic_training.symbolic.instances import CHUNK, Counts, Instance, generate, select

if TYPE_CHECKING:
    from datasets import Dataset


class GeneratorSourceConfig(DataSourceConfig):
    """A source of generated problems."""

    task: Annotated[
        SerializeAsAny[ComponentConfig],
        BeforeValidator(lambda section: parse_component("generator", section)),
        WithJsonSchema({COMPONENTS: ["generator"]}),
    ]
    """The generator: its name, or a section with its keys."""
    count: HumanInt = Field(ge=1)
    """Problems, all different."""
    seed: int = Field(default=0, ge=0)
    """Seed of the problems. Instance i of a split is drawn by a hash of seed, split and i."""
    held_out: HumanFloat = Field(default=0.1, ge=0.001, le=0.9)
    """Share of all problems that are kept for evaluation: those of which a hash is below it, whatever the seed, so that
    no evaluation problem is trained on. All sources of a recipe have the same."""

    @property
    def display_name(self) -> str:
        return self.task.type

    @field_validator("split")
    @classmethod
    def _check_split(cls, split: str) -> str:
        if split and not split.isidentifier():
            raise ValueError(f"{split!r}: expected a name; count says how many problems there are")
        return split

    def check_beside(self, others: Sequence[DataSourceConfig]) -> None:
        """Raises ValueError for another source with another ``held_out``."""
        shares = {one.held_out for one in others if isinstance(one, GeneratorSourceConfig)}
        if len(shares) > 1:
            raise ValueError(
                f"held_out is {' and '.join(f'{one:g}' for one in sorted(shares))} in sources of one recipe, so that "
                "evaluation problems would be trained on; give all of them the same"
            )


class GeneratorSource(DataSource):
    """Problems and their answers that a generator makes, as rows with the columns ``problem`` and ``answer``."""

    name = "generator"
    config: GeneratorSourceConfig

    def __init__(self, data_factory: object, config: GeneratorSourceConfig) -> None:
        super().__init__(data_factory, config)
        self._generator = create_generator(config.task)

    def load(self, config: GeneratorSourceConfig, split: str) -> "Dataset":
        instances = self.instances(self.batches(split, measured=False), split, Counts())
        rows = ({"problem": one.problem, "answer": one.answer} for one in instances)
        return to_dataset(rows, getattr(self.data_factory, "cache_folder", None))

    @property
    def classes(self) -> list[type]:
        return [*super().classes, type(self._generator)]

    def fingerprint(self, split: str) -> str:
        """Returns what is generated: the problems follow from the section, the split and the code of `classes`."""
        return f"generated {self.config.split or split}"

    def generate(self, split: str, numbers: Iterable[int], *, measured: bool) -> list[Instance]:
        """Returns the instances ``numbers`` of a split, with the generator's measures if ``measured``.

        Raises `DataError`.
        """
        return generate(self._generator, self.config.seed, split, numbers, measured=measured)

    def batches(self, split: str, *, measured: bool) -> Iterator[list[Instance]]:
        """Yields the instances of a split in their order, without end."""
        for first in count(0, CHUNK):
            yield self.generate(split, range(first, first + CHUNK), measured=measured)

    def instances(self, batches: Iterable[Sequence[Instance]], split: str, counts: Counts) -> Iterator[Instance]:
        """Yields those of ``batches`` that the recipe asks for, and counts all. Raises `DataError` for too few."""
        config = self.config
        try:
            yield from select(batches, counts, split=split, count=config.count, held_out=config.held_out)
        except DataError as error:
            raise DataError(f"{self}: {error}") from error.__cause__
