"""A run that ends with the weights of its best evaluation, in memory and in what it exports."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arctic_training import Evaluator, get_config
from arctic_training.checkpoint import folder as disk
from arctic_training.distributed import process_group
from arctic_training.engine.zero import full_parameter
from arctic_training.errors.types import RecipeError
from arctic_training.registry import lookup
from tests import processes
from tests.contract.cases import recipe


class Best(Evaluator):
    """Scores the step: the second is the best."""

    name = "second_step_for_the_test"

    def __call__(self, trainer: Any) -> dict[str, float]:
        return {"score": {1: 0.5, 2: 0.9}.get(trainer.progress.step, 0.1)}


def settings(folder: Path, run: str = "run", **more: Any) -> dict[str, Any]:
    best = {"type": "restore_best", "monitor": "score", "mode": "max"}
    saved = [
        {"type": "deepspeed", "save_end_of_training": True},
        {"type": "huggingface", "save_end_of_training": True},
    ]
    keys: dict[str, Any] = {"train_iters": 3, "eval_interval": 1, "evaluators": [Best.name], "callbacks": [best]}
    return recipe("sft", folder / "files", output_dir=str(folder / run), **{**keys, "checkpoint": saved, **more})


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: full_parameter(one).clone() for name, one in trainer.model.module.named_parameters()}


def ends_with_the_best(folder: str, stage: int) -> None:
    process_group.init_process_group()
    if process_group.is_main():
        settings(Path(folder))
    process_group.barrier()
    config = settings(Path(folder), deepspeed={"zero_optimization": {"stage": stage}})
    trainer: Any = lookup("trainer", "sft")(get_config(config))  # type: ignore[call-arg]
    seen: list[dict[str, torch.Tensor]] = []
    trainer.listen("post-after_update", lambda it: seen.append(weights(it)))
    trainer.train()
    now = weights(trainer)
    trainer.close()
    assert all(torch.equal(now[name], seen[1][name]) for name in now)
    assert any(not torch.equal(now[name], seen[2][name]) for name in now)
    root = Path(folder) / "run" / "checkpoints"
    exported = load_file(root / "huggingface" / "step_3" / "model.safetensors")
    assert exported and all(torch.equal(exported[name], seen[1][name]) for name in exported)
    assert disk.read_manifest(root / "huggingface" / "step_3")["values"] == {"score": 0.9}
    assert disk.verify(root / "huggingface" / "step_3") is None
    assert disk.read_manifest(root / "deepspeed" / "step_3")["values"] == {"score": 0.1}
    if stage == 0:
        resumable = load_file(root / "deepspeed" / "step_3" / "model.safetensors")
        assert all(torch.equal(resumable[name], seen[2][name]) for name in resumable)


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 3)])
def test_the_weights_of_the_best_evaluation_are_there_at_the_end(world: int, stage: int, tmp_path: Path) -> None:
    processes.share(ends_with_the_best, world, str(tmp_path), stage)


def test_they_are_sharded_anew_by_another_layout(tmp_path: Path) -> None:
    saved = {"type": "deepspeed", "save_end_of_training": True, "auto_resume": True}
    more = {"checkpoint": saved, "train_iters": 3}
    processes.share(resumed, 2, str(tmp_path), {**more, "exit_iteration": 2}, 3)
    (before,) = processes.share(resumed, 1, str(tmp_path), {**more, "exit_iteration": 2}, 0)
    (after,) = processes.share(resumed, 1, str(tmp_path), more, 0)
    assert all(torch.equal(before[name], after[name]) for name in before)


def resumed(folder: str, more: dict[str, Any], stage: int) -> dict[str, torch.Tensor]:
    process_group.init_process_group()
    if process_group.is_main():
        settings(Path(folder))
    process_group.barrier()
    world = {"micro_batch_size": 2 // process_group.world_size(), "deepspeed": {"zero_optimization": {"stage": stage}}}
    trainer: Any = lookup("trainer", "sft")(get_config(settings(Path(folder), **more, **world)))  # type: ignore[call-arg]
    trainer.train()
    now = weights(trainer)
    trainer.close()
    return now


def test_averages_that_are_exported_are_refused(tmp_path: Path) -> None:
    callbacks = [{"type": "ema", "export": True}, {"type": "restore_best"}]
    config = settings(tmp_path, callbacks=callbacks, checkpoint=[])
    config["data"]["eval_sources"] = config["data"]["sources"]
    with pytest.raises(RecipeError, match="a callback ema has export: true, and both replace what is saved"):
        lookup("trainer", "sft")(get_config(config))  # type: ignore[call-arg]


def saved_afterwards(folder: str) -> tuple[list[float], list[float]]:
    """The norms of the weights of the best step, as they are in memory at the end and as a later checkpoint has them,
    in the model's precision and in the fp32 copies of the optimizer."""
    process_group.init_process_group()
    more = {"deepspeed": {"zero_optimization": {"stage": 1}}, "checkpoint": {"type": "deepspeed"}}
    own = settings(Path(folder), **more)
    own["model"]["dtype"] = "bf16"
    trainer: Any = lookup("trainer", "sft")(get_config(own))  # type: ignore[call-arg]
    trainer.train()
    trainer.checkpoint()
    now = norm(one for one in trainer.model.module.parameters() if one.requires_grad)
    trainer.close()
    saved = Path(folder) / "run" / "checkpoints" / "deepspeed" / "step_3"
    masters = torch.load(saved / "model_0.pt", weights_only=True)["shadows"]
    return [now, now], [norm(load_file(saved / "model.safetensors").values()), norm(masters)]


def norm(tensors: Iterable[torch.Tensor]) -> float:
    return sum(one.double().square().sum().item() for one in tensors)


def test_a_checkpoint_that_is_saved_afterwards_has_the_best_weights(tmp_path: Path) -> None:
    ((expected, saved),) = processes.share(saved_afterwards, 1, str(tmp_path))
    assert saved == pytest.approx(expected, rel=1e-12)
