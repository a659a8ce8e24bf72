"""Runs of real recipes that go on on another number of processes: the same losses, and every sample once an epoch."""

import json
import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from torch import Tensor

from arctic_training import get_config
from arctic_training.callback.ema import EMA
from arctic_training.distributed import collectives, process_group
from arctic_training.registry import lookup
from tests import processes, tiny

Seen = dict[int, list[Any]]
"""What made each update: its samples in the order of the epoch."""


class Cut(NamedTuple):
    """How an update is shared."""

    world: int
    stage: int
    micro: int
    accumulate: int
    shared: int = 1
    """Processes that share a sequence."""


def files(root: Path) -> None:
    tiny.save_model(root / "model")
    tiny.save_chats(root / "chats.jsonl", 22)
    np.save(root / "points.npy", np.random.default_rng(0).normal(size=(44, 2)).astype(np.float32))


def sft(root: Path, **data: Any) -> dict[str, Any]:
    chats = {"sources": [str(root / "chats.jsonl")], "cache_dir": str(root / "cache"), "dl_num_workers": 0}
    return {
        "type": "sft",
        "model": {"name_or_path": str(root / "model"), "dtype": "fp32"},
        "data": {**chats, "max_length": 120, "filter_samples": False, **data},
        "optimizer": {"lr": 1e-3},
    }


def lora(root: Path) -> dict[str, Any]:
    recipe = sft(root)
    adapter = {"peft_type": "LORA", "r": 3, "target_modules": ["q_proj", "down_proj"]}
    return recipe | {"model": {**recipe["model"], "peft_config": adapter}}


def stream(root: Path) -> dict[str, Any]:
    source = {"name_or_path": str(root / "chats.jsonl"), "streaming": True}
    return sft(root, sources=[source], stream_buffer=6, pack_samples=True) | {"train_iters": 10}


def gan(root: Path) -> dict[str, Any]:
    return {
        "type": "gan",
        "model": {"type": "mlp", "sizes": [2, 9, 2]},
        "discriminator": {"type": "mlp", "sizes": [2, 9, 1]},
        "data": {"sources": [{"type": "tensor_file", "name_or_path": str(root / "points.npy")}]},
        "optimizer": {"lr": 1e-3},
        "discriminator_optimizer": {"lr": 1e-3},
        "loss": "hinge",
        "d_steps": 2,
        "latent_size": 2,
        "callbacks": [{"type": "ema", "decay": 0.9}],
    }


def grpo(root: Path) -> dict[str, Any]:
    ends = list("abcdefghijklmnopqrstuvwxyz")
    section = {
        "rewards": {"type": "length", "free": 0, "limit": 8},
        "num_generations": 3,
        "max_new_tokens": 5,
        "stop": ends,
    }
    settings = sft(root, max_length=400) | {"type": "grpo", "num_iterations": 2, **section}
    del settings["data"]["filter_samples"]
    return settings


def ppo(root: Path) -> dict[str, Any]:
    critic = {"critic": {"new_weights": ["score"]}, "critic_optimizer": {"lr": 1e-3}, "beta": 0.1}
    return grpo(root) | {"type": "ppo", **critic}


CASES = {
    "grpo": grpo,
    "ppo": ppo,
    "sft": sft,
    "packed": lambda root: sft(root, pack_samples=True),
    "lora": lora,
    "stream": stream,
    "gan": gan,
}

SECOND_LOSS = {"gan": ["loss/discriminator"], "ppo": ["loss/critic"]}
"""What a second role that is trained logs."""


