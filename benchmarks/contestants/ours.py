"""This package: the `sft` trainer, packed, from a recipe. Nothing in it is made for the benchmark but the clock.

With a place for `batches` in its spec it also writes them down, for the bare loops to train on the same.
"""

from pathlib import Path
from typing import Any

from meter import Meter


def recipe(meter: Meter) -> dict[str, Any]:
    task, spec = meter.task, meter.spec
    return {
        "type": "measured",
        "output_dir": spec["run_dir"],
        "train_iters": task["updates"],
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
    import datasets  # noqa: F401  reading it in is part of the start, as it is in the others

    from arctic_training import SFTTrainer, get_config
    from arctic_training.data.sft_factory import SFTDataFactory

    class Chats(SFTDataFactory):
        name = "measured"

        def __call__(self, *args: Any) -> Any:
            with meter.preparing():
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
