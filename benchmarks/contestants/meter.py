"""What every contestant measures with: the process's own CPU clock, and the same look at its batches and its model.

A contestant is started as `python CONTESTANT.py SPEC_JSON` in a process of its own, so that its clock and its memory
are nobody else's. Times are CPU seconds, user and system, of all threads, counted from the start of the process.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Meter:
    def __init__(self) -> None:
        self.spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
        self.task: dict[str, Any] = self.spec["task"]
        self.folder = Path(self.spec["folder"])
        self.prepared = 0.0
        self.after: list[float] = []
        self.losses: list[Any] = []
        self.seen: list[tuple[Any, Any]] = []
        self.fill: float | None = None
        self.tokens: list[int] = []
        """Tokens of each batch; counted at the end where the batches are kept."""

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Around all that turns a file of chats into samples: it is no part of the time to the first step."""
        before = time.process_time()
        yield
        self.prepared += time.process_time() - before

    def batch(self, input_ids: Any, labels: Any) -> None:
        """Keep what a step was given; it is looked at when the clock has stopped."""
        self.seen.append((input_ids, labels))

    def update(self, loss: Any = None) -> None:
        """An optimizer step is done."""
        self.after.append(time.process_time())
        if loss is not None:
            self.losses.append(loss.detach() if hasattr(loss, "detach") else loss)

    def finish(self, model: Any) -> None:
        """Write the result. `model` is a transformers model, or None where another process scores it."""
        peak = _peak_mb()
        tokens, slots, targets, wrong = self.tokens, 0, 0, 0
        for input_ids, labels in self.seen:
            ids = input_ids.tolist()
            tokens.append(sum(token != self.task["pad_id"] for row in ids for token in row))
            slots += input_ids.numel()
            for row, marked in zip(ids, labels.tolist(), strict=True):
                wrong += self._mislabelled(row, marked)
                targets += sum(label != -100 for label in marked)
        result = {
            "after_step": self.after,
            "prepared": self.prepared,
            "losses": [float(loss) for loss in self.losses],
            "tokens": tokens,
            "fill": self.fill if self.fill is not None else sum(tokens) / max(1, slots),
            "targets": targets,
            "mislabelled": wrong,
            "peak_mb": peak,
            "versions": _versions(),
            "held_out": held_out_loss(model, self.folder) if model is not None else None,
        }
        Path(self.spec["result"]).write_text(json.dumps(result))

    def _mislabelled(self, row: list[int], labels: list[int]) -> int:
        """Positions whose label is not what the chats say: the assistant's words and their end are targets, no more."""
        assistant, end = self.task["assistant_ids"], self.task["end_id"]
        wrong, at = 0, 0
        inside = False
        while at < len(row):
            wrong += (labels[at] != -100) != inside or (inside and labels[at] != row[at])
            if inside:
                inside = row[at] != end
            elif row[max(0, at + 1 - len(assistant)) : at + 1] == assistant:
                inside = True
            at += 1
        return wrong


def held_out_loss(model: Any, folder: Path) -> float:
    """Mean loss of the assistant's tokens in chats that nobody trained on, one at a time."""
    import torch

    chats = json.loads((folder / "held_out.json").read_text())
    model = model.eval().float()
    total, count = 0.0, 0
    with torch.no_grad():
        for chat in chats:
            labels = torch.tensor(chat["labels"])
            logits = model(input_ids=torch.tensor([chat["input_ids"]])).logits[0]
            total += float(
                torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
            )
            count += int((labels[1:] != -100).sum())
    return total / count


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _versions() -> dict[str, str]:
    names = ("torch", "deepspeed", "transformers", "trl")
    return {name: sys.modules[name].__version__ for name in names if name in sys.modules}
