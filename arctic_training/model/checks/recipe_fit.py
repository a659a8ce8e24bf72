"""Compares what the recipe asks of a model with what the architecture in its config can do."""

from typing import TYPE_CHECKING

from arctic_training.errors.types import ModelError
from arctic_training.model import attention
from arctic_training.model.transforms.peft import PeftTransform

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_packing(config: "PreTrainedConfig", adapter: PeftTransform | None) -> None:
    """Compares packed rows with the layers of the model and its adapter.

    Raises `ModelError` where samples in one row could not be kept apart.
    """
    if not attention.supports_packing(config):
        raise ModelError(
            f"data.pack_samples: layers of {type(config).__name__} carry a state from token to token, so that "
            "samples in one row would see each other; give pack_samples: false"
        )
    if adapter is not None and adapter.adds_tokens:
        raise ModelError(
            f"data.pack_samples: {adapter.method} puts its tokens before a row, "
            "not before every sample in it; give pack_samples: false"
        )


def check_sequence_parallel(
    config: "PreTrainedConfig", implementation: str | None, size: int, adapter: PeftTransform | None
) -> None:
    """Compares sequence parallelism over ``size`` ranks with attention, heads and positions of the model.

    ``implementation`` is that of its attention. Raises `ModelError` where its numbers would be others than on one rank.
    """
    name, text = type(config).__name__, config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = {str(one.get("rope_type")) for one in [rope, *rope.values()] if isinstance(one, dict)}
    problem = ""
    if implementation != attention.NAME:
        problem = f"the attention of {name} is more than causal, or hidden from transformers; remove it"
    elif isinstance(heads, int) and heads % size:
        divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        problem = f"{size} processes cannot share the {heads} heads of {name}; these can: {divisors}"
    elif by_length := sorted(kinds & {"dynamic", "longrope"}):
        problem = f"the positions of {name} ({by_length[0]}) depend on the length of what a process sees; remove it"
    elif adapter is not None and adapter.adds_tokens:
        problem = f"{adapter.method} puts tokens before each part; remove it"
    if problem:
        raise ModelError(f"sequence_parallel_size: {problem}")


def check_compile(*, stage: int) -> None:
    """Compares compiled layers with the ZeRO ``stage``. Raises `ModelError` at stage 3."""
    if stage == 3:
        raise ModelError(
            "model.compile: compiled layers do not gather the weights that ZeRO stage 3 partitions; use stage 2"
        )
