"""Runs a recipe once for each combination of values, one run after the other, and compares them in a table."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from types import FrameType

from arctic_training.callback.time_limit import STOPPED_EARLY
from arctic_training.config.sections.changes import differences, resume_relevant_config
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.distributed import environment
from arctic_training.distributed.signals import STOP_SIGNALS, handle_signals, set_parent_death_signal
from arctic_training.errors.redaction import redact
from arctic_training.errors.types import ArcticError, InputError
from arctic_training.launch.arguments import Arguments
from arctic_training.launch.combinations import Combination, combine
from arctic_training.launch.comparison import metric_of, result_of, write_table
from arctic_training.launch.launcher import launch
from arctic_training.tracker.records import METRICS, read_records
from arctic_training.trainer.session import resolve_run_dir

_STOPPED = {STOPPED_EARLY, *(128 + number for number in STOP_SIGNALS)}
"""Exit codes of a run that was stopped and goes on when it is started again: the sweep ends with it."""


def sweep(args: Arguments, config: TrainerConfig) -> int:
    """Runs every combination of the values of ``args.sweep`` that is not finished, and prints a table of all.

    A run that was interrupted resumes from its checkpoints, where it has any. One that fails does not end the sweep; a
    signal does, when the run has saved. Returns 0, 1 where a run has failed, or the exit code of the run that was
    stopped. Raises `InputError` before the first run for combinations that cannot be run.
    """
    if environment.has_rank() or environment.is_slurm_step():
        raise InputError("--sweep: starts its runs itself; start it as one process, without a launcher")
    folder = resolve_run_dir(config)
    folder = folder if config.output_dir is not None else folder.with_name(f"{folder.name}_sweep")
    combinations = combine(args.recipe, args.overrides, args.sweep, folder)
    finished = _read_finished(folder)
    for one in combinations:
        if one.name in finished:
            _require_same_recipe(one, finished[one.name])
    stopped = 0
    for number, one in enumerate(combinations, 1):
        if one.name in finished:
            one.code = 0
            continue
        print(f"run {number} of {len(combinations)}: {one.name}", flush=True)
        one.code, received = _run(args, one)
        if one.code == 0:
            finished[one.name] = resume_relevant_config(one.config)
            _write_finished(folder, finished)
        stopped = one.code if one.code in _STOPPED else 128 + received if received else 0
        if stopped:
            break
    print(_table(combinations), end="")
    return stopped or int(any(one.code for one in combinations))


def _run(args: Arguments, one: Combination) -> tuple[int, int]:
    """Returns the exit code of a run, and the signal that was received meanwhile, or 0.

    The run has a process of its own, to which signals are relayed. It is forked: this process has imported what it
    needs, and uses no device.
    """
    own, received = copy(args), 0
    own.overrides, own.sweep = one.overrides, []
    process = multiprocessing.get_context("fork").Process(target=_main, args=(own, one.config, os.getpid()))

    def relay(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        if process.pid is not None and process.exitcode is None:
            os.kill(process.pid, number)

    with handle_signals(relay):
        process.start()
        process.join()
    code = process.exitcode or 0
    return 128 - code if code < 0 else code, received


def _main(args: Arguments, config: TrainerConfig, parent: int) -> None:
    os.setsid()  # a Ctrl-C of the terminal arrives once, through the sweep
    set_parent_death_signal(parent)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        code = launch(args, config)
    except ArcticError as error:
        print(redact(str(error)), file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _table(combinations: Sequence[Combination]) -> str:
    records = {one.name: read_records(one.folder / METRICS)[0] for one in combinations}
    metric, mode = metric_of(combinations[0].config, [record for several in records.values() for record in several])
    results = {name: result_of(several, metric, mode) for name, several in records.items()}
    states = {one.name: {None: "not run", 0: ""}.get(one.code, f"exit code {one.code}") for one in combinations}
    return write_table(results, states, metric, mode)


def _read_finished(folder: Path) -> dict[str, Mapping[str, object]]:
    """Returns the recipes of the runs that earlier starts have finished, by name. Raises `InputError`."""
    file = folder / "sweep.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["finished"]) if file.exists() else {}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{file}: not what a sweep has written; remove it") from None


def _write_finished(folder: Path, finished: Mapping[str, Mapping[str, object]]) -> None:
    temporary = folder / ".sweep.json"
    temporary.write_text(json.dumps({"finished": finished}, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / "sweep.json")


def _require_same_recipe(one: Combination, saved: Mapping[str, object]) -> None:
    """Raises `InputError` where a finished run had a recipe that trains something else."""
    change = next(differences(saved, one.config, resume_relevant_config(one.config)), None)
    if change is not None:
        raise InputError(f"{one.folder}: a finished run of another recipe ({change}); give another output_dir")
