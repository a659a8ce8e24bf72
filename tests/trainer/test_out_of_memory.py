"""Memory that is short, and workers that die: the message names what a person can change."""

import re
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import GANTrainer, GRPOTrainer, get_config
from arctic_training.errors.types import MemoryShortError
from arctic_training.trainer.out_of_memory import translate_oom_errors
from tests import processes
from tests.contract.cases import recipe

HUGE = 1 << 50


class Greedy(GANTrainer):
    """Allocates more memory than is free, in the part that is named."""

    name = "greedy_for_the_test"
    part = ""

    def loss(self, batch: Any) -> torch.Tensor:
        if self.part == "loss":
            torch.empty(HUGE)
        loss = super().loss(batch)
        if self.part == "backward":
            loss.register_hook(lambda grad: grad + torch.empty(HUGE)[0])
        if self.part == "step":
            step = self.model.step
            self.model.step = lambda: torch.empty(HUGE) and step()  # type: ignore[method-assign]
        return loss


def wants(folder: Path, part: str) -> str:
    Greedy.part = part
    trainer = Greedy(get_config(recipe("gan", folder / "files", output_dir=str(folder)) | {"type": Greedy.name}))
    try:
        trainer.train()
    except MemoryShortError as error:
        return str(error)
    finally:
        trainer.close()
    raise AssertionError("there was enough")


@pytest.mark.fault(29)
def test_answers_that_are_too_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = get_config(recipe("grpo", tmp_path, output_dir=str(tmp_path / "run"), gradient_accumulation_steps=2))
    trainer = GRPOTrainer(config)
    monkeypatch.setattr(type(trainer.model.module), "generate", lambda *_, **__: torch.empty(HUGE))
    with pytest.raises(MemoryShortError) as caught:
        trainer.train()
    trainer.close()
    first, advice = str(caught.value).splitlines()
    assert first.startswith("out of memory in generation of step 1, on 4 prompts with 3 completions each: ")
    assert "generation_batch_size: 1, the completions of a micro-batch at a time; a lower num_generations" in advice


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    ("part", "message"),
    [("loss", "the forward pass"), ("backward", "the backward pass"), ("step", "the optimizer's step")],
)
def test_memory_that_is_short_is_told_with_the_batch_and_what_takes_less(
    tmp_path: Path, part: str, message: str
) -> None:
    first, advice = wants(tmp_path, part).splitlines()
    start = f"out of memory in {message} of step 1, on a micro-batch of rows [4, 2], draw [4]: "
    assert first.startswith(start) and "can't allocate memory" in first
    assert ("micro_batch_size: 2 and gradient_accumulation_steps: 2, the same step" in advice) is (part != "step")
    assert advice.startswith("To use less memory: ") and "zero_optimization" in advice


def within(folder: Path, limit: int) -> str:
    """A real run of a model too wide for the address space that it is allowed."""
    settings = recipe(
        "gan", folder / "files", output_dir=str(folder), model={"type": "mlp", "sizes": [2, 30_000, 30_000, 2]}
    )
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (here + limit, before[1]))
    try:
        GANTrainer(get_config(settings))
    except MemoryShortError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    raise AssertionError("there was enough")


@pytest.mark.fault(29)
def test_a_model_that_does_not_fit_is_told_as_such(tmp_path: Path) -> None:
    (message,) = processes.run(within, 1, tmp_path, 1 << 30)
    assert re.match(r"out of memory in create_model: .*can't allocate memory.*\nTo use less memory: deepspeed", message)


def test_what_is_no_fault_of_memory_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"), translate_oom_errors():
        raise RuntimeError("shapes do not fit")
