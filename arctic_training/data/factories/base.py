"""The base of data factories, which create the loaders of a run."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch.utils.data import default_collate

from arctic_training.callback.hooks import hook
from arctic_training.component import Factory
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.data import DataConfig
from arctic_training.data.batching.loader import Batch, IndexedLoader, Loader, without_targets
from arctic_training.data.batching.sampler import GlobalOrder
from arctic_training.data.formats.remarks import Remarks
from arctic_training.data.preparation.samples import Indices, Sample
from arctic_training.data.preview.rows import PreviewRow, batch_rows
from arctic_training.distributed import process_group
from arctic_training.distributed.sequence_parallel import shard_batch
from arctic_training.errors.types import DataError

C = TypeVar("C", bound=DataConfig)


@dataclass
class Loaders:
    """The loaders of a run."""

    train: Loader | None = None
    evaluation: Mapping[str, Loader] = field(default_factory=dict)
    """The loader of each evaluation set, by name; its metrics end with the name."""


class DataFactory(Factory[C, Loaders], kind="data_factory"):
    """Base of data factories. A subclass defines `load`, and `collate` where `default_collate` of torch is not enough.

    Samples of tokens, from files or the hub, belong to `SourcedDataFactory`.
    """

    config_type: ClassVar[type[ComponentConfig]] = DataConfig
    counts: ClassVar[str] = "rows"
    """The name, in the plural, of the terms that ``num_items_in_batch`` counts: the loss of a step is their mean."""
    sequences_per_row: ClassVar[int] = 1
    """Sequences of up to ``max_length`` tokens that the model computes for a row, by which memory is estimated."""
    row_counts: Mapping[str, Remarks] = {}
    """What was counted while the samples of each set were prepared, by the name of the set."""
    even_batches: ClassVar[bool] = False
    """Whether every micro-batch has ``micro_batch_size`` rows on every rank, for losses that gather rows of all ranks.
    Rows that only fill a batch are those of `make_padding_sample`, and have to be marked there; they count nothing."""
    passed_source: ClassVar[str] = ""
    """The type of the source that reads the rows which a Python program passes to a trainer; empty: it takes none."""
    row_level_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of a batch that count something of full rows: of the ranks that share sequences, only the first has them."""

    @classmethod
    def packs(cls, config: Any) -> bool:
        """Returns whether, by the factory's section, a row of a batch holds several samples, each a document that does
        not attend to the others. A class whose batches have other rows than those of its base overrides this."""
        return False

    def __call__(self) -> Loaders:
        train, evaluation = self.load("train"), self.load_evaluation()
        return Loaders(
            train=None if train is None else self.create_loader(train, train=True),
            evaluation={name: self.create_loader(data, train=False) for name, data in evaluation.items()},
        )

    @hook("load")
    @abstractmethod
    def load(self, split: str) -> Sized | None:
        """Returns the samples of ``split`` ("train" or "eval"), with ``len`` and by index; None when there are none.

        Raises `DataError`.
        """

    def load_evaluation(self) -> Mapping[str, Any]:
        """Returns the samples of each evaluation set, by name."""
        data = self.load("eval")
        return {} if data is None else {"eval": data}

    def collate(self, samples: list[Sample]) -> Batch:
        """Returns one micro-batch of ``samples``; runs in worker processes. See `data.batching.collate` for tokens."""
        return default_collate(samples)

    def batch(self, samples: list[Sample]) -> Batch:
        """Returns this rank's part of the micro-batch of ``samples``: all of it, or its share of the sequences."""
        batch, size = self.collate(samples), self.trainer.config.sequence_parallel_size
        return batch if size == 1 else shard_batch(batch, size, process_group.rank() % size, once=self.row_level_keys)

    def show(self, batch: Batch) -> list[PreviewRow]:
        """Returns the rows of a micro-batch for a person to look at: their texts, which tokens are targets, and other
        values. This knows the usual keys of a batch; a class whose batches have others overrides it."""
        return batch_rows(batch)

    def make_padding_sample(self, sample: Sample) -> Sample:
        """Returns ``sample`` without labels, for a batch of the last rows that has too few, or none."""
        return without_targets(sample)

    def group(self, samples: Any) -> Sequence[Indices] | None:
        """Returns the indices of the samples that are packed into each row; None: each sample is a row."""
        return None

    @property
    def rows(self) -> int:
        """Rows of the order in one micro-batch."""
        return self.trainer.config.micro_batch_size

    @hook("create_loader")
    def create_loader(self, samples: Any, *, train: bool) -> Loader:
        """Returns the loader of ``samples``. Raises `DataError` when they do not fill one global batch."""
        groups = self.group(samples)
        order = self.order(len(samples if groups is None else groups), train=train)
        return IndexedLoader(
            samples,
            order,
            self.batch,
            make_padding_sample=self.make_padding_sample,
            groups=groups,
            min_rows=self.rows if self.even_batches and groups is None else 1,
            workers=self.config.dl_num_workers,
        )

    def order(self, size: int, *, train: bool) -> GlobalOrder:
        """Returns the order of ``size`` rows. Raises `DataError` when they do not fill one global batch."""
        order = GlobalOrder(
            size=size,
            micro_batch_size=self.rows,
            rank=self.trainer.data_rank,
            world_size=self.trainer.data_world,
            seed=self.config.seed,
            shuffle=train,
            accumulation_steps=self.trainer.config.gradient_accumulation_steps,
            drop_last=self.config.drop_last and train,
            epoch_length=self.trainer.config.epoch_length if train else 0,
        )
        if not size or not len(order):
            rows = order.global_micro_batch_size * order.accumulation_steps
            why = f"; drop_last drops every global batch that is not full ({rows} rows)" if order.drop_last else ""
            raise DataError(f"{order.size} rows make no batch{why}")
        return order
