"""A stand-in for a data factory's view of a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from arctic_training.config.sections.tokenizer import TokenizerConfig
from arctic_training.data.factories.base import DataFactory


def view(tokenizer: Any, *, rank: int = 0, world: int = 1, micro: int = 1, **config: Any) -> Any:
    """A `TrainerView`, as far as data go."""
    settings = SimpleNamespace(
        micro_batch_size=micro,
        gradient_accumulation_steps=1,
        sequence_parallel_size=1,
        train_iters=0,
        epoch_length=0,
        tokenizer=TokenizerConfig(type="huggingface"),
        model=SimpleNamespace(task="causal_lm"),
    )
    vars(settings).update(config)
    return SimpleNamespace(config=settings, tokenizer=tokenizer, data_rank=rank, data_world=world, run_dir=Path("."))


def make(factory: type[DataFactory[Any]], tokenizer: Any, section: dict[str, Any], **more: Any) -> Any:
    """A factory with its section read, in a run of that tokenizer."""
    config = factory.config_type.model_validate({"type": factory.name, "max_length": 512, **section})
    return factory(view(tokenizer, **more), config)
