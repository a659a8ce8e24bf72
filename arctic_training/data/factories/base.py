"""Makes the loaders of a run. The base of every data factory, whatever its samples are."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch.utils.data import default_collate

from arctic_training.callback.hooks import hook
from arctic_training.component import Factory
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.data import DataConfig
from arctic_training.data.batching.loader import Batch, IndexedLoader, Loader, without_targets
from arctic_training.data.batching.sampler import GlobalOrder
from arctic_training.distributed import process_group
from arctic_training.distributed.sequence_parallel import shard_batch
from arctic_training.errors.types import DataError

C = TypeVar("C", bound=DataConfig)


@dataclass
class Loaders:
    """What a data factory makes."""

    train: Loader | None = None
    evaluation: Mapping[str, Loader] = field(default_factory=dict)
    """The loader of each evaluation set, by name; the name ends that of its metrics."""


class DataFactory(Factory[C, Loaders], kind="data_factory"):
    """A subclass writes `load`; and `collate` when its samples are neither tensors nor mappings, tuples of them.

    Samples that come from files or the hub, and want tokens made of them, belong to `SourcedDataFactory`.
    """

    config_type: ClassVar[type[ComponentConfig]] = DataConfig
    once: ClassVar[tuple[str, ...]] = ()
    """Keys of a batch that count something of whole rows: of processes that share them, the first one has it."""

    @classmethod
    def packs(cls, config: Any) -> bool:
        """Says by the factory's section whether a row of a batch holds several samples, each a document that does not
        see the others. Of a class whose batches have other rows than those of its base, this is another's answer."""
        return False

    def __call__(self, *args: Any) -> Loaders:
        train, evaluation = self.load("train"), self.load_evaluation()
        return Loaders(
            train=None if train is None else self.create_loader(train, train=True),
            evaluation={name: self.create_loader(data, train=False) for name, data in evaluation.items()},
        )

    @hook("load")
    @abstractmethod
    def load(self, split: str) -> Any:
        """The samples of ``split`` ("train" or "eval"), with ``len`` and by index; None when there are none."""

    def load_evaluation(self) -> Mapping[str, Any]:
        """The samples of each evaluation set, by name."""
        data = self.load("eval")
        return {} if data is None else {"eval": data}

    def collate(self, samples: list[Any]) -> Batch:
        """One micro-batch of ``samples``; runs in worker processes. See `data.batching.collate` for tokens."""
        return default_collate(samples)

    def batch(self, samples: list[Any]) -> Batch:
        """What this process computes of the micro-batch of ``samples``."""
        batch, size = self.collate(samples), self.trainer.config.sequence_parallel_size
        return batch if size == 1 else shard_batch(batch, size, process_group.rank() % size, once=self.once)

    def make_padding_sample(self, sample: Any) -> Any:
        """``sample`` without any target, for a rank that has no row of the last global batch."""
        return without_targets(sample)

    def group(self, samples: Any) -> Sequence[Any] | None:
        """The indices of the samples that are packed together into each row, when they are."""
        return None

    @property
    def rows(self) -> int:
        """Rows of the order in one micro-batch."""
        return self.trainer.config.micro_batch_size

    @hook("create_loader")
    def create_loader(self, samples: Any, *, train: bool) -> Loader:
        """Raises `DataError` when there is not a single global batch."""
        groups = self.group(samples)
        order = self.order(len(samples if groups is None else groups), train=train)
        return IndexedLoader(
            samples,
            order,
            self.batch,
            make_padding_sample=self.make_padding_sample,
            groups=groups,
            workers=self.config.dl_num_workers,
        )

    def order(self, size: int, *, train: bool) -> GlobalOrder:
        """The order of ``size`` rows. Raises `DataError` when they make not a single global batch."""
        order = GlobalOrder(
            size=size,
            micro=self.rows,
            rank=self.trainer.data_rank,
            world=self.trainer.data_world,
            seed=self.config.seed,
            shuffle=train,
            window=self.trainer.config.gradient_accumulation_steps,
            drop_last=self.config.drop_last and train,
        )
        if not len(order):
            rows = order.whole * order.window
            why = f"; drop_last leaves out every global batch that is not full ({rows} rows)" * order.drop_last
            raise DataError(f"{order.size} rows make no batch{why}")
        return order
