"""Every trainer, interrupted anywhere and started again, ends with the weights of a run that was never interrupted."""

import json
import shutil
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import arctic_training.builtin  # noqa: F401  fills the registry
from arctic_training import get_config
from arctic_training.config.sections.cross_field import shares_sequences
from arctic_training.registry import lookup
from tests import processes
from tests.contract.cases import CASES, recipe
from tests.covering import covering


class Case(NamedTuple):
    """The settings of a run that is interrupted."""

    trainer: str
    stage: int
    accumulation: int
    layout: tuple[int, int]
    """Processes, and how many of them share a sequence."""
    dtype: str

    def __str__(self) -> str:
        world, sharing = self.layout
        processes = "1 process" if world == 1 else f"{world} processes{' that share sequences' if sharing > 1 else ''}"
        return f"{self.trainer}, {processes}, stage {self.stage}, accumulation {self.accumulation}, {self.dtype}"


EVERY = [
    case
    for case in map(Case._make, product(sorted(CASES), range(4), (1, 4), ((1, 1), (2, 1), (2, 2)), ("fp32", "bf16")))
    if case.layout[1] == 1 or shares_sequences(lookup("trainer", case.trainer))
]
FEW = covering(EVERY)
"""In these every two settings meet."""


def train(settings: dict[str, Any]) -> dict[str, Any]:
    """Trains to the end of a recipe; returns what must be equal."""
    from arctic_training.engine.zero import full_parameter

    config = get_config(settings)
    trainer = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    trainer.train()  # type: ignore[attr-defined]
    engines = trainer.trainable_engines  # type: ignore[attr-defined]
    weights = {
        f"{role}.{name}": full_parameter(parameter)
        for role, engine in engines.items()
        for name, parameter in engine.module.named_parameters()
    }
    progress = trainer.progress.state_dict()  # type: ignore[attr-defined]
    trainer.close()  # type: ignore[attr-defined]
    return {"weights": weights, "progress": progress}


def losses(run: Path) -> dict[int, float]:
    """Returns the loss of each step, as the run logged it."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def interrupt_everywhere(
    case: Case, root: str, *, everywhere: bool = False, data: dict[str, Any] | None = None, **more: Any
) -> int:
    """Trains whole, then goes on from the checkpoints of several steps; returns how many runs were compared."""
    from arctic_training.distributed import process_group

    files = Path(root) / "files"
    process_group.init_process_group()
    if process_group.is_main():
        recipe(case.trainer, files)
    process_group.barrier()
    common: dict[str, Any] = {
        "gradient_accumulation_steps": case.accumulation,
        "deepspeed": {"zero_optimization": {"stage": case.stage}},
        "sequence_parallel_size": case.layout[1],
        **more,
    }
    if case.accumulation == 4 and process_group.world_size() > 1:
        common["epochs"] = 4  # of one step each

    def settings(run: str, **checkpoint: Any) -> dict[str, Any]:
        section = {"type": "deepspeed", "output_dir": str(Path(root) / run / "saved"), **checkpoint}
        settings = recipe(case.trainer, files, output_dir=str(Path(root) / run), checkpoint=section, **common)
        settings["data"] |= data or {}
        for role in {"model", "discriminator"} & settings.keys():
            settings[role]["dtype"] = case.dtype
        return settings

    uninterrupted = train(settings("whole", save_every_n_steps=1))
    last = uninterrupted["progress"]["step"]
    assert last >= 4, f"{last} steps are too few to interrupt"
    # inside an epoch; at its end; and just before the run's
    cuts = {1, last // 2, last - 1} if everywhere else {1, last // 2}
    for step in sorted(cuts):
        run = f"from_{step}"
        if process_group.is_main():
            saved = Path(root) / "whole" / "saved" / f"step_{step}"
            shutil.copytree(saved, Path(root) / run / "saved" / saved.name)
        process_group.barrier()
        again = train(settings(run, auto_resume=True))
        what = f"{case}, from step {step} of {last}"
        assert again["progress"] == uninterrupted["progress"], what
        for key, weight in uninterrupted["weights"].items():
            assert torch.equal(again["weights"][key], weight), f"{what}: {key}"
        if process_group.is_main():
            expected = {n: loss for n, loss in losses(Path(root) / "whole").items() if n > step}
            assert losses(Path(root) / run) == expected, what
    return len(cuts)


@pytest.mark.fault(2)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_it_goes_on_to_the_bit(case: Case, tmp_path: Path) -> None:
    world, _ = case.layout
    assert processes.share(interrupt_everywhere, world, case, str(tmp_path)) == [2] * world


@pytest.mark.nightly
@pytest.mark.parametrize("case", EVERY, ids=str)
def test_it_goes_on_to_the_bit_under_every_setting(case: Case, tmp_path: Path) -> None:
    world, _ = case.layout
    assert processes.share(interrupt_everywhere, world, case, str(tmp_path), everywhere=True) == [3] * world


def test_another_trainer_adds_five_cases_at_most() -> None:
    """Each is of three short runs, together less than half a minute of CPU time."""
    another = [case._replace(trainer="another") for case in EVERY if case.trainer == "sft"]
    assert len(covering([*EVERY, *another])) <= len(FEW) + 5
    assert max(Counter(case.trainer for case in FEW).values()) <= 5


STREAM = {"stream_buffer": 3, "pack_samples": True}
WORKERS = {"dl_num_workers": 2, "pack_samples": True}


@pytest.mark.fault(2)
@pytest.mark.parametrize(
    ("data", "world", "stage"),
    [
        (WORKERS, 1, 1),
        (STREAM, 2, 2),
        pytest.param(WORKERS, 2, 3, marks=pytest.mark.nightly),
        pytest.param(STREAM, 1, 0, marks=pytest.mark.nightly),
    ],
)
def test_packed_by_workers_and_streamed(data: dict[str, Any], world: int, stage: int, tmp_path: Path) -> None:
    more: dict[str, Any] = {"micro_batch_size": 1}
    if "stream_buffer" in data:
        source = {"name_or_path": str(tmp_path / "files" / "chats.jsonl"), "streaming": True}
        data, more["train_iters"] = {**data, "sources": [source]}, 8
    case = Case("sft", stage, 1, (world, 1), "fp32")
    assert processes.share(interrupt_everywhere, world, case, str(tmp_path), data=data, **more) == [2] * world
