"""The watchdog: ends a run that hangs, with the rank that is stuck and the stack of every thread in the log."""

import atexit
import contextlib
import gc
import json
import os
import socket
import sys
import threading
import time
import traceback
import weakref
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from arctic_training.callback.hooks import Hooked
from arctic_training.distributed import heartbeat, process_group
from arctic_training.distributed.report import report
from arctic_training.errors.types import HangError

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_LIBRARIES = ("site-packages", "dist-packages", os.path.dirname(os.__file__))
_LIBRARY_FRAMES = 6
"""Frames of libraries that are shown at the innermost end of a stack."""
_ELLIPSIS = "      ...\n"
"""Stands for the other frames of libraries."""

_active: weakref.WeakSet["Watchdog"] = weakref.WeakSet()
_count = 0
_busy = False
_frames_lock = threading.Lock()


class Watchdog:
    """Watches one run from a thread; the training loop only leaves the time (see `heartbeat`).

    On several ranks a second thread exchanges reports through the store, so that the others can name a rank that is
    stopped and cannot speak for itself, and all of them learn that the run hangs.

    ``timeout`` is in seconds.
    """

    def __init__(self, trainer: Hooked, timeout: float) -> None:
        global _count
        _count += 1
        self.trainer, self.timeout = weakref.ref(trainer), timeout
        self.pause = min(5.0, max(0.2, timeout / 10))
        self.over = threading.Event()
        self.peers = _PeerMonitor(self, f"watch/{_count}") if process_group.world_size() > 1 else None
        self.threads = [threading.Thread(target=self._watch, name="watchdog", daemon=True)]
        if self.peers is not None:
            self.threads.append(threading.Thread(target=self.peers.exchange, name="watchdog-peers", daemon=True))
        heartbeat.record_heartbeat()
        for thread in self.threads:
            thread.start()
        _active.add(self)

    def current_step(self) -> int:
        """Returns the optimizer step in progress, counted from 1; 0 when the trainer has none yet."""
        progress = getattr(self.trainer(), "progress", None)
        return 0 if progress is None else int(progress.step) + 1

    def _watch(self) -> None:
        woke = time.monotonic()
        while not self.over.wait(self.pause):
            now = time.monotonic()
            trainer = self.trainer()
            if trainer is None:
                return
            # a process that does nothing for the run is not late; nor is one that was itself stopped, and continues
            if not (trainer._active_events or _busy) or now - woke > 4 * self.pause:
                heartbeat.record_heartbeat()
            woke = now
            if heartbeat.age() > self.timeout or (self.peers is not None and self.peers.hang):
                self._end_run()
            del trainer

    def _end_run(self) -> None:
        late = heartbeat.age()
        rank = f"[rank {process_group.rank()}] " if process_group.world_size() > 1 else ""
        write_stderr(f"{rank}the run hangs; the stack of each thread of process {os.getpid()}:\n{stacks()}")
        cause = "" if self.peers is None else self.peers.diagnose()
        position = f"step {self.current_step()}, phase {heartbeat.phase()}"
        cause = cause or f"the process has made no progress for {late:.0f} s at {position}"
        error = HangError(f"the run hangs: {cause} (hang_timeout: {self.timeout:g} s)")
        kill_children()
        os._exit(report(error))


class _PeerMonitor:
    """The reports that the ranks exchange through the store, over a connection of this thread's own.

    The report of a rank is a mapping: ``count`` (of its reports; 0: it has left), ``age`` (seconds since its last
    heartbeat), ``phase``, ``step``, ``process`` (pid and host), ``line`` (see `current_line`) and ``in_collective``.
    """

    def __init__(self, watchdog: Watchdog, prefix: str) -> None:
        self.watchdog, self.prefix = watchdog, prefix
        self.rank, self.world = process_group.rank(), process_group.world_size()
        self.hang = False
        """Some rank found that the run hangs, or has stopped to report."""
        self.reports: dict[int, tuple[float, dict[str, Any]]] = {}
        """The last report of each rank, and when it was first read."""
        self.exchanged = time.monotonic()
        """When the store last answered."""
        self.store = process_group.clone_store()

    def diagnose(self) -> str:
        """Tells all ranks that the run hangs, listens for a while, and returns which ranks are silent, else stuck."""
        self.hang = True
        if self.store is None:
            return ""
        time.sleep(2.5 * self.watchdog.pause)
        agent_has_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's, and not rank 0
        if time.monotonic() - self.exchanged > 2 * self.watchdog.pause and not agent_has_it:
            silent = {0: time.monotonic() - self.exchanged}
        else:
            silent = self._silent()
        if silent:
            return "; ".join(
                f"rank {rank} {self._process(rank)} has sent no heartbeat for {seconds:.0f} s; it was last seen at "
                f"{self._position(rank)}"
                for rank, seconds in sorted(silent.items())
            )
        stuck = {rank: one for rank, (_, one) in self.reports.items() if one["count"] and not one["in_collective"]}
        stuck = stuck or {rank: one for rank, (_, one) in self.reports.items()}
        return "; ".join(
            f"rank {rank} {self._process(rank)} has made no progress for {one['age']:.0f} s at {self._position(rank)}: "
            f"{one['line']}"
            for rank, one in sorted(stuck.items())
            if one["age"] >= 0.5 * max(other["age"] for other in stuck.values())
        )

    def _silent(self) -> dict[int, float]:
        """Returns the seconds since the last report of each rank that owes one."""
        now, longest = time.monotonic(), 2.2 * self.watchdog.pause
        return {rank: now - read for rank, (read, one) in self.reports.items() if now - read > longest and one["count"]}

    def _process(self, rank: int) -> str:
        return f"({self.reports[rank][1]['process']})" if rank in self.reports else ""

    def _position(self, rank: int) -> str:
        _, one = self.reports.get(rank, (0.0, {"phase": "startup", "step": 0}))
        return f"step {one['step']}, phase {one['phase']}"

    def exchange(self) -> None:
        """Reports that this rank lives, and reads the reports of the others, until the run is over."""
        count, process = 0, f"process {os.getpid()} on {socket.gethostname()}"
        while self.store is not None:
            count = 0 if self.watchdog.over.is_set() or self.watchdog.trainer() is None else count + 1
            line, in_collective = current_line()
            own = {
                "count": count,
                "age": heartbeat.age(),
                "phase": heartbeat.phase(),
                "step": self.watchdog.current_step(),
                "process": process,
                "line": line,
                "in_collective": in_collective,
            }
            try:
                self.store.set(f"{self.prefix}/{self.rank}", json.dumps(own))
                if self.hang:
                    self.store.set(f"{self.prefix}/hang", "yes")
                self._read_reports()
            except Exception:  # the process that holds the store has ended, which the collectives notice themselves
                return
            self.exchanged = time.monotonic()
            if not count:
                return
            self.watchdog.over.wait(self.watchdog.pause)

    def _read_reports(self) -> None:
        # in a large run all look at the first rank and it looks at all, until the run hangs
        assert self.store is not None
        for rank in range(self.world) if self.rank == 0 or self.hang else (0, self.rank):
            if not self.store.check([key := f"{self.prefix}/{rank}"]):
                continue
            one, now = json.loads(self.store.get(key)), time.monotonic()
            read, before = self.reports.get(rank, (now, {"count": -1}))
            self.reports[rank] = (read if before["count"] == one["count"] else now, one)
            if one["count"] and time.monotonic() - self.reports[rank][0] > self.watchdog.timeout:
                self.hang = True
        self.hang = self.hang or bool(self.store.check([f"{self.prefix}/hang"]))


