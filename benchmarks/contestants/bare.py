"""What the two bare loops share: the model, the optimizer, the loss, and batches that lie ready in memory.

They are the floor: no recipe, no data pipeline, no logging, no checkpoints. Attention and loss are the package's own,
and the batches are those that it made, so that nothing but the loop differs.
"""

from pathlib import Path
from typing import Any

import torch
from meter import Meter
from transformers import AutoModelForCausalLM

from arctic_training.loss.cross_entropy import linear_cross_entropy
from arctic_training.model.attention import NAME, add_packing_hooks, register

Batch = dict[str, Any]


def load_model(meter: Meter) -> "WithLoss":
    register()
    causal = AutoModelForCausalLM.from_pretrained(meter.folder / "model", dtype=torch.float32, attn_implementation=NAME)
    add_packing_hooks(causal.model)
    return WithLoss(causal).train()


def load_batches(meter: Meter) -> list[Batch]:
    batches: list[Batch] = torch.load(Path(meter.spec["batches"]))
    return batches


def make_optimizer(model: torch.nn.Module, task: dict[str, Any]) -> torch.optim.Optimizer:
    """Torch's fused AdamW, without decay on norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": task["weight_decay"]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=task["learning_rate"], betas=tuple(task["betas"]), fused=True)


class WithLoss(torch.nn.Module):
    """A causal model whose forward is the mean loss over a packed batch's targets, without other logits."""

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, labels: torch.Tensor, **inputs: Any) -> torch.Tensor:
        hidden = self.causal.model(**inputs, use_cache=False).last_hidden_state
        where = labels[0, 1:] != -100
        targets = labels[0, 1:][where]
        before = hidden[0].index_select(0, where.nonzero()[:, 0])
        return linear_cross_entropy(before, self.causal.lm_head.weight, targets, reduction="sum") / len(targets)
