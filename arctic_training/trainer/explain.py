"""Memory that is short, told with the batch it was short for, and what a person can change."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch

from arctic_training.config.checks.cross_field import shares_sequences
from arctic_training.distributed import process_group
from arctic_training.errors.types import MemoryShortError

_SHORT = ("can't allocate memory", "not enough memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_PARTS = {
    "answer": "the model's answers",
    "loss": "the forward pass",
    "backward": "the backward pass",
    "step": "the optimizer's step",
}


@contextmanager
def translate_oom_errors() -> Iterator[None]:
    """Raises `MemoryShortError` for what says the same less clearly."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error) for word in _SHORT):
            raise MemoryShortError(_memory(error)) from error
        raise


def _memory(error: BaseException) -> str:
    events = list(_events(error.__traceback__))
    hosts = (getattr(host, "trainer", host) for _, host, _ in events)
    trainer = next((host for host in hosts if hasattr(host, "progress")), None)
    part, batch = next(
        ((name, args[0] if args else None) for name, _, args in reversed(events) if name in _PARTS), ("", None)
    )
    if part in ("backward", "step") and trainer is not None:
        batch = next((args[0] for name, _, args in reversed(events) if name == "step" and args), None)
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not part:
        where = events[-1][0] if events else "the start"
        return f"memory is short in {where}: {cause}\n{_advice(trainer, '')}".rstrip()
    evaluates = any(name == "evaluate" for name, *_ in events)
    at = "an evaluation" if evaluates else f"update {trainer.progress.step + 1}" if trainer is not None else "the run"
    shapes = f"a micro-batch of {', '.join(_shapes(batch)) or 'a batch without tensors'}"
    if part == "answer" and batch is not None and trainer is not None:
        asked = sum(len(one["prompts"]) for one in batch)
        shapes = f"{asked} prompts with {trainer.config.num_generations} answers each"
    return f"memory is short in {_PARTS[part]} of {at}, on {shapes}: {cause}\n{_advice(trainer, part)}"


def _events(trace: TracebackType | None) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """The hooks that were running, outermost first: name, object, arguments."""
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "announced" and "event" in frame.f_locals:
            yield frame.f_locals["event"], frame.f_locals["self"], frame.f_locals["args"]
        trace = trace.tb_next


def _shapes(batch: Any, name: str = "") -> Iterator[str]:
    if isinstance(batch, torch.Tensor):
        yield f"{name} {list(batch.shape)}".strip()
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _shapes(value, str(key))
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _shapes(value, name)


def _advice(trainer: Any, part: str) -> str:
    """What takes less, the cheapest first."""
    config = getattr(trainer, "config", None)
    if config is None:
        return ""
    micro, steps = config.micro_batch_size, config.gradient_accumulation_steps
    told = []
    if part == "answer" and config.generate_together != 1 and steps > 1:
        told.append("generate_together: 1, the answers of a micro-batch at a time")
    if hasattr(config, "num_generations") and part != "step":
        told.append("a lower num_generations or max_new_tokens")
    if part in ("loss", "backward"):
        if micro > 1:
            told.append(f"micro_batch_size: {micro // 2} and gradient_accumulation_steps: {steps * 2}, the same update")
        if hasattr(config.model, "activation_checkpointing"):
            told.append("model.activation_checkpointing: true")
        if hasattr(config.data, "max_length"):
            told.append("a lower data.max_length")
        if shares_sequences(type(trainer)):
            shared = 2 * config.sequence_parallel_size
            told.append(f"sequence_parallel_size: {shared}, so many processes to a sequence")
    sharded = "deepspeed.zero_optimization.stage: 3" + " on more processes" * (process_group.world_size() == 1)
    told += [sharded, "deepspeed.zero_optimization.offload_optimizer: {device: cpu}"]
    return f"What takes less: {'; '.join(told)}"
