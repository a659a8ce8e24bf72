"""One process of a run: reads the recipe, looks up the trainer and trains."""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING, Any

from arctic_training.display.activity import activity
from arctic_training.display.starting import starting
from arctic_training.distributed import environment
from arctic_training.distributed.signals import handle_signals, set_parent_death_signal
from arctic_training.errors.types import ArcticError
from arctic_training.launch.arguments import parse
from arctic_training.launch.threads import openmp_settings

if TYPE_CHECKING:
    import cProfile

LAUNCHER = "ARCTIC_TRAINING_LAUNCHER"
"""The environment variable with the process id of the launcher that started this process."""
_SIGNAL_RELAYS = {"CROSS_SIZE", "TORCHELASTIC_RUN_ID"}
"""Set in the environment by DeepSpeed's launcher and torchrun. They relay a signal to processes that may have received
it already, and kill what is left after 30 s."""


def main(words: Sequence[str] | None = None) -> int:
    """Trains as the rank that the environment names, from the command line ``words``, and returns the exit code."""
    if launcher := os.environ.get(LAUNCHER):
        set_parent_death_signal(int(launcher))
    # else the connections to a process that has failed print C++ traces, which hide the error of that process
    environment.set_env_default("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name, value in openmp_settings(os.environ).items():
        environment.set_env(name, value)
    from arctic_training.distributed.report import report

    if words is None:  # this process is of the rank alone
        words = sys.argv[1:]
        atexit.register(gc.freeze)  # the last collections of an interpreter with all libraries take seconds
    try:
        args = parse(words)
        with starting():
            with activity("importing libraries"):
                from arctic_training.config.get_config import get_config

            with activity("reading the recipe"):
                config = get_config(args.recipe, args.overrides)
            return run(config, command=args.command, debug=args.debug, profile=args.python_profile)
    except ArcticError as error:
        return report(error, debug="--debug" in words)
    except KeyboardInterrupt:  # while libraries were imported
        return 130


def run(config: Any, *, command: str = "train", debug: bool = False, profile: str = "") -> int:
    """Trains with ``config``, or prepares its data (``process-data``), and returns the exit code.

    Errors are reported, not raised. ``profile`` is the key of `pstats` by which a profile is sorted and printed.
    """
    from arctic_training.config.get_config import place_errors
    from arctic_training.display.watch import close_display, open_display
    from arctic_training.distributed import process_group, watchdog
    from arctic_training.distributed.report import report
    from arctic_training.registry import lookup

    trainer_class: Any = lookup("trainer", config.type)
    shutdown, trainer, profiler, failed, code = _GracefulShutdown(), None, _start_profiler(profile), True, 0
    watchdog.set_busy(True)
    if process_group.is_main():
        open_display(config.logger.progress)
    try:
        with place_errors(config):
            if command == "process-data":
                trainer_class.prepare_data(config)
                if process_group.is_main():
                    print("the data of the run are prepared")
            else:
                trainer = trainer_class(config)
                shutdown.listen(trainer)
                trainer.train()
                process_group.barrier()  # no rank destroys its engines while another still trains
        failed, code = False, getattr(trainer, "exit_code", shutdown.code)
    except SystemExit:
        raise
    except BaseException as error:
        close_display()
        code = 130 if _is_interrupt(error) else report(error, debug=debug)
    finally:
        if trainer is not None:
            trainer.close(failed=failed)
        process_group.destroy_process_group(failed=failed)
        watchdog.set_busy(False)
        shutdown.close()
    if profiler is not None and process_group.is_main():
        profiler.print_stats(profile)
    return code


def _is_interrupt(error: BaseException | None) -> bool:
    """Returns whether ``error`` is a Ctrl-C, or was raised by a library because of one."""
    seen: list[BaseException] = []  # an error may be its own cause
    while error is not None and error not in seen and not isinstance(error, KeyboardInterrupt):
        seen.append(error)
        error = error.__cause__ or error.__context__
    return isinstance(error, KeyboardInterrupt)


class _GracefulShutdown:
    """Handles the signals that stop a run: at the first the trainer finishes its step, saves and stops; at the second
    the process ends at once, unless its launcher sends every signal twice."""

    def __init__(self) -> None:
        self.code = 0
        self._handlers = ExitStack()

    def listen(self, trainer: Any) -> None:
        """Handles the signals until `close`."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.code and _SIGNAL_RELAYS & os.environ.keys():
                return
            if self.code:  # not as a KeyboardInterrupt: C++ code that calls Python may abort on one
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self.code = 128 + number
            trainer.request_stop(f"{signal.Signals(number).name} was received", self.code)

        self._handlers.enter_context(handle_signals(stop))

    def close(self) -> None:
        """Restores the previous handlers."""
        self._handlers.close()


def _start_profiler(sort_key: str) -> "cProfile.Profile | None":
    if not sort_key:
        return None
    import cProfile

    profiler = cProfile.Profile()
    profiler.enable()
    return profiler


if __name__ == "__main__":
    sys.exit(main())
