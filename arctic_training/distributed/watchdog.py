"""Ends a run that hangs: says which process gave no sign of life, and where each of the others stands."""

import atexit
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import weakref
from pathlib import Path
from types import FrameType
from typing import Any

from arctic_training.distributed import heartbeat, process_group
from arctic_training.errors.report import report
from arctic_training.errors.types import HangError

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_LIBRARIES = ("site-packages", "dist-packages", os.path.dirname(os.__file__))
_INNERMOST = 6
"""Frames of libraries that are shown at the end of a stack."""
_HIDDEN = "      ...\n"
"""Stands for those above."""

_running: weakref.WeakSet["Watchdog"] = weakref.WeakSet()
_watches = 0
_busy = False


class Watchdog:
    """Watches one run from a thread. The loop is not touched by it: it only leaves the time (see `heartbeat`).

    Through the processes' store each tells the others, from a second thread, that it lives and what it does. So one
    that is stopped, and cannot say a word, is named by the others; and when one finds that the run hangs, all know.
    """

    def __init__(self, trainer: Any, timeout: float) -> None:
        global _watches
        _watches += 1
        self.trainer, self.timeout = weakref.ref(trainer), timeout
        self.pause = min(5.0, max(0.2, timeout / 10))
        self.over = threading.Event()
        self.others = _PeerMonitor(self, f"watch/{_watches}") if process_group.world_size() > 1 else None
        self.threads = [threading.Thread(target=self._watch, name="watchdog", daemon=True)]
        if self.others is not None:
            self.threads.append(threading.Thread(target=self.others.talk, name="watchdog-others", daemon=True))
        heartbeat.record_heartbeat()
        for thread in self.threads:
            thread.start()
        _running.add(self)

    def update(self) -> int:
        """The update under way, from 1."""
        progress = getattr(self.trainer(), "progress", None)
        return 0 if progress is None else int(progress.step) + 1

    def _watch(self) -> None:
        woke = time.monotonic()
        while not self.over.wait(self.pause):
            now = time.monotonic()
            trainer = self.trainer()
            if trainer is None:
                return
            # a process that does nothing for the run is not late; nor is one that was itself stopped, and goes on
            if not (trainer._active_events or _busy) or now - woke > 4 * self.pause:
                heartbeat.record_heartbeat()
            woke = now
            if heartbeat.age() > self.timeout or (self.others is not None and self.others.hang):
                self._end_run()
            del trainer

    def _end_run(self) -> None:
        late = heartbeat.age()
        write(f"{_me()}the run hangs; where each thread of process {os.getpid()} stands:\n{stacks()}")
        text = ""
        if self.others is not None:
            text = self.others.diagnose()
        doing = f"{heartbeat.phase()}, update {self.update()}"
        text = text or f"the process has given no sign of life for {late:.0f} s, in {doing}"
        error = HangError(f"the run hangs: {text} (hang_timeout: {self.timeout:g} s)")
        end_children()
        os._exit(report(error))


class _PeerMonitor:
    """What the processes tell one another of themselves, through a connection of this thread's own."""

    def __init__(self, watch: Watchdog, place: str) -> None:
        self.watch, self.place = watch, place
        self.rank, self.world = process_group.rank(), process_group.world_size()
        self.hang = False
        """Some process found that the run hangs, or was not heard of any more."""
        self.told: dict[int, tuple[float, dict[str, Any]]] = {}
        """What each said last, and when it was first heard."""
        self.answered = time.monotonic()
        self.store = process_group.clone_store()

    def diagnose(self) -> str:
        """Tell all that the run hangs, listen for a while, and say of whom nothing is heard, or who is stuck."""
        self.hang = True
        if self.store is None:
            return ""
        time.sleep(2.5 * self.watch.pause)
        if time.monotonic() - self.answered > 2 * self.watch.pause and not _store_is_elsewhere():
            silent = {0: time.monotonic() - self.answered}
        else:
            silent = self._silent()
        if silent:
            return "; ".join(
                f"rank {n} {self._who(n)} has given no sign of life for {seconds:.0f} s; it was last in {self._what(n)}"
                for n, seconds in sorted(silent.items())
            )
        stuck = {rank: one for rank, (_, one) in self.told.items() if one["count"] and not one["waits"]}
        stuck = stuck or {rank: one for rank, (_, one) in self.told.items()}
        return "; ".join(
            f"rank {rank} {self._who(rank)} has not come on for {one['age']:.0f} s, in {self._what(rank)}: {one['at']}"
            for rank, one in sorted(stuck.items())
            if one["age"] >= 0.5 * max(other["age"] for other in stuck.values())
        )

    def _silent(self) -> dict[int, float]:
        now, silence = time.monotonic(), 2.2 * self.watch.pause
        return {n: now - when for n, (when, one) in self.told.items() if now - when > silence and one["count"]}

    def _who(self, rank: int) -> str:
        return f"({self.told[rank][1]['who']})" if rank in self.told else ""

    def _what(self, rank: int) -> str:
        one = self.told.get(rank, (0.0, {"doing": "its start", "update": 0}))[1]
        return f"{one['doing']}, update {one['update']}"

    def talk(self) -> None:
        """What the second thread does: say that this process lives, and hear of the others."""
        count, who = 0, f"process {os.getpid()} on {socket.gethostname()}"
        while self.store is not None:
            count = 0 if self.watch.over.is_set() or self.watch.trainer() is None else count + 1
            at, waits = whereabouts()
            mine = {"count": count, "age": heartbeat.age(), "doing": heartbeat.phase(), "update": self.watch.update()}
            try:
                self.store.set(f"{self.place}/{self.rank}", json.dumps(mine | {"who": who, "at": at, "waits": waits}))
                if self.hang:
                    self.store.set(f"{self.place}/hang", "yes")
                self._listen()
            except Exception:  # the process that holds the store has ended: the collectives notice that themselves
                return
            self.answered = time.monotonic()
            if not count:
                return
            self.watch.over.wait(self.watch.pause)

    def _listen(self) -> None:
        # in a large run all look at the first process and it looks at all, until the run hangs
        assert self.store is not None
        for rank in range(self.world) if self.rank == 0 or self.hang else (0, self.rank):
            if not self.store.check([key := f"{self.place}/{rank}"]):
                continue
            one, now = json.loads(self.store.get(key)), time.monotonic()
            then, before = self.told.get(rank, (now, {"count": -1}))
            self.told[rank] = (then if before["count"] == one["count"] else now, one)
            if one["count"] and time.monotonic() - self.told[rank][0] > self.watch.timeout:
                self.hang = True
        self.hang = self.hang or bool(self.store.check([f"{self.place}/hang"]))


