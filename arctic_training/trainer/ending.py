"""Ending of a run: at the end of its plan, by a request to stop, or stopped for good by a callback."""

import time
from typing import Any

from arctic_training.callback.hooks import hook
from arctic_training.checkpoint.checkpointer import Checkpointer
from arctic_training.config.sections.checkpoint import CheckpointConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import ArcticError, CheckpointError, ScoringError
from arctic_training.logging import logger
from arctic_training.state import Progress
from arctic_training.trainer.former_names import warn


class Ending:
    """Part of `Trainer`: stops and finishes a run."""

    config: TrainerConfig
    progress: Progress
    checkpointers: list[Checkpointer[CheckpointConfig]]
    stop_reason: str = ""
    """Why the run ends before its epochs are over; empty while it continues."""
    finished: bool = False
    """Stopped for good, in this process or before the run was resumed."""
    stop_requested: bool = False
    """Stopped to be resumed later: the run saves and does nothing else."""
    resumed: bool = False
    """Resumed from a checkpoint."""
    is_between_steps: bool = True
    """Between two windows: weights and progress belong together."""
    save_seconds: float = 0.0
    """Seconds that saves have taken from training, and that are not logged yet."""
    exit_code: int
    _stop_request: tuple[str, int] = ("", 0)

    def stop(self, reason: str) -> None:
        """Ends the run for good after the current step. Must be called on every rank at the same step.

        The reason is saved: the same recipe trains no further when it is started again.
        """
        self.stop_reason, self.finished = reason or "no reason was given", True

    @property
    def early_stop(self) -> bool:
        """Returns whether the run ends after the current step; setting it to True ends it. A name of ArcticTraining."""
        return bool(self.stop_reason)

    @early_stop.setter
    def early_stop(self, value: bool) -> None:
        warn("early_stop", "trainer.stop(reason)")
        if value:
            self.stop("early_stop was set")

    @property
    def training_finished(self) -> bool:
        """Returns whether nothing is left to train. A name of ArcticTraining."""
        warn("training_finished", "bool(trainer.plan_reached or trainer.finished)")
        return bool(self.finished or getattr(self, "plan_reached", ""))

    def request_stop(self, reason: str, exit_code: int = 0) -> None:
        """Stops the run soon, to be resumed later. May be called on one rank at any time: all ranks agree on the step
        after which they stop."""
        if not self._stop_request[0]:
            self._stop_request = (reason, exit_code)

    def _finalize(self: Any) -> None:
        """Saves, then evaluates: an evaluation that fails or is killed loses nothing that was trained."""
        self._sync_stop_requests()  # requests since the last window was read
        if idle := self.resumed and self.progress.step == self._started_at:
            self._warn_nothing_trained(self.plan_reached if self.training_horizon else "")
        self._save_if_due(end=True)
        # a run that was requested to stop may be killed soon: it saves and does nothing else
        if self.config.evaluate_last and not self.stop_requested:
            if self._last_eval_step != self.progress.step:
                self.evaluate()
            elif self._unlogged_metrics:
                self.session.log(self._unlogged_metrics, self.progress.step)
            self._save_if_due(end=True)  # a callback may have stopped the run for good only now
        if self.finished and not idle:
            logger.warning(f"stopped for good after step {self.progress.step}: {self.stop_reason}")

    def _end_by_error(self, error: BaseException) -> None:
        """Saves what can be saved, and announces the error; raises nothing."""
        self._save_before_error(error)
        try:
            for engine in self.checkpointers:
                engine.abandon()
        except CheckpointError as failure:
            logger.error(str(failure))
        try:
            self.announce_exception(error)
        except Exception as failure:
            logger.error(f"a listener to the error that ends the run failed: {failure!r}")

    @hook("exception")
    def announce_exception(self, error: BaseException) -> None:
        """Announces ``error``, by which the run ends."""

    def _save_before_error(self: Any, error: BaseException) -> None:
        """Saves before the run ends by an error that does not concern weights and progress, so that it can be resumed.

        That is a `ScoringError`, which all ranks raise together. In a run of one process it is also any error of other
        code, such as a callback, between two windows; of several processes, one rank cannot save alone.
        """
        own = isinstance(error, ArcticError) or not isinstance(error, Exception)
        alone = process_group.world_size() == 1 and self.is_between_steps and not own
        if self.progress.step and (alone or isinstance(error, ScoringError)):
            try:
                self._save_if_due(end=True)
            except Exception as failure:
                logger.error(f"step {self.progress.step} could not be saved before the run ends: {failure}")

    def _save_if_due(self: Any, *, end: bool = False) -> None:
        began, busy = time.perf_counter(), any(engine.is_under_way for engine in self.checkpointers)
        for engine in self.checkpointers:
            engine.finish() if end else engine.poll()
        early = end and (self.stop_requested or self.finished or not self.plan_reached)
        for engine in self.checkpointers if end and self.finished else ():
            engine.mark_stopped(self.stop_reason)
        if due := [engine for engine in self.checkpointers if engine.should_save(self.progress, end=end, early=early)]:
            self.checkpoint(due)
        if due or busy:
            self.save_seconds += time.perf_counter() - began

    def take_save_seconds(self) -> dict[str, float]:
        """Returns ``save_seconds``, what saves have taken from training since the last call; empty if none did."""
        seconds, self.save_seconds = self.save_seconds, 0.0
        return {"save_seconds": seconds} if seconds else {}

    def _sync_stop_requests(self) -> None:
        """Stops on every rank when one rank requested it. All ranks must call it together."""
        requests = [(code, why) for why, code in collectives.all_gather_object(self._stop_request) if why]
        if self.stop_requested or not requests:
            return
        self.exit_code, reason = max(requests)
        self.stop_requested, self.stop_reason = True, self.stop_reason or reason
        logger.warning(f"stopping after step {self.progress.step}: {reason}{self._resume_hint()}")

    def _resume_hint(self) -> str:
        """Returns how the run can be resumed, as the end of a sentence."""
        sections = [engine for engine in self.checkpointers if engine.resumable]
        if not sections:
            return "; the recipe has no checkpoint section from which it could be resumed"
        if not any(engine.config.auto_resume for engine in sections):
            return f"; resume it with `resume: {sections[0].output_dir}` or auto_resume"
        return ""

    def _warn_nothing_trained(self, over: str) -> None:
        """Logs why a resumed run has trained nothing; ``plan_reached`` is what of its plan is carried out."""
        since = f"nothing was trained: the run is at step {self.progress.step}"
        if self.finished:
            logger.warning(
                f"{since}, where it was stopped for good: {self.stop_reason}; "
                "to train further, change what is trained, or set allow_changes: [stop]"
            )
        elif over:
            logger.warning(
                f"{since}, and {over}; raise that, or start another run from its weights with model.name_or_path"
            )