def train(name: str, root: str, run: str, cut: Cut, **more: Any) -> dict[str, Any]:
    """Run a recipe to its end; what this process saw, and the losses."""
    recipe = {
        "epochs": 2,
        "seed": 7,
        "loss_log_interval": 0,
        "logger": {"level": "ERROR"},
        "scheduler": {"name": "linear", "warmup_steps": 1},
        **CASES[name](Path(root)),
        "output_dir": str(Path(root) / run),
        "micro_batch_size": cut.micro,
        "gradient_accumulation_steps": cut.accumulate,
        "sequence_parallel_size": cut.shared,
        "deepspeed": {"zero_optimization": {"stage": cut.stage}},
        **more,
    }
    config = get_config(recipe)
    trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    seen: dict[tuple[int, int, int], Any] = {}

    def look(self: Any, batch: Any) -> None:
        place = (self.progress.step + 1, self.window.index, process_group.rank())
        if "draw" in batch:
            seen[place] = batch["draw"].tolist()
        elif "prompts" in batch:
            rows = zip(batch["prompts"], batch["weights"], strict=True)
            seen[place] = [tuple(prompt.tolist()) for prompt, weight in rows if weight]
        elif cut.shared > 1:
            seen[place] = shared_rows(batch, packed=config.data.pack_samples)
        else:
            rows = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
            seen[place] = [tuple(filter(None, row)) for row, labels in rows if set(labels) != {-100}]  # 0 fills up

    trainer.listen("pre-step", look)
    trainer.train()
    average: dict[str, Any] = {}
    for part in trainer.listeners.values():
        if isinstance(part, EMA):
            named = trainer.model.module.named_parameters()
            average |= {key: full_average(part.weights[key], one) for key, one in named}
    end = {key: value for key, value in trainer.progress.state_dict().items() if key != "row"}
    trainer.close()
    return {"seen": seen, "end": end, "average": average}


def full_average(average: Tensor, parameter: Tensor) -> list[float]:
    """The average of a parameter, whose shards all processes hold under ZeRO stage 3."""
    if not hasattr(parameter, "ds_shape"):
        return average.flatten().tolist()
    shards = collectives.all_gather_object(average.flatten().tolist())
    return [number for shard in shards for number in shard][: parameter.ds_shape.numel()]


def shared_rows(batch: Any, *, packed: bool) -> list[Any]:
    """Returns the rows of which all processes have a part, on the main process."""
    parts = collectives.all_gather_object((batch["input_ids"][0].tolist(), batch["labels"][0].tolist()))
    ids, labels = ([token for part in parts for token in part[n]] for n in (0, 1))
    ends = batch["cu_seq_lens_q"].tolist()
    rows = [slice(None)] if packed else [slice(*two) for two in pairwise(ends)]
    samples = [tuple(filter(None, ids[row])) for row in rows if set(labels[row]) != {-100}]
    return samples if process_group.is_main() else []


def runs(name: str, root: str, cut: tuple[int, ...], saved: dict[str, str], **more: Any) -> list[dict[str, Any]]:
    """Runs `train` in each folder, from its checkpoint; an empty path starts anew."""
    process_group.init_process_group()
    ended = []
    for run, checkpoint in saved.items():
        section: dict[str, Any] = {"type": "deepspeed", "output_dir": str(Path(root) / run / "saved")}
        section |= {"auto_resume": True} if checkpoint else {"save_every_n_steps": 1}
        if checkpoint and process_group.is_main():
            shutil.copytree(checkpoint, Path(root) / run / "saved" / Path(checkpoint).name)
        process_group.barrier()
        ended.append(train(name, root, run, Cut(*cut), checkpoint=section, **more))
    return ended


def together(ended: Iterable[dict[str, Any]]) -> Seen:
    """What all processes saw, in the order of the epoch."""
    every = {place: rows for one in ended for place, rows in one["seen"].items()}
    seen: Seen = {}
    for place in sorted(every):
        seen.setdefault(place[0], []).extend(every[place])
    return seen


