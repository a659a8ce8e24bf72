"""Every trainer, interrupted anywhere and started again, ends with the weights of a run that was never interrupted."""

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from arctic_training.config.sections.cross_field import shares_sequences
from arctic_training.distributed import process_group
from arctic_training.registry import lookup
from arctic_training.testing import check_resume
from tests import processes
from tests.contract.cases import CASES, recipe
from tests.covering import covering, pairs


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


def shown(case: Case) -> set[Any]:
    """Returns every two settings of a case; of trainer and stage, only whether the trainer sees sharded weights."""
    return pairs((case.trainer, "sharded" if case.stage == 3 else "full", *case[2:])) | pairs(case[1:])


FEW = covering(EVERY, shown)


def interrupt_everywhere(
    case: Case, root: str, *, everywhere: bool = False, data: dict[str, Any] | None = None, **more: Any
) -> int:
    """Interrupts a run in several of its steps, and returns how often; without the interruption in completions."""
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
    settings = recipe(case.trainer, files, **common)
    settings["data"] |= data or {}
    for role in {"model", "discriminator"} & settings.keys():
        settings[role]["dtype"] = case.dtype
    return check_resume(settings, steps=None, thorough=everywhere) - ("rewards" in settings)


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


def test_another_trainer_adds_three_cases_at_most() -> None:
    """Each is of three short runs, together less than half a minute of CPU time."""
    another = [case._replace(trainer="another") for case in EVERY if case.trainer == "sft"]
    assert len(covering([*EVERY, *another], shown)) <= len(FEW) + 3
    assert max(Counter(case.trainer for case in FEW).values()) <= 3


STREAM = {"stream_buffer": 3, "pack_samples": True}
WORKERS = {"dl_num_workers": 2, "pack_samples": True}


@pytest.mark.fault(2)
@pytest.mark.parametrize(
    ("data", "world", "stage", "length"),
    [
        (WORKERS, 1, 1, {}),
        (STREAM, 2, 2, {"epoch_length": 3, "epochs": 3}),
        pytest.param(WORKERS, 2, 3, {"epoch_length": 3, "epochs": 3}, marks=pytest.mark.nightly),
        pytest.param(STREAM, 1, 0, {"train_iters": 8}, marks=pytest.mark.nightly),
    ],
)
def test_packed_by_workers_and_streamed(
    data: dict[str, Any], world: int, stage: int, length: dict[str, int], tmp_path: Path
) -> None:
    more: dict[str, Any] = {"micro_batch_size": 1, **length}
    if "stream_buffer" in data:
        source = {"name_or_path": str(tmp_path / "files" / "chats.jsonl"), "streaming": True}
        data = {**data, "sources": [source]}
    case = Case("sft", stage, 1, (world, 1), "fp32")
    assert processes.share(interrupt_everywhere, world, case, str(tmp_path), data=data, **more) == [2] * world
