"""A bare torch loop."""

import torch
from bare import load_batches, load_model, make_optimizer
from meter import Meter


def main() -> None:
    meter = Meter()
    torch.manual_seed(meter.task["seed"])
    model = load_model(meter)
    optimizer = make_optimizer(model, meter.task)
    for batch in load_batches(meter):
        meter.batch(batch["input_ids"], batch["labels"])
        loss = model(**batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), meter.task["clip"])
        optimizer.step()
        optimizer.zero_grad()
        meter.update(loss)
    meter.finish(model.causal)


if __name__ == "__main__":
    main()
