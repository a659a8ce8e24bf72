"""Out-of-memory errors: adds the event, the batch and settings that use less memory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from arctic_training.callback.hooks import events_of
from arctic_training.config.sections.cross_field import shares_sequences
from arctic_training.distributed import process_group
from arctic_training.errors.types import MemoryShortError

_SHORT = ("can't allocate memory", "not enough memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_PARTS = {
    "generate_rollouts": "generation",
    "loss": "the forward pass",
    "backward": "the backward pass",
    "step": "the optimizer's step",
}


@contextmanager
def translate_oom_errors() -> Iterator[None]:
    """Raises `MemoryShortError` in place of an out-of-memory error of Python, torch or CUDA."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error) for word in _SHORT):
            raise MemoryShortError(_memory(error)) from error
        raise


def _memory(error: BaseException) -> str:
    events = events_of(error)
    hosts = (getattr(host, "trainer", host) for _, host, _ in events)
    trainer: Any = next((host for host in hosts if hasattr(host, "progress")), None)
    part, batch = next(
        ((name, args[0] if args else None) for name, _, args in reversed(events) if name in _PARTS), ("", None)
    )
    if part in ("backward", "step") and trainer is not None:
        batch = next((args[0] for name, _, args in reversed(events) if name == "step" and args), None)
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not part:
        where = events[-1][0] if events else "the start"
        return f"out of memory in {where}: {cause}\n{_advice(trainer, '')}".rstrip()
    evaluates = any(name == "evaluate" for name, *_ in events)
    at = "an evaluation" if evaluates else f"step {trainer.progress.step + 1}" if trainer is not None else "the run"
    shapes = f"a micro-batch of {', '.join(_shapes(batch)) or 'a batch without tensors'}"
    if part == "generate_rollouts" and batch is not None and trainer is not None:
        count = sum(len(one["prompts"]) for one in batch)
        shapes = f"{count} prompts with {trainer.config.num_generations} completions each"
    return f"out of memory in {_PARTS[part]} of {at}, on {shapes}: {cause}\n{_advice(trainer, part)}"


def _shapes(batch: object, name: str = "") -> Iterator[str]:
    if isinstance(batch, torch.Tensor):
        yield f"{name} {list(batch.shape)}".strip()
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _shapes(value, str(key))
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _shapes(value, name)


def _advice(trainer: Any, part: str) -> str:
    """Returns settings that use less memory, the cheapest first."""
    config = getattr(trainer, "config", None)
    if config is None:
        return ""
    micro, steps = config.micro_batch_size, config.gradient_accumulation_steps
    advice = []
    if part == "generate_rollouts" and config.generation_batch_size != 1 and steps > 1:
        advice.append("generation_batch_size: 1, the completions of a micro-batch at a time")
    if hasattr(config, "num_generations") and part != "step":
        advice.append("a lower num_generations or max_new_tokens")
    if part in ("loss", "backward"):
        if micro > 1:
            advice.append(f"micro_batch_size: {micro // 2} and gradient_accumulation_steps: {steps * 2}, the same step")
        if hasattr(config.model, "activation_checkpointing"):
            advice.append("model.activation_checkpointing: true")
            advice.append("for long rows tiled_mlp_compute: true and activation_checkpoint_cpu_offload: true")
        if hasattr(config.data, "max_length"):
            advice.append("a lower data.max_length")
        if shares_sequences(type(trainer)):
            shared = 2 * config.sequence_parallel_size
            advice.append(f"sequence_parallel_size: {shared}, as many processes for a sequence")
    sharded = "deepspeed.zero_optimization.stage: 3" + (" on more processes" if process_group.world_size() == 1 else "")
    advice += [sharded, "deepspeed.zero_optimization.offload_optimizer: {device: cpu}"]
    return f"To use less memory: {'; '.join(advice)}"
