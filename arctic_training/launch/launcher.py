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
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from arctic_training.callback.time_limit import STOPPED_EARLY
from arctic_training.distributed import environment
from arctic_training.distributed.signals import STOP_SIGNALS, handle_signals
from arctic_training.errors.report import CHANNEL
from arctic_training.errors.types import InputError
from arctic_training.launch.arguments import Arguments
from arctic_training.launch.threads import openmp_settings
from arctic_training.launch.worker import LAUNCHER, run

_GRACE = 2.5
"""Seconds that processes have to end by themselves when one of them has failed, or told that it does."""
_PAUSE = 0.05
_HOST = re.compile(r"\S+\s+slots=\d+(\s*#.*)?")
"""A line of a host file."""
_PLACE = (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
"""What launchers say in the environment: which process this is, and of how many."""
_OF_A_LAUNCHER = re.compile("TORCHELASTIC_.*|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_(RANK|WORLD_SIZE|NAME)|CROSS_(RANK|SIZE)")
"""The other variables that torchrun and DeepSpeed's launcher set for a process."""


def launch(said: Arguments, config: Any) -> int:
    """Run the recipe in as many processes as is said; the exit code. Raises `InputError`."""
    from arctic_training.distributed import process_group

    _check_rank_variables(os.environ)
    starts = said.num_gpus or said.passed or said.num_nodes > 1
    several = max(environment.world_size(), process_group.world_size()) > 1
    if starts and several:
        raise InputError("--num_gpus: this process is one rank of a run already; its launcher says how many there are")
    # the only process of another launcher starts no others unasked, however many GPUs there are
    placed = several or {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    if said.command == "process-data" or (placed and not starts):
        return run(config, command=said.command, debug=said.debug, profile=said.python_profile)
    if said.passed or said.num_nodes > 1:
        return _with_deepspeed(said)
    count = _processes(said.num_gpus)
    if count == 1:
        return run(config, command=said.command, debug=said.debug, profile=said.python_profile)
    _require_groups(config, count)
    return _launch_local_workers(said, count)


def _check_rank_variables(variables: Mapping[str, str]) -> None:
    """Raises `InputError` when what a launcher says of this process makes no sense."""
    told = {name: variables[name] for names in _PLACE for name in names if name in variables}
    for name, value in told.items():
        if not (value.isascii() and value.isdecimal()):
            raise InputError(f"{name} is {value!r} in the environment; a whole number is wanted, as a launcher sets it")
    for rank, world in _PLACE:
        if rank in told and world in told and int(told[rank]) >= int(told[world]):
            raise InputError(f"{rank} is {told[rank]} and {world} {told[world]} in the environment; ranks begin at 0")


def _processes(wanted: int | None) -> int:
    import torch

    there = torch.cuda.device_count()
    if wanted and there and wanted > there:
        raise InputError(f"--num_gpus {wanted}: this machine has {there}; {there} or fewer are wanted")
    return wanted or there or 1


def _require_groups(config: Any, count: int) -> None:
    """What the processes would refuse too, before there are any. Raises `InputError`."""
    from arctic_training.config.checks.location import place
    from arctic_training.distributed.sequence_parallel import check_world_size

    try:
        check_world_size(config.sequence_parallel_size, count)
    except InputError as error:
        place(error, config)
        raise


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
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
    # what another launcher says of this process is not true of those that it starts
    inherited = {name: value for name, value in os.environ.items() if not _OF_A_LAUNCHER.fullmatch(name)}
    variables = inherited | {name: str(value) for name, value in own.items()}
    return variables | openmp_settings(variables)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class _Child:
    rank: int
    process: subprocess.Popen[bytes]
    channel: int
    received: bytes = b""

    @property
    def failed(self) -> bool:
        """Told of a failure, or ended otherwise than well, or in good order before its time."""
        if self.told() is not None:  # its end may take it seconds
            return True
        return self.process.poll() not in (None, 0, STOPPED_EARLY, *(128 + number for number in STOP_SIGNALS))

    def told(self) -> dict[str, Any] | None:
        with contextlib.suppress(BlockingIOError):
            self.received += os.read(self.channel, 1 << 18)
        try:
            return dict(json.loads(self.received))
        except ValueError:  # nothing, or not all of it
            return None


class _Signals:
    """Passes signals on to the children, once; the second ends them at once."""

    def __init__(self, children: list[_Child]) -> None:
        self.children = children
        self.received = 0

    def pass_on(self, number: int, frame: Any) -> None:
        _send(self.children, signal.SIGKILL if self.received else number)
        self.received = self.received or number


def _require_free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"--master_port {port}: {error.strerror}; leave it out for a free one") from None
    return port


def _launch_local_workers(said: Arguments, count: int) -> int:
    port = _require_free(said.master_port) if said.master_port else _free_port()
    children: list[_Child] = []
    signals = _Signals(children)
    with handle_signals(signals.pass_on):
        for rank in range(count):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            told = _environment(rank, count, port) | {CHANNEL: str(writer)}
            command = [sys.executable, "-m", "arctic_training.launch.worker", *said.for_one_process()]
            # a session of its own: a Ctrl-C of the terminal comes once, through this process
            process = subprocess.Popen(command, env=told, pass_fds=[writer], start_new_session=True)
            os.close(writer)
            children.append(_Child(rank, process, reader))
        if signals.received:  # while they were being started
            _send(children, signals.received)
        while any(child.process.poll() is None for child in children):
            if any(child.failed for child in children):
                break
            time.sleep(_PAUSE)
        failed = [child for child in children if child.failed]
        _terminate_workers(children)
        return _exit_code(children, failed, signals.received)


def _send(children: list[_Child], number: int) -> None:
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(number)


def _terminate_workers(children: list[_Child]) -> None:
    """Give those that are left time to notice, and to tell what they know; then end them."""
    deadline = time.monotonic() + _GRACE
    while time.monotonic() < deadline and any(child.process.poll() is None for child in children):
        time.sleep(_PAUSE)
    _send(children, signal.SIGKILL)
    for child in children:
        child.process.wait()


def _exit_code(children: list[_Child], failed: list[_Child], received: int) -> int:
    """Tell the first failure, and find the exit code. ``failed`` are those that ended badly by themselves."""
    told = {child.rank: said for child in children if (said := child.told()) is not None}
    silent = [child for child in failed if child.rank not in told]
    if told and not (silent and all(said["echo"] for said in told.values())):
        first = min(told.values(), key=lambda said: (said["echo"], said["time"]))
        number = min(said["rank"] for said in told.values() if said["text"] == first["text"])  # what several found
        rank = "" if first["known"] and number == 0 else f"[rank {number}] "
        print(f"{rank}{first['text']}", file=sys.stderr)
        return int(first["code"])
    if received and any(child.process.returncode for child in children):  # else the run was at its end already
        return 128 + received
    if silent:
        code = int(silent[0].process.returncode)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        print(f"[rank {silent[0].rank}] {how}; the other processes were ended too", file=sys.stderr)
        return 128 - code if code < 0 else code
    return max(int(child.process.returncode) for child in children)


def _require_hosts(passed: list[str]) -> None:
    """Raises `InputError` for a host file that cannot be read."""
    words = [part for word in passed for part in (word.split("=", 1) if word.startswith("--hostfile=") else [word])]
    for name, file in pairwise(words):
        if name not in ("--hostfile", "-H"):
            continue
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise InputError(f"{name} {file}: {getattr(error, 'strerror', None) or error}") from None
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.lstrip().startswith("#") and not _HOST.fullmatch(line.strip()):
                raise InputError(f"{file}:{number}: {line.strip()!r:.60}: `host slots=GPUs` is wanted")


def _with_deepspeed(said: Arguments) -> int:
    """Hand over to DeepSpeed's launcher, and pass signals on to all that it starts, which it does not do."""
    _require_hosts(said.passed)
    counts = [*(["--num_gpus", str(said.num_gpus)] if said.num_gpus else [])]
    counts += ["--num_nodes", str(said.num_nodes)] if said.num_nodes > 1 else []
    counts += ["--master_port", str(said.master_port)] if said.master_port else []
    words = [*said.passed, *counts, "--module", "arctic_training.launch.worker", *said.for_one_process()]
    runner = subprocess.Popen([sys.executable, "-m", "deepspeed.launcher.runner", *words], start_new_session=True)
    received = 0

    def pass_on(number: int, frame: Any) -> None:
        nonlocal received
        with contextlib.suppress(ProcessLookupError):
            os.killpg(runner.pid, signal.SIGKILL if received else number)
        received = received or number

    with handle_signals(pass_on):
        code = runner.wait()
    return 128 + received if received else 128 - code if code < 0 else code
