"""Starts the processes of a run: this one, several on this machine, or DeepSpeed's launcher for several machines."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from arctic_training.callback.time_limit import STOPPED_EARLY
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.display.starting import close_starting
from arctic_training.distributed import environment
from arctic_training.distributed.report import CHANNEL
from arctic_training.distributed.signals import STOP_SIGNALS, handle_signals
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import InputError
from arctic_training.launch.arguments import Arguments
from arctic_training.launch.threads import openmp_settings
from arctic_training.launch.worker import LAUNCHER, run

_GRACE_PERIOD = 2.5
"""Seconds that the other processes have to exit by themselves once one has failed or reported a failure."""
_POLL_INTERVAL = 0.05
_HOST = re.compile(r"\S+\s+slots=\d+(\s*#.*)?")
"""A line of a host file."""


def launch(args: Arguments, config: TrainerConfig) -> int:
    """Trains in this process, or in the processes that ``args`` ask for, and returns the exit code.

    Raises `InputError` when they cannot be started.
    """
    check_launch(args)
    # the only process of another launcher starts no others unasked, however many GPUs there are
    is_launched = _is_rank() or environment.has_rank()
    if args.command == "process-data" or (is_launched and not _starts_others(args)):
        return _run_here(args, config)
    if args.launcher_args or args.num_nodes > 1:
        return _launch_with_deepspeed(args)
    count = _num_processes(args.num_gpus)
    if count == 1:
        return _run_here(args, config)
    require_groups(config, count)
    return _launch_local_workers(args, count)


def check_launch(args: Arguments) -> None:
    """Raises `InputError` for processes that cannot be started, as far as environment, ``args`` and files show it."""
    if problem := environment.rank_problem():
        raise InputError(problem)
    if _starts_others(args) and _is_rank():
        raise InputError("--num_gpus: this process is one rank of a run already; its launcher sets their number")
    _check_host_files(args.launcher_args)


def _starts_others(args: Arguments) -> bool:
    return bool(args.num_gpus or args.launcher_args or args.num_nodes > 1)


def _is_rank() -> bool:
    from arctic_training.distributed import process_group

    return max(environment.world_size(), process_group.world_size()) > 1


def _run_here(args: Arguments, config: TrainerConfig) -> int:
    return run(config, command=args.command, debug=args.debug, profile=args.python_profile)


def _num_processes(num_gpus: int | None) -> int:
    import torch

    available = torch.cuda.device_count()
    if num_gpus and available and num_gpus > available:
        raise InputError(f"--num_gpus {num_gpus}: this machine has {available} GPUs; expected at most {available}")
    return num_gpus or available or 1


def require_groups(config: TrainerConfig, count: int) -> None:
    """Raises, before any process is started, the `InputError` that ``count`` of them would raise, which cannot form the
    groups that share sequences or a model, or do not make the batch size that the recipe states."""
    from arctic_training.config.get_config import place_errors
    from arctic_training.distributed.sequence_parallel import check_world_size
    from arctic_training.engine.config import deepspeed_config

    with place_errors(config):
        check_world_size(config.sequence_parallel_size, count)
        config.mesh.check_processes(count, sequence_parallel_size=config.sequence_parallel_size)
        deepspeed_config(config, world=count)


def _worker_environment(rank: int, count: int, port: int) -> dict[str, str]:
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "LOCAL_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        LAUNCHER: os.getpid(),
    }
    # what another launcher set for this process does not hold for those that it starts
    variables = environment.without_launcher_variables() | {name: str(value) for name, value in own.items()}
    return variables | openmp_settings(variables)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _require_free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"--master_port {port}: {error.strerror}; remove it to use a free port") from None
    return port


@dataclass
class _Worker:
    """A process of the run, with the pipe on which it reports a failure."""

    rank: int
    process: subprocess.Popen[bytes]
    channel: int
    received: bytes = b""

    @property
    def failed(self) -> bool:
        """Returns whether it has reported a failure, or has exited with a code that no run that ends in order has."""
        if self.failure() is not None:  # its exit may take seconds
            return True
        return self.process.poll() not in (None, 0, STOPPED_EARLY, *(128 + number for number in STOP_SIGNALS))

    def failure(self) -> dict[str, Any] | None:
        """Returns the failure that it has reported (see `report`); None without one."""
        with contextlib.suppress(BlockingIOError):
            self.received += os.read(self.channel, 1 << 18)
        try:
            return dict(json.loads(self.received))
        except ValueError:  # empty or incomplete
            return None


def _launch_local_workers(args: Arguments, count: int) -> int:
    """Runs the workers. The first signal is relayed to them; the second kills them."""
    port = _require_free(args.master_port) if args.master_port else _free_port()
    close_starting()  # the first process has a line of its own
    workers: list[_Worker] = []
    received = 0

    def relay(number: int, frame: FrameType | None) -> None:
        nonlocal received
        _send(workers, signal.SIGKILL if received else number)
        received = received or number

    with handle_signals(relay):
        for rank in range(count):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            variables = _worker_environment(rank, count, port) | {CHANNEL: str(writer)}
            command = [sys.executable, "-m", "arctic_training.launch.worker", *args.for_one_process()]
            # a session of its own: a Ctrl-C of the terminal arrives once, through this process
            process = subprocess.Popen(command, env=variables, pass_fds=[writer], start_new_session=True)
            os.close(writer)
            workers.append(_Worker(rank, process, reader))
        if received:  # while they were being started
            _send(workers, received)
        while any(worker.process.poll() is None for worker in workers):
            if any(worker.failed for worker in workers):
                break
            time.sleep(_POLL_INTERVAL)
        failed = [worker for worker in workers if worker.failed]
        _terminate_workers(workers)
        return _exit_code(workers, failed, received)


def _send(workers: list[_Worker], number: int) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(number)


def _terminate_workers(workers: list[_Worker]) -> None:
    """Gives the workers that are left time to notice and to report a failure, then kills them."""
    deadline = time.monotonic() + _GRACE_PERIOD
    while time.monotonic() < deadline and any(worker.process.poll() is None for worker in workers):
        time.sleep(_POLL_INTERVAL)
    _send(workers, signal.SIGKILL)
    for worker in workers:
        worker.process.wait()


def _exit_code(workers: list[_Worker], failed: list[_Worker], received: int) -> int:
    """Prints the first failure and returns the exit code of the run.

    ``failed`` are the workers that failed by themselves; ``received`` is the signal that the launcher got, or 0.
    """
    failures = {worker.rank: failure for worker in workers if (failure := worker.failure()) is not None}
    silent = [worker for worker in failed if worker.rank not in failures]
    if failures and not (silent and all(failure["echo"] for failure in failures.values())):
        first = min(failures.values(), key=lambda failure: (failure["echo"], failure["time"]))
        lowest = min(failure["rank"] for failure in failures.values() if failure["text"] == first["text"])
        prefix = "" if first["known"] and lowest == 0 else f"[rank {lowest}] "
        print(f"{prefix}{first['text']}", file=sys.stderr)
        return int(first["code"])
    if received and any(worker.process.returncode for worker in workers):  # else the run was complete already
        return 128 + received
    if silent:
        code = int(silent[0].process.returncode)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        print(f"[rank {silent[0].rank}] {how}; the other processes were ended too", file=sys.stderr)
        return 128 - code if code < 0 else code
    return max(int(worker.process.returncode) for worker in workers)


def _check_host_files(launcher_args: list[str]) -> None:
    """Raises `InputError` for a host file that cannot be read."""
    words = [part for word in launcher_args for part in (word.split("=", 1) if word[:11] == "--hostfile=" else [word])]
    for name, file in pairwise(words):
        if name not in ("--hostfile", "-H"):
            continue
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise InputError(f"{name} {file}: {getattr(error, 'strerror', None) or error}") from None
        for number, line in enumerate(map(str.strip, lines), 1):
            if line and not line.startswith("#") and not _HOST.fullmatch(line):
                raise InputError(f"{file}:{number}: {short_repr(line)}: expected `host slots=GPUs`")


def _launch_with_deepspeed(args: Arguments) -> int:
    """Runs DeepSpeed's launcher, and relays signals to all its processes, which it does not do itself."""
    options = {
        "--num_gpus": args.num_gpus,
        "--num_nodes": args.num_nodes if args.num_nodes > 1 else None,
        "--master_port": args.master_port,
    }
    own = [word for name, value in options.items() if value for word in (name, str(value))]
    close_starting()
    words = [*args.launcher_args, *own, "--module", "arctic_training.launch.worker", *args.for_one_process()]
    runner = subprocess.Popen([sys.executable, "-m", "deepspeed.launcher.runner", *words], start_new_session=True)
    received = 0

    def relay(number: int, frame: FrameType | None) -> None:
        nonlocal received
        with contextlib.suppress(ProcessLookupError):
            os.killpg(runner.pid, signal.SIGKILL if received else number)
        received = received or number

    with handle_signals(relay):
        code = runner.wait()
    return 128 + received if received else 128 - code if code < 0 else code