def logged(run: Path, what: str) -> dict[int, float]:
    """A number of each update, as the run's metrics have it."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[what] for line in lines if what in line}


def move(name: str, root: Path, first: Cut, second: Cut, updates: Iterable[int], **more: Any) -> tuple[Seen, list[Any]]:
    """Trains to the end with the first cut, then goes on after each of ``updates`` with the second."""
    files(root)
    begun = processes.share(runs, first.world, name, str(root), tuple(first), {"whole": ""})
    saved = {f"from_{n}": str(root / "whole" / "saved" / f"step_{n}") for n in updates}
    went = processes.share(runs, second.world, name, str(root), tuple(second), saved, **more)
    expected_samples = together(one[0] for one in begun)
    again = [together(one[n] for one in went) for n in range(len(saved))]
    for n, run in enumerate(saved) if not more else ():  # an update is of as many rows as before
        for what, most in (("loss", 1e-5), ("lr", 1e-12), *((one, 1e-5) for one in SECOND_LOSS.get(name, []))):
            expected = {
                at: value for at, value in logged(root / "whole", what).items() if at > int(run[len("from_") :])
            }
            assert expected and logged(root / run, what) == pytest.approx(expected, abs=most), f"{run}: {what}"
        for one in went:
            assert one[n]["end"] == begun[0][0]["end"]
            for key, average in begun[0][0]["average"].items():
                assert one[n]["average"][key] == pytest.approx(average, abs=1e-6), f"{run}: {key}"
    return expected_samples, again


@pytest.mark.fault(18, 31)
@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("packed", Cut(1, 1, 1, 4), Cut(2, 3, 1, 2)),
        ("sft", Cut(2, 2, 2, 1), Cut(1, 0, 1, 4)),
        ("lora", Cut(2, 3, 1, 2), Cut(1, 1, 4, 1)),
        ("gan", Cut(2, 3, 4, 1), Cut(1, 1, 4, 2)),
        pytest.param("gan", Cut(1, 0, 4, 2), Cut(2, 3, 2, 2), marks=pytest.mark.nightly),
        ("stream", Cut(2, 1, 1, 2), Cut(1, 2, 1, 4)),
        ("grpo", Cut(2, 3, 2, 1), Cut(1, 0, 1, 4)),
        pytest.param("grpo", Cut(1, 1, 2, 2), Cut(2, 2, 1, 2), marks=pytest.mark.nightly),
        ("ppo", Cut(2, 2, 2, 1), Cut(1, 0, 2, 2)),
        ("ppo", Cut(1, 0, 2, 2), Cut(2, 3, 1, 2)),
        pytest.param("stream", Cut(1, 1, 1, 4), Cut(2, 3, 1, 2), marks=pytest.mark.nightly),
        ("packed", Cut(1, 1, 1, 4), Cut(2, 3, 1, 4, shared=2)),
        ("sft", Cut(2, 2, 2, 2, shared=2), Cut(2, 1, 1, 2)),
    ],
)
def test_the_same_samples_and_losses_on_other_processes(tmp_path: Path, name: str, first: Cut, second: Cut) -> None:
    expected, again = move(name, tmp_path, first, second, (2, 3))
    for update, seen in zip((2, 3), again, strict=True):
        assert seen == {n: samples for n, samples in expected.items() if n > update}
    if name in ("sft", "lora"):
        half = len(expected) // 2
        for epoch in (range(1, half + 1), range(half + 1, 2 * half + 1)):
            assert len({sample for n in epoch for sample in expected[n]}) == sum(len(expected[n]) for n in epoch) == 22


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("lora", Cut(2, 1, 2, 2, shared=2), Cut(1, 0, 4, 1)),
        ("stream", Cut(2, 1, 1, 4, shared=2), Cut(1, 2, 1, 4)),
        ("stream", Cut(2, 1, 1, 2), Cut(2, 2, 1, 4, shared=2)),
    ],
)
def test_shared_sequences_on_other_processes(tmp_path: Path, name: str, first: Cut, second: Cut) -> None:
    test_the_same_samples_and_losses_on_other_processes(tmp_path, name, first, second)


@pytest.mark.fault(18)
@pytest.mark.parametrize(("first", "second"), [(Cut(1, 0, 1, 3), Cut(2, 1, 2, 1)), (Cut(2, 3, 1, 1), Cut(1, 3, 3, 1))])
def test_another_size_of_an_update_goes_on_at_the_very_next_row(tmp_path: Path, first: Cut, second: Cut) -> None:
    """After 3 or 2 rows, which the next cut's 4 or 3 do not divide."""
    expected, (again,) = move("sft", tmp_path, first, second, (1,), allow_changes=["global_batch_size"])
    seen = [sample for samples in (expected[1], *again.values()) for sample in samples]
    assert seen == [sample for samples in expected.values() for sample in samples]
