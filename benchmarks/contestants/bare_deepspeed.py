"""A bare DeepSpeed loop, at the ZeRO stage that ours runs at."""

import os

import torch
from bare import load_batches, load_model, make_optimizer
from meter import Meter


def main() -> None:
    meter = Meter()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(meter.spec["port"])
    import deepspeed

    torch.manual_seed(meter.task["seed"])
    deepspeed.init_distributed("gloo", verbose=False)
    model = load_model(meter)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=make_optimizer(model, meter.task),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": meter.task["clip"],
            "zero_optimization": {"stage": meter.spec["stage"]},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        },
    )
    for batch in load_batches(meter):
        meter.batch(batch["input_ids"], batch["labels"])
        loss = engine(**batch)
        engine.backward(loss)
        engine.step()
        meter.update(loss)
    meter.finish(model.causal)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
