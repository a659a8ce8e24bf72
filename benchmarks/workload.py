"""What every contestant is given: the numbers of the task, in one place."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelSize:
    """A Llama, made from its config with random weights."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = 8192

    @property
    def parameters(self) -> int:
        attention = 2 * self.hidden * self.hidden * (self.heads + self.kv_heads) // self.heads
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return 2 * self.vocabulary * self.hidden + self.layers * layer + self.hidden

    def llama(self, max_length: int) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": max_length,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        }


@dataclass(frozen=True)
class Task:
    """One training run: a model, a file of chats, and how long to train."""

    name: str
    model: ModelSize
    rows: int
    max_length: int
    steps: int
    warm_up: int
    """Updates at the start that are not timed."""
    median_tokens: float
    """Median length of a chat; the lengths are log-normal."""
    spread: float
    """Standard deviation of the logarithm of the lengths; 0: every chat fills `max_length`."""
    held_out_rows: int = 48
    seed: int = 42
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    ready: bool = False
    """Whether the samples lie in ours' cache before its clock starts, as the bare loops' batches do."""
    micro_batch_unpacked: int = field(default=8)
    """Rows of a batch where samples are not packed."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"parameters": self.model.parameters}


BIG = ModelSize(hidden=256, layers=6, heads=8, kv_heads=4, intermediate=704)
SMALL = ModelSize(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=160)

THROUGHPUT = Task("throughput", BIG, rows=4000, max_length=2048, steps=12, warm_up=2, median_tokens=150, spread=0.8)
"""The tokens per second, the packing, the preparation and the memory are read off this one."""

FIXED = Task(
    "fixed",
    SMALL,
    rows=128,
    max_length=256,
    steps=100,
    warm_up=20,
    median_tokens=256,
    spread=0,
    ready=True,
    micro_batch_unpacked=1,
)
"""Little to compute, so that what a step costs beside the model shows; and the time to the first step."""

QUICK = Task("throughput", SMALL, rows=60, max_length=256, steps=4, warm_up=1, median_tokens=60, spread=0.5)
"""Shows that everything works."""
