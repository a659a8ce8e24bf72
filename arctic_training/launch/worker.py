"""One process of a run: read the recipe, look up the trainer, train."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from arctic_training.distributed import environment
from arctic_training.distributed.signals import handle_signals, set_parent_death_signal
from arctic_training.errors.types import ArcticError, InputError
from arctic_training.launch.arguments import parse
from arctic_training.launch.threads import openmp_settings

LAUNCHER = "ARCTIC_TRAINING_LAUNCHER"
"""The environment variable that holds the process number of the launcher that started this process."""
_RELAYED = {"CROSS_SIZE", "TORCHELASTIC_RUN_ID"}
"""In the environment of what DeepSpeed's launcher and torchrun start. They send a signal on to processes that may have
had it already, and end by themselves what is left after 30 s."""


def main(words: Sequence[str] | None = None) -> int:
    """Be the rank that the environment says, with the recipe and overrides that ``words`` say; the exit code."""
    _die_with_the_launcher()
    # else the connections of the others tell pages of C++ of one that has ended, and nobody reads what it ended of
    environment.set_env_default("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name, value in openmp_settings(os.environ).items():
        environment.set_env(name, value)
    from arctic_training.errors.report import report

    words = sys.argv[1:] if words is None else words
    try:
        said = parse(words)
        from arctic_training.config.recipe.get_config import get_config

        config = get_config(said.recipe, said.overrides)
        return run(config, command=said.command, debug=said.debug, profile=said.python_profile)
    except ArcticError as error:
        return report(error, debug="--debug" in words)
    except KeyboardInterrupt:  # while libraries were imported
        return 130


def run(config: Any, *, command: str = "train", debug: bool = False, profile: str = "") -> int:
    """Train what ``config`` says, or prepare its data; the exit code. Errors are told on standard error."""
    from arctic_training.config.checks.location import place
    from arctic_training.distributed import process_group, watchdog
    from arctic_training.errors.report import report
    from arctic_training.registry import lookup

    trainer_class: Any = lookup("trainer", config.type)
    stop, trainer, profiler, failed, code = _GracefulShutdown(), None, _profiler(profile), True, 0
    watchdog.set_busy(True)
    try:
        if command == "process-data":
            trainer_class.prepare_data(config)
        else:
            trainer = trainer_class(config)
            stop.listen(trainer)
            trainer.train()
            process_group.barrier()  # engines end when all have come to their end
        failed, code = False, getattr(trainer, "exit_code", stop.code)
    except SystemExit:
        raise
    except BaseException as error:
        if isinstance(error, InputError):
            place(error, config)
        code = 130 if _interrupted(error) else report(error, debug=debug)
    finally:
        if trainer is not None:
            trainer.close(failed=failed)
        process_group.destroy_process_group(failed=failed)
        watchdog.set_busy(False)
        stop.ignore()
    if profiler is not None and process_group.is_main():
        profiler.print_stats(profile)
    return code


def _interrupted(error: BaseException | None) -> bool:
    """Whether ``error`` is a Ctrl-C, or what a library made of one on its way out."""
    seen: list[BaseException] = []  # an error may be its own cause
    while error is not None and error not in seen and not isinstance(error, KeyboardInterrupt):
        seen.append(error)
        error = error.__cause__ or error.__context__
    return isinstance(error, KeyboardInterrupt)


class _GracefulShutdown:
    """Signals that ask a run to end: it finishes its update, saves and stops. Asked twice, it ends at once, but under a
    launcher that says everything twice."""

    def __init__(self) -> None:
        self.code = 0
        self._hearing = ExitStack()

    def listen(self, trainer: Any) -> None:
        def asked(number: int, frame: Any) -> None:
            if self.code and _RELAYED & os.environ.keys():
                return
            if self.code:  # not as a KeyboardInterrupt: what calls Python from C++ may abort on one
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self.code = 128 + number
            trainer.request_stop(f"{signal.Signals(number).name} was received", self.code)

        self._hearing.enter_context(handle_signals(asked))

    def ignore(self) -> None:
        """As it was before."""
        self._hearing.close()


def _profiler(order: str) -> Any:
    if not order:
        return None
    import cProfile

    profiler = cProfile.Profile()
    profiler.enable()
    return profiler


def _die_with_the_launcher() -> None:
    if launcher := os.environ.get(LAUNCHER):
        set_parent_death_signal(int(launcher))


if __name__ == "__main__":
    sys.exit(main())
