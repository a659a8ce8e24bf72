"""TRL's DPOTrainer and GRPOTrainer, every setting TRL's own but what the task fixes: precision, optimizer, batch, loss.

The rows lie in the order in which ours trains on them, and are read in that order. With ``gradient_checkpointing``
false in the spec it is TRL at its best here; as installed it is true, which saves memory and costs time.
"""

from typing import Any

from meter import Meter
from reward import vowels


def settings(meter: Meter) -> dict[str, Any]:
    task = meter.task
    return {
        "output_dir": meter.spec["run_dir"],
        "max_steps": task["steps"],
        "learning_rate": task["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "beta": task["beta"],
        "seed": task["seed"],
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": meter.spec["gradient_checkpointing"],
    }


def main() -> None:
    meter = Meter()
    import torch
    from datasets import load_dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

    task = meter.task
    rows = load_dataset(str(meter.folder / "trl"), split="train", cache_dir=f"{meter.spec['run_dir']}/cache")
    model = AutoModelForCausalLM.from_pretrained(meter.folder / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(meter.folder / "model")
    means: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            meter.update(means[-1] if means else trainer.measured_loss)

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        rewards = vowels(completions)
        means.append(sum(rewards) / len(rewards))
        return rewards

    class Preferences(DPOTrainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            tokens.append(int(inputs["completion_mask"].sum()))
            self.measured_loss = super().training_step(model, inputs, *args, **kwargs)
            return self.measured_loss

    common = {"model": model, "train_dataset": rows, "processing_class": tokenizer, "callbacks": [Clock()]}
    trainer: Any
    if task["name"] == "dpo":
        config = DPOConfig(**settings(meter), per_device_train_batch_size=task["rows"], max_length=task["max_length"])
        trainer = Preferences(args=config, **common)
    else:
        config = GRPOConfig(
            **settings(meter),
            per_device_train_batch_size=task["rows"] * task["num_generations"],
            num_generations=task["num_generations"],
            max_completion_length=task["max_new_tokens"],
            loss_type="grpo",
            shuffle_dataset=False,
        )
        trainer = GRPOTrainer(args=config, reward_funcs=reward, **common)
    trainer.train()
    meter.tokens = tokens
    meter.finish(None)


if __name__ == "__main__":
    main()
