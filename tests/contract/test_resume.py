"""Every trainer, interrupted anywhere and started again, ends with the weights of a run that was never interrupted."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import get_config
from arctic_training.registry import lookup
from tests import processes
from tests.contract.cases import CASES, recipe

Cases = tuple[tuple[int, int], ...]
"""ZeRO stages and accumulations."""
FIRST: Cases = ((0, 1), (1, 4), (2, 1), (3, 4))
OTHER: Cases = ((0, 4), (1, 1), (2, 4), (3, 1))


def train(told: dict[str, Any]) -> dict[str, Any]:
    """Run a recipe to its end; returns what must be equal."""
    from arctic_training.engine.zero import full_parameter

    config = get_config(told)
    trainer = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    trainer.train()  # type: ignore[attr-defined]
    engines = trainer.trained  # type: ignore[attr-defined]
    weights = {
        f"{role}.{name}": full_parameter(parameter)
        for role, engine in engines.items()
        for name, parameter in engine.module.named_parameters()
    }
    progress = trainer.progress.state_dict()  # type: ignore[attr-defined]
    trainer.close()  # type: ignore[attr-defined]
    return {"weights": weights, "progress": progress}


def losses(run: Path) -> dict[int, float]:
    """The loss of each update, as the run told it."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def interrupt_everywhere(
    name: str,
    root: str,
    cases: Cases,
    dtype: str = "fp32",
    data: dict[str, Any] | None = None,
    **more: Any,
) -> list[str]:
    """Train whole, then go on from the checkpoints of several updates; returns what was compared."""
    from arctic_training import distributed

    seen, files = [], Path(root) / "files"
    distributed.init()
    if distributed.is_main():
        recipe(name, files)
    distributed.barrier()
    for stage, accumulate in cases:
        here = Path(root) / f"{name}_{stage}_{accumulate}"
        common: dict[str, Any] = {
            "gradient_accumulation_steps": accumulate,
            "deepspeed": {"zero_optimization": {"stage": stage}},
            **more,
        }
        if accumulate == 4 and distributed.world_size() > 1:
            common["epochs"] = 4  # of one update each

        def told(run: str, **checkpoint: Any) -> dict[str, Any]:
            section = {"type": "deepspeed", "output_dir": str(here / run / "saved"), **checkpoint}  # noqa: B023
            made = recipe(name, files, output_dir=str(here / run), checkpoint=section, **common)  # noqa: B023
            made["data"] |= data or {}
            for role in {"model", "discriminator"} & made.keys():
                made[role]["dtype"] = dtype
            return made

        whole = train(told("whole", save_every_n_steps=1))
        last = whole["progress"]["update"]
        assert last >= 4, f"{last} updates are too few to interrupt"
        # inside an epoch; at its end; and, in one process, just before the run's
        cuts = {1, last // 2} if distributed.world_size() > 1 else {1, last // 2, last - 1}
        for update in sorted(cuts):
            run = f"from_{update}"
            if distributed.is_main():
                saved = here / "whole" / "saved" / f"step_{update}"
                shutil.copytree(saved, here / run / "saved" / saved.name)
            distributed.barrier()
            again = train(told(run, auto_resume=True))
            what = f"{name}, {dtype}, stage {stage}, accumulation {accumulate}, from update {update} of {last}"
            assert again["progress"] == whole["progress"], what
            for key, weight in whole["weights"].items():
                assert torch.equal(again["weights"][key], weight), f"{what}: {key}"
            if distributed.is_main():
                first = {n: loss for n, loss in losses(here / "whole").items() if n > update}
                assert losses(here / run) == first, what
            seen.append(what)
        shutil.rmtree(here, ignore_errors=True) if distributed.is_main() else None
        distributed.barrier()
    return seen


EVERY = [
    *(pytest.param(name, FIRST, id=name) for name in sorted(CASES)),
    *(pytest.param(name, OTHER, id=f"{name}, the other cases", marks=pytest.mark.long) for name in ("gan", "sft")),
]


@pytest.mark.fault(2)
@pytest.mark.parametrize(("name", "cases"), EVERY)
def test_one_process(name: str, cases: Cases, tmp_path: Path) -> None:
    (seen,) = processes.share(interrupt_everywhere, 1, name, str(tmp_path), cases)
    assert len(seen) == 3 * len(cases)


@pytest.mark.fault(2)
@pytest.mark.parametrize(("name", "cases"), EVERY)
def test_two_processes(name: str, cases: Cases, tmp_path: Path) -> None:
    first, second = processes.share(interrupt_everywhere, 2, name, str(tmp_path), cases)
    assert first == second and len(first) == 2 * len(cases)


@pytest.mark.parametrize(
    ("name", "world", "cases"),
    [
        pytest.param("gan", 1, ((0, 1), (2, 1)), marks=pytest.mark.fault(2)),
        pytest.param("sft", 2, ((1, 4), (3, 1)), marks=pytest.mark.long),
        pytest.param("dpo", 1, ((1, 1), (3, 4)), marks=pytest.mark.long),
        pytest.param("causal", 2, ((0, 1), (2, 1)), marks=pytest.mark.long),
    ],
)
def test_bf16(name: str, world: int, cases: Cases, tmp_path: Path) -> None:
    for seen in processes.share(interrupt_everywhere, world, name, str(tmp_path), cases, "bf16"):
        assert len(seen) == len(cases) * (3 if world == 1 else 2)


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        pytest.param("sft", ((1, 1), (3, 4)), marks=pytest.mark.fault(2)),
        pytest.param("causal", ((0, 4), (2, 1)), marks=pytest.mark.long),
        pytest.param("dpo", ((1, 1), (3, 4)), marks=pytest.mark.long),
        pytest.param("grpo", ((1, 4), (3, 1)), marks=pytest.mark.long),
    ],
)
def test_two_processes_that_share_sequences(name: str, cases: Cases, tmp_path: Path) -> None:
    more: dict[str, Any] = {"sequence_parallel_size": 2}
    for seen in processes.share(interrupt_everywhere, 2, name, str(tmp_path), cases, **more):
        assert len(seen) == 2 * len(cases)


STREAM = {"stream_buffer": 3, "pack_samples": True}


@pytest.mark.fault(2)
@pytest.mark.parametrize(
    ("data", "world", "stage"),
    [
        ({"pack_samples": True, "dl_num_workers": 2}, 1, 1),
        (STREAM, 2, 2),
        pytest.param({"pack_samples": True, "dl_num_workers": 2}, 2, 3, marks=pytest.mark.long),
        pytest.param(STREAM, 1, 0, marks=pytest.mark.long),
    ],
)
def test_packed_by_workers_and_streamed(data: dict[str, Any], world: int, stage: int, tmp_path: Path) -> None:
    more: dict[str, Any] = {"micro_batch_size": 1}
    if "stream_buffer" in data:
        source = {"name_or_path": str(tmp_path / "files" / "chats.jsonl"), "streaming": True}
        data, more["train_iters"] = {**data, "sources": [source]}, 8
    told = ("sft", str(tmp_path), ((stage, 1),), "fp32", data)
    for seen in processes.share(interrupt_everywhere, world, *told, **more):
        assert len(seen) == (3 if world == 1 else 2)
