"""TRL's SFTTrainer: as installed, or packed.

As installed every setting is TRL's own but what the task fixes: precision, targets, optimizer's numbers, lengths and
batch size. Packed is TRL at its best here: its best-fit packing, and no gradient checkpointing, which costs time and
which the model is too small to need.
"""

from typing import Any

from meter import Meter


def main() -> None:
    meter = Meter()
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    task, packed = meter.task, meter.spec["packed"]

    class Measured(SFTTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            with meter.preparing():
                return super()._prepare_dataset(dataset, *args, **kwargs)

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            meter.batch(inputs["input_ids"].clone(), inputs["labels"].clone())
            self.measured_loss = super().training_step(model, inputs, *args, **kwargs)
            return self.measured_loss

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            meter.update(trainer.measured_loss)

    best = {"packing": True, "per_device_train_batch_size": 1, "gradient_checkpointing": False}
    settings = best if packed else {"per_device_train_batch_size": task["micro_batch_unpacked"]}
    config = SFTConfig(
        output_dir=meter.spec["run_dir"],
        max_length=task["max_length"],
        max_steps=task["steps"],
        assistant_only_loss=True,
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=task["weight_decay"],
        adam_beta1=task["betas"][0],
        adam_beta2=task["betas"][1],
        max_grad_norm=task["clip"],
        seed=task["seed"],
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    torch.manual_seed(task["seed"])
    with meter.preparing():
        rows = load_dataset(str(meter.folder / "data"), split="train", cache_dir=meter.spec["cache_dir"])
    trainer = Measured(
        model=AutoModelForCausalLM.from_pretrained(meter.folder / "model", dtype=torch.float32),
        args=config,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(meter.folder / "model"),
        callbacks=[Clock()],
    )
    if packed:
        meter.fill = task["tokens"] / (len(trainer.train_dataset) * task["max_length"])
    trainer.train()
    meter.finish(trainer.model)


if __name__ == "__main__":
    main()
