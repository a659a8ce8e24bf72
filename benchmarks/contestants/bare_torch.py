"""A bare torch loop. What prepares its chats, where that is measured, is a bare `datasets.map` in another process."""

import subprocess
import sys
from pathlib import Path

import torch
from bare import load_batches, load_model, make_optimizer
from meter import Meter


def main() -> None:
    meter = Meter()
    if not meter.task["ready"]:
        script = Path(__file__).with_name("bare_map.py")
        mapped = subprocess.run([sys.executable, script, sys.argv[1]], check=True, stdout=subprocess.PIPE, text=True)
        meter.prepared = float(mapped.stdout.split()[-1])
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
