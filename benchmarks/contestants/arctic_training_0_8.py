"""ArcticTraining 0.8.0, packed, driven through its public names; run with the Python of its own virtual environment."""

import os
from typing import Any

from meter import Meter


def main() -> None:
    meter = Meter()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(meter.spec["port"]), "LOCAL_WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    from arctic_training import SFTDataFactory, SFTTrainer, get_config

    task, spec = meter.task, meter.spec

    class Chats(SFTDataFactory):
        name = "measured"

        def __call__(self) -> Any:
            with meter.preparing():
                return super().__call__()

    class Measured(SFTTrainer):
        name = "measured"
        data_factory: Chats

        def loss(self, batch: Any) -> Any:
            meter.batch(batch["input_ids"].clone(), batch["labels"].clone())
            loss = super().loss(batch)
            self.measured_loss = loss.detach()
            return loss

        def step(self, batch: Any) -> None:
            super().step(batch)
            meter.update(self.measured_loss)

    recipe = {
        "type": "measured",
        "skip_validation": True,
        "train_iters": task["steps"],
        "micro_batch_size": 1,
        "seed": task["seed"],
        "model": {
            "name_or_path": str(meter.folder / "model"),
            "dtype": "fp32",
            "attn_implementation": "sdpa",
            "disable_activation_checkpoint": True,
        },
        "data": {
            "sources": [
                {
                    "type": "huggingface_instruct",
                    "name_or_path": "json",
                    "kwargs": {"data_files": str(meter.folder / "data" / "train.jsonl")},
                    "role_mapping": {
                        "user": "messages.role.user",
                        "assistant": "messages.role.assistant",
                    },
                    "content_key": "content",
                }
            ],
            "max_length": task["max_length"],
            "pack_samples": True,
            "always_max_length": False,
            "cache_dir": spec["cache_dir"],
            "num_proc": 1,
            "dl_num_workers": 1,
        },
        "optimizer": {
            "learning_rate": task["learning_rate"],
            "weight_decay": task["weight_decay"],
            "betas": task["betas"],
        },
        "scheduler": {"name": "constant", "warmup_ratio": 0.0},
        "deepspeed": {
            "zero_optimization": {"stage": spec["stage"]},
            "gradient_clipping": task["clip"],
        },
        "logger": {"level": "WARNING", "output_dir": spec["run_dir"]},
    }
    trainer = Measured(get_config(recipe))
    meter.fill = task["tokens"] / (len(trainer.train_dataloader.dataset) * task["max_length"])
    trainer.train()
    meter.finish(trainer.model_unwrapped)


if __name__ == "__main__":
    main()
