"""Starts the command without its seconds of imports: forked from a process that has imported what a run does.

Sessions, parents, signals, exit codes and environment are those of ``python -m arctic_training``; so are those of the
ranks, which the launcher starts as its children. What only a new interpreter shows, such as variables that libraries
read when they are imported, is tested with one: see tests/launch and tests/cli.
"""

import atexit
import ctypes
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from arctic_training.distributed.signals import STOP_SIGNALS
from tests.forkserver import fork

ZYGOTE = "zygote"
"""The name of the process that the launcher's ranks are forked from, which a run of new interpreters does not have."""
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36


def rank_name(rank: int | str) -> str:
    """Returns the name of the process of a rank."""
    return f"rank {rank}"


class Command:
    """A start of the command with the arguments ``words``; it has the methods of `subprocess.Popen` that tests use."""

    def __init__(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str], stdout: Path, stderr: Path
    ) -> None:
        for file in (stdout, stderr):
            file.write_bytes(b"")
        self._outputs = stdout, stderr
        self._process = fork(_run_command, (list(words), folder, stderr), environment, stdout)
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code. Raises `TimeoutError` after ``timeout`` seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} is still running after {timeout} s")
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Returns what the process wrote to standard output and to standard error until its end."""
        self.wait(timeout)
        output, errors = (file.read_text(errors="replace") for file in self._outputs)
        return output, errors

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run_command(words: list[str], folder: Path, stderr: Path) -> int:
    with open(stderr, "ab") as file:
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = ["arctic_training", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background processes ignore Ctrl-C
    if "--num_gpus" in words:
        _fork_ranks()
    from arctic_training.cli.main import main

    return _until_exit(main)


def _until_exit(main: Any) -> int:
    """Returns the exit code of ``main`` after what an interpreter runs at its exit."""
    try:
        return int(main())
    finally:
        atexit._run_exitfuncs()


def _fork_ranks() -> None:
    """Has the launcher of this process fork ranks from a copy of the process as it is now."""
    from arctic_training.launch import launcher

    mine, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    command = os.getpid()
    if os.fork() == 0:
        mine.close()
        _serve(others, command)
    others.close()
    launcher.subprocess = SimpleNamespace(Popen=partial(_popen, mine))


def _popen(zygote: socket.socket, command: Sequence[str], **options: Any) -> Any:
    if command[1:3] == ["-m", "arctic_training.launch.worker"]:
        return _Rank(zygote, command[3:], **options)
    return subprocess.Popen(command, **options)


class _Rank:
    """A rank, which is a child of this process; it has the methods of `subprocess.Popen` that the launcher uses."""

    def __init__(
        self,
        zygote: socket.socket,
        words: Sequence[str],
        *,
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        start_new_session: bool,
    ) -> None:
        assert start_new_session
        socket.send_fds(zygote, [pickle.dumps((list(words), dict(env), list(pass_fds)))], pass_fds)
        self.pid = int(zygote.recv(100))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._collect(os.WNOHANG)

    def wait(self) -> int | None:
        return self._collect(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _collect(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def _serve(requests: socket.socket, command: int) -> None:
    """Forks a rank for each request, and ends with the command.

    The parent of a rank ends at once; the command, which is the next ancestor that adopts orphans, becomes its parent.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NAME, ZYGOTE.encode())
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in STOP_SIGNALS:  # of the command's process group
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == command:
        message, received, _, _ = socket.recv_fds(requests, 1 << 20, 8)
        if not message:
            break
        reader, writer = os.pipe()
        parent = os.fork()
        if parent == 0:
            requests.close()
            rank = multiprocessing.get_context("fork").Process(target=_run_rank, args=(message, received, command))
            rank.start()
            os.write(writer, str(rank.pid).encode())
            os._exit(0)
        os.waitpid(parent, 0)
        requests.send(os.read(reader, 100))
        for descriptor in (reader, writer, *received):
            os.close(descriptor)
    os._exit(0)


def _run_rank(message: bytes, received: list[int], command: int) -> None:
    words, environment, descriptors = pickle.loads(message)
    os.setsid()
    for old, new in zip(received, descriptors, strict=True):
        os.dup2(old, new)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, rank_name(environment["RANK"]).encode())
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # it is found anew, by this environment
    sys.argv = ["arctic_training.launch.worker", *words]
    while os.getppid() != command:
        pass
    from arctic_training.launch.worker import main

    sys.exit(_until_exit(main))
