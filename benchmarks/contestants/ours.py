"""This package: the `sft` trainer, packed, from a recipe. Nothing in it is made for the benchmark but the clock.

Where the time to the first step counts, the samples lie ready before the clock starts, as the bare loops' batches do:
another process has filled the cache. With a place for `batches` in its spec it also writes them down, for the bare
loops to train on the same.
"""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from meter import Meter


def recipe(meter: Meter) -> dict[str, Any]:
    task, spec = meter.task, meter.spec
    return {
        "type": "measured",
        "output_dir": spec["run_dir"],
        "train_iters": task["steps"],
        "seed": task["seed"],
        "model": {"name_or_path": str(meter.folder / "model"), "dtype": "fp32"},
        "data": {
            "sources": [str(meter.folder / "data" / "train.jsonl")],
            "max_length": task["max_length"],
            "pack_samples": True,
            "cache_dir": spec["cache_dir"],
            "num_proc": 1,
        },
        "optimizer": {
            "lr": task["learning_rate"],
            "weight_decay": task["weight_decay"],
            "betas": task["betas"],
        },
        "scheduler": {"name": "constant", "warmup_ratio": 0.0},
        "deepspeed": {"zero_optimization": {"stage": spec["stage"]}, "gradient_clipping": task["clip"]},
    }


def main() -> None:
    meter = Meter()
    ready = meter.task["ready"]
    if ready and sys.argv[-1] != "prepare":  # its CPU seconds are its own
        subprocess.run([sys.executable, *sys.argv, "prepare"], check=True)
    if not ready:
        import datasets  # noqa: F401  importing libraries is no part of the preparation

    from arctic_training import SFTTrainer, get_config
    from arctic_training.data.factories.sft import SFTDataFactory

    class Chats(SFTDataFactory):
        name = "measured"

        def __call__(self, *args: Any) -> Any:
            with nullcontext() if ready else meter.preparing():
                return super().__call__(*args)

    class Measured(SFTTrainer):
        name = "measured"
        data_factory_type = Chats

        def step(self, batch: Any) -> None:
            meter.batch(batch["input_ids"], batch["labels"])
            kept.append(batch)
            super().step(batch)

        def loss(self, batch: Any) -> Any:
            self.measured_loss = super().loss(batch)
            return self.measured_loss

        def after_update(self) -> None:
            super().after_update()
            meter.update(self.measured_loss)

    kept: list[dict[str, Any]] = []
    if sys.argv[-1] == "prepare":
        Measured.prepare_data(get_config(recipe(meter)))
        return
    trainer = Measured(get_config(recipe(meter)))
    meter.fill = meter.task["tokens"] / (len(trainer.train_loader) * meter.task["max_length"])
    trainer.train()
    meter.finish(trainer.model.module)
    if meter.spec["dump"]:
        import torch

        for batch in kept:
            del batch["num_items_in_batch"]
        torch.save(kept, Path(meter.spec["batches"]))
    trainer.close()


if __name__ == "__main__":
    main()
