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

STAGES = (0, 1, 2, 3)


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


def interrupt_everywhere(name: str, root: str, stages: tuple[int, ...], accumulations: tuple[int, ...]) -> list[str]:
    """Train whole, then go on from the checkpoints of several updates; returns what was compared."""
    from arctic_training import distributed

    seen, files = [], Path(root) / "files"
    distributed.init()
    if distributed.is_main():
        recipe(name, files)
    distributed.barrier()
    for stage in stages:
        for accumulate in accumulations:
            here = Path(root) / f"{name}_{stage}_{accumulate}"
            common: dict[str, Any] = {
                "gradient_accumulation_steps": accumulate,
                "deepspeed": {"zero_optimization": {"stage": stage}},
            }

            def told(run: str, **checkpoint: Any) -> dict[str, Any]:
                section = {"type": "deepspeed", "output_dir": str(here / run / "saved"), **checkpoint}  # noqa: B023
                return recipe(
                    name,
                    files,
                    output_dir=str(here / run),  # noqa: B023
                    checkpoint=section,
                    **common,  # noqa: B023
                )

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
                what = f"{name}, stage {stage}, accumulation {accumulate}, from update {update} of {last}"
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


@pytest.mark.parametrize("name", sorted(CASES))
def test_one_process(name: str, tmp_path: Path) -> None:
    (seen,) = processes.share(interrupt_everywhere, 1, name, str(tmp_path), STAGES, (1, 2), timeout=300)
    assert len(seen) == 3 * len(STAGES) * 2


@pytest.mark.parametrize("name", sorted(CASES))
def test_two_processes(name: str, tmp_path: Path) -> None:
    first, second = processes.share(interrupt_everywhere, 2, name, str(tmp_path), STAGES, (1, 2), timeout=400)
    assert first == second and len(first) == 2 * len(STAGES) * 2