def set_busy(busy: bool) -> None:
    """Says whether the process works for a run also outside the trainer's events, as when it starts or ends."""
    global _busy
    _busy = busy


@atexit.register
def _join_threads() -> None:
    """Stops the threads: one that is in the store's code when the interpreter ends would abort a good run."""
    watchdogs = list(_active)
    for watchdog in watchdogs:
        watchdog.over.set()
    for thread in (thread for watchdog in watchdogs for thread in watchdog.threads):
        thread.join(2.0)


def current_line() -> tuple[str, bool]:
    """Returns the innermost line of the main thread outside libraries, and whether a thread is in a collective."""
    frames = _current_frames()
    main = frames.get(threading.main_thread().ident or 0)
    own = [frame for frame, _ in traceback.walk_stack(main) if _is_user_code(frame)] if main is not None else []
    files = [frame.f_code.co_filename for frame in frames.values()]
    in_collective = any("torch/distributed/" in name or "deepspeed/comm/" in name for name in files)
    return _location(own[0]) if own else "", in_collective


def _current_frames() -> dict[int, FrameType]:
    """Returns the innermost frame of each thread, by the thread's identifier.

    Before Python 3.12 garbage may be collected inside `sys._current_frames`, which holds a lock that every thread needs
    to begin and to end. A finalizer that lets such a thread run would stop the process for good
    (https://github.com/python/cpython/issues/106883), so nothing is collected meanwhile.
    """
    if sys.version_info >= (3, 12):
        return sys._current_frames()
    with _frames_lock:
        collects = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if collects:
                gc.enable()


def stacks() -> str:
    """Returns the stack of each thread, that of the main one first; ``>`` marks lines outside libraries."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    threads: dict[str, list[str]] = {}
    for ident, frame in sorted(_current_frames().items(), key=lambda pair: pair[0] != main):
        name = names.get(ident, f"thread {ident}")
        if not name.startswith("watchdog"):
            threads.setdefault(_format_stack(frame), []).append(name)
    return "".join(f"  {', '.join(sharing)}:\n{stack}" for stack, sharing in threads.items())


def _format_stack(innermost: FrameType) -> str:
    # not traceback.format_stack: reading source files from a disk that hangs would hang the watchdog too
    frames = [frame for frame, _ in traceback.walk_stack(innermost)][::-1]
    lines: list[str] = []
    for index, frame in enumerate(frames):
        if _is_user_code(frame):
            lines.append(f"    > {_location(frame)}\n")
        elif index >= len(frames) - _LIBRARY_FRAMES:
            lines.append(f"      {_location(frame)}\n")
        elif lines and lines[-1] != _ELLIPSIS:
            lines.append(_ELLIPSIS)
    return "".join(lines)


def _location(frame: FrameType) -> str:
    name = frame.f_code.co_filename
    for root in (os.path.dirname(_PACKAGE[:-1]), *sys.path):
        if root and name.startswith(root + os.sep):
            name = name[len(root) + 1 :]
            break
    return f"{name}:{frame.f_lineno} {frame.f_code.co_name}"


def _is_user_code(frame: FrameType) -> bool:
    """Returns whether the frame is of this package or of the user's code, and not of a library."""
    name = frame.f_code.co_filename
    if name.startswith(_PACKAGE):
        return not name.endswith(("hooks.py", "watchdog.py"))
    return not name.startswith("<") and not any(part in name for part in _LIBRARIES)


def kill_children() -> None:
    """Kills the processes that this one has started, such as a loader's workers, and theirs."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()


def write_stderr(text: str) -> None:
    """Writes to standard error past the log, whose lock the hanging thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