def set_busy(yes: bool) -> None:
    """Whether the process is at work for a run also when its trainer is in none of its events: it begins, or ends."""
    global _busy
    _busy = yes


@atexit.register
def _end() -> None:
    """A thread that is in the store's code when the interpreter ends would abort the process after a good run."""
    watches = list(_running)
    for watch in watches:
        watch.over.set()
    for thread in (thread for watch in watches for thread in watch.threads):
        thread.join(2.0)


def whereabouts() -> tuple[str, bool]:
    """The innermost line of the main thread that is not a library's, and whether a thread waits for other processes."""
    frames = sys._current_frames()
    line = ""
    frame = frames.get(threading.main_thread().ident or 0)
    while frame is not None and not line:
        line = _line(frame) if _is_ours(frame.f_code.co_filename) else ""
        frame = frame.f_back
    inner = [frame.f_code.co_filename for frame in frames.values()]
    return line, any("torch/distributed/" in name or "deepspeed/comm/" in name for name in inner)


def stacks() -> str:
    """Where each thread stands, the main one first; ``>`` marks lines of this package and of the user's code."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    told: dict[str, list[str]] = {}
    for ident, frame in sorted(sys._current_frames().items(), key=lambda pair: pair[0] != main):
        name = names.get(ident, f"thread {ident}")
        if not name.startswith("watchdog"):
            told.setdefault(_stack(frame), []).append(name)
    return "".join(f"  {', '.join(threads)}:\n{stack}" for stack, threads in told.items())


def _stack(innermost: FrameType) -> str:
    frames: list[FrameType] = []
    frame: FrameType | None = innermost
    while frame is not None:
        frames.insert(0, frame)
        frame = frame.f_back
    lines: list[str] = []
    for index, frame in enumerate(frames):
        if _is_ours(frame.f_code.co_filename):
            lines.append(f"    > {_line(frame)}\n")
        elif index >= len(frames) - _INNERMOST:
            lines.append(f"      {_line(frame)}\n")
        elif lines and lines[-1] != _HIDDEN:
            lines.append(_HIDDEN)
    return "".join(lines)


def _line(frame: FrameType) -> str:
    name = frame.f_code.co_filename
    for start in (os.path.dirname(_PACKAGE[:-1]), *sys.path):
        if start and name.startswith(start + os.sep):
            name = name[len(start) + 1 :]
            break
    return f"{name}:{frame.f_lineno} {frame.f_code.co_name}"


def _is_ours(name: str) -> bool:
    if name.startswith(_PACKAGE):
        return not name.endswith(("hooks.py", "watchdog.py"))
    return not name.startswith("<") and not any(part in name for part in _LIBRARIES)


def end_children() -> None:
    """End the processes that this one has started, such as a loader's workers: nobody else will."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    left = [os.getpid()]
    while left:
        for pid in parents.get(left.pop(), ()):
            left.append(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def write(text: str) -> None:
    """To standard error as it is: what hangs may hold the log's lock."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def _me() -> str:
    return f"[rank {process_group.rank()}] " if process_group.world_size() > 1 else ""


def _store_is_elsewhere() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
