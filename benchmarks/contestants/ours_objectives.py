"""This package: the trainers `dpo` and `grpo` from a recipe, all else by default."""

from typing import Any

from meter import Meter
from reward import vowels


def recipe(meter: Meter) -> dict[str, Any]:
    task = meter.task
    common = {
        "type": "measured",
        "output_dir": meter.spec["run_dir"],
        "train_iters": task["steps"],
        "seed": task["seed"],
        "micro_batch_size": task["rows"],
        "beta": task["beta"],
        "model": {"name_or_path": str(meter.folder / "model"), "dtype": "fp32"},
        "data": {
            "sources": [str(meter.folder / "ours" / "train.jsonl")],
            "max_length": task["max_length"],
            "cache_dir": f"{meter.spec['run_dir']}/cache",
            "num_proc": 1,
            "seed": 0,
        },
        "optimizer": {"lr": task["learning_rate"], "weight_decay": 0},
        "scheduler": {"name": "constant", "warmup_ratio": 0.0},
    }
    if task["name"] == "dpo":
        return common
    generation = {name: task[name] for name in ("num_generations", "max_new_tokens")}
    return common | {"rewards": ["vowels"], **generation}


def main() -> None:
    meter = Meter()
    import torch

    from arctic_training import DPOTrainer, GRPOTrainer, Reward, get_config

    class Vowels(Reward):
        name = "vowels"

        def __call__(self, completions: Any) -> list[float]:
            tokens.append(sum(completion.tokens for completion in completions))
            rewards = vowels([completion.generated for completion in completions])
            means.append(sum(rewards) / len(rewards))
            return rewards

    base: Any = DPOTrainer if meter.task["name"] == "dpo" else GRPOTrainer

    class Measured(base):  # type: ignore[misc]
        name = "measured"

        def loss(self, batch: Any) -> torch.Tensor:
            self.measured_loss = super().loss(batch)
            if "completion_lengths" in batch:
                tokens.append(int(batch["completion_lengths"].sum()))
            return self.measured_loss

        def after_update(self) -> None:
            super().after_update()
            meter.update(means[-1] if means else self.measured_loss)

    means: list[float] = []
    tokens: list[int] = []
    trainer = Measured(get_config(recipe(meter)))
    means.clear()  # of the rewards' dry run
    tokens.clear()
    trainer.train()
    trainer.close()
    meter.tokens = tokens
    meter.finish(None)


if __name__ == "__main__":
    main()
