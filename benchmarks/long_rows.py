"""`python -m benchmarks.long_rows`: the memory and time of a step on one long row, by what is computed again.

A Llama with random weights on a row of one document. Memory is the most that torch's allocator gave out at once during
the second step, without weights, optimizer and what else was there before it.
"""

import json
import sys
import tempfile
from pathlib import Path

WAYS: dict[str, list[str]] = {
    "activations kept": [],
    "tiled_mlp_compute": ["tiled_mlp_compute=true"],
    "selective": ["model.activation_checkpointing=selective"],
    "selective, tiled_mlp_compute": ["model.activation_checkpointing=selective", "tiled_mlp_compute=true"],
    "activation_checkpointing": ["model.activation_checkpointing=true"],
    "activation_checkpointing, tiled_mlp_compute": ["model.activation_checkpointing=true", "tiled_mlp_compute=true"],
}
"""Overrides of the recipe, by their name in the table."""
SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 4}
LENGTH = 2048


def main() -> int:
    print(f"{'':45}  MB of a step  CPU seconds of a step")
    for name, overrides in WAYS.items():
        with tempfile.TemporaryDirectory(prefix="arctic_training_bench_") as folder:
            megabytes, seconds = measure(Path(folder), overrides)
        print(f"{name:45} {megabytes:13.0f} {seconds:22.1f}", flush=True)
    return 0


def measure(folder: Path, overrides: list[str]) -> tuple[float, float]:
    """Returns the megabytes and the CPU seconds of a run's second step."""
    import time

    from torch.profiler import ProfilerActivity, profile

    from arctic_training import CausalTrainer, get_config
    from tests import tiny

    tiny.save_tokenizer(folder)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 320, **SHAPE}
    config |= {"num_key_value_heads": 4, "max_position_embeddings": LENGTH, "pad_token_id": 0, "eos_token_id": 3}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "rows.jsonl").write_text(json.dumps({"text": "one two three " * 4 * LENGTH}) + "\n")
    recipe = {
        "type": "causal",
        "model": {
            "name_or_path": str(folder),
            "random_weights": True,
            "dtype": "fp32",
            "activation_checkpointing": False,
        },
        "data": {"sources": [str(folder / "rows.jsonl")], "max_length": LENGTH, "cache_dir": str(folder / "cache")},
        "output_dir": str(folder / "run"),
        "train_iters": 2,
        "loss_log_interval": 0,
        "logger": {"level": "ERROR"},
    }
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
    began = 0.0

    def begin(trainer: CausalTrainer) -> None:
        nonlocal began
        if trainer.progress.step == 1:
            profiler.start()
            began = time.process_time()

    trainer = CausalTrainer(get_config(recipe, overrides))
    trainer.callbacks.append(("pre-step", begin))
    trainer.train()
    seconds = time.process_time() - began
    profiler.stop()
    trainer.close()
    most = held = 0
    events = profiler.profiler.kineto_results.events()
    for _, size in sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]"):
        held += size
        most = max(most, held)
    return most / 1e6, seconds


if __name__ == "__main__":
    sys.exit(main())
