"""A run in the process of a program: it uses the process group that exists, and leaves the program as it was."""

import contextlib
import faulthandler
import functools
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import loguru
import numpy as np
import pytest
import torch
import torch.distributed as dist

from arctic_training.distributed import collectives, process_group
from arctic_training.distributed.report import report
from arctic_training.errors.types import InputError
from tests import processes
from tests.contract.cases import recipe


def state() -> dict[str, Any]:
    """What a process has one of, and a program may have set."""
    root = logging.getLogger()
    return {
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "hooks": [sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook, faulthandler.is_enabled()],
        "streams": [sys.stdout, sys.stderr, os.getcwd()],
        "path": list(sys.path),
        "warnings": list(warnings.filters),
        "log": [list(root.handlers), root.level, logging.root.manager.disable, logging.getLoggerClass()],
        "loguru": [dict(loguru.logger._core.handlers), loguru.logger._core.patcher, dict(loguru.logger._core.extra)],  # type: ignore[attr-defined]
        "processes": [multiprocessing.get_start_method(allow_none=True), multiprocessing.current_process()._config],  # type: ignore[attr-defined]
        "torch": [
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(),
            torch.multiprocessing.get_sharing_strategy(),
        ],
    }


def randomness() -> list[Any]:
    return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]


def train_in_a_program(folder: Path) -> None:
    """Runs a program that sets every variable and trains as the README does; compares its state with that before."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: None)
    sys.excepthook = lambda *error: sys.__excepthook__(*error)
    faulthandler.enable()
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.filterwarnings("error", "of the program")
    os.environ["LOCAL_SIZE"] = "7"
    heard: list[str] = []
    loguru.logger.add(heard.append, level="INFO", format="{message}")
    import accelerate.scheduler  # noqa: F401  these filter warnings when they are first imported
    import sympy  # noqa: F401

    with contextlib.suppress(ImportError):  # which transformers imports where it is installed
        import sklearn.metrics  # noqa: F401
    with contextlib.suppress(ImportError):  # which DeepSpeed imports where it is installed
        import mlflow  # noqa: F401

    from arctic_training import SFTTrainer, get_config

    more = {"deepspeed": {"zero_optimization": {"stage": 1}}, "train_iters": 1, "epochs": 1}
    run = {**recipe("sft", folder, output_dir=str(folder / "run"), **more), "logger": {"level": "INFO"}}
    run["checkpoint"] = {"type": "deepspeed", "save_end_of_training": True}
    config = get_config(run)
    for name in [one for one in sys.modules if one.partition(".")[0] == "rich"]:
        del sys.modules[name]  # it draws a random number when it is imported, which the run does
    before, draws = state(), randomness()
    trainer = SFTTrainer(config)
    trainer.train()
    require_same(before)
    trainer.close()
    require_same(before)
    assert randomness() == draws
    again = {**run, "output_dir": str(folder / "again"), "model": {"name_or_path": "./nowhere"}}
    with pytest.raises(InputError, match="no such file or folder"):
        SFTTrainer(get_config(again))
    require_same(before)
    assert randomness() == draws and logging.getLogger("DeepSpeed").level == logging.WARNING
    loguru.logger.success("of the program")
    assert heard[-1] == "of the program\n" and any("10 of 10 rows" in line for line in heard)


MODES: list[tuple[Any, ...]] = [
    (),
    (torch.no_grad,),
    (torch.inference_mode,),
    (functools.partial(torch.autocast, "cpu", torch.bfloat16),),
    (torch.inference_mode, functools.partial(torch.autocast, "cpu", torch.bfloat16)),
]


def test_a_run_computes_as_the_recipe_says_in_every_mode_of_torch(tmp_path: Path) -> None:
    """A program may have set a mode for code of its own: gradients and dtypes of the run are those of the recipe."""
    from arctic_training import SFTTrainer, get_config

    more = {"deepspeed": {"zero_optimization": {"stage": 1}}, "train_iters": 2, "epochs": 1}
    seen = []
    for number, modes in enumerate(MODES):
        run = recipe("sft", tmp_path, output_dir=str(tmp_path / f"run{number}"), **more)
        run["data"]["eval_sources"] = run["data"]["sources"]
        with contextlib.ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode())
            before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
            trainer = SFTTrainer(get_config(run))
            trainer.train()
            weights = [parameter.detach().tolist() for parameter in trainer.model.module.parameters()]
            seen.append((trainer.evaluate(), weights))
            trainer.close()
            after = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
            assert after == before
    assert all(one == seen[0] for one in seen)
    assert seen[0][0]


def require_same(before: dict[str, Any]) -> None:
    now = state()
    changed = [f"{name}: {value} became {now[name]}" for name, value in before.items() if now[name] != value]
    assert not changed, "\n".join(changed)


def test_a_run_leaves_the_program_as_it_was(tmp_path: Path) -> None:
    code = f"import pathlib, test_guest; test_guest.train_in_a_program(pathlib.Path({str(tmp_path)!r}))"
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "HF_HUB_OFFLINE") if name in os.environ}
    variables = {
        "PYTHONPATH": f"{processes.ROOT}:{Path(__file__).parent}",
        "CUDA_VISIBLE_DEVICES": "",
        "ARCTIC_TRAINING_CACHE": str(tmp_path),
    }
    recipe("sft", tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env={**clean, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = [line.rpartition(" - ")[2] for line in done.stderr.splitlines()]
    assert printed and len(set(printed)) == len(printed)


def test_an_error_is_told_by_the_rank_in_the_process_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    assert report(InputError("no such thing")) == 2
    assert capsys.readouterr().err == "[rank 3] no such thing\n"


def meet_by_a_file(folder: Path) -> dict[str, Any]:
    """Two processes with a process group of their own making: of two runs in them, nothing is said to the first, and
    what is not so to the second."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_SIZE")
    launched = {name: os.environ.pop(name) for name in names if name in os.environ}
    number = int(launched["RANK"])
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=number, world_size=2)
    results: dict[str, Any] = {"early": (process_group.rank(), process_group.world_size(), process_group.is_main())}
    from arctic_training import SFTTrainer, get_config

    more = {"micro_batch_size": 1, "train_iters": 1, "epochs": 1, "deepspeed": {"zero_optimization": {"stage": 3}}}
    for turn, variables in enumerate(({}, {"RANK": "0", "WORLD_SIZE": "1"})):
        os.environ.update(variables)
        before = dict(os.environ)
        trainer = SFTTrainer(get_config(recipe("sft", folder, output_dir=str(folder / f"run{turn}"), **more)))
        who = (process_group.rank(), process_group.world_size(), process_group.local_rank(), trainer.data_rank)
        gathered = collectives.all_gather_object(number)
        trainer.train()
        trainer.close()
        process_group.destroy_process_group()
        logs = sorted(path.name for path in (folder / f"run{turn}" / "logs").iterdir())
        results[f"run {turn}"] = (who, gathered, logs, dict(os.environ) == before)
    alive = torch.tensor([number + 1])
    dist.all_reduce(alive)  # the group is still the program's
    results["sum"] = int(alive)
    os.environ.update(launched)
    return results


def test_a_run_follows_the_process_group_that_there_is(tmp_path: Path) -> None:
    recipe("sft", tmp_path)
    for rank, results in enumerate(processes.run(meet_by_a_file, 2, tmp_path)):
        run = ((rank, 2, rank, rank), [0, 1], ["rank_0.log", "rank_1.log"], True)
        assert results == {"early": (rank, 2, rank == 0), "run 0": run, "run 1": run, "sum": 3}


def test_a_library_that_nothing_needs_is_not_imported_with_another() -> None:
    assert "wave" not in sys.modules
    with process_group.hidden_module("wave"), pytest.raises(ImportError):
        import wave
    import wave

    with process_group.hidden_module("wave"):
        assert sys.modules["wave"] is wave
