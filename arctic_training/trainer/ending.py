"""How a run ends: by its plan, because it is asked to, or because a callback has seen enough."""

from typing import Any

from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import ArcticError, ScoringError
from arctic_training.logging import logger
from arctic_training.state import Progress


class Ending:
    """Of `Trainer`. What ends a run, and what becomes of it when it is started again."""

    config: Any
    progress: Progress
    checkpointers: list[Any]
    stop_reason: str = ""
    """Why the run ends although its epochs are not over; empty as long as it goes on."""
    finished: bool = False
    """Stopped for good, in this start of the run or in one before."""
    stop_requested: bool = False
    """Asked to stop, and to go on when it is started again: it saves, and no more."""
    resumed: bool = False
    """Gone on from a checkpoint."""
    is_between_steps: bool = True
    """No window is under way: weights and progress say the same."""
    exit_code: int
    _stop_request: tuple[str, int] = ("", 0)

    def stop(self, reason: str) -> None:
        """End the run for good, after the update under way. Must be called on every rank at the same update.

        The reason is saved: the same recipe trains no further when it is started again.
        """
        self.stop_reason, self.finished = reason or "no reason is known", True

    def request_stop(self, reason: str, exit_code: int = 0) -> None:
        """End the run soon, to go on when it is started again; may be called on one rank, at any time: all agree on the
        update after which they stop."""
        if not self._stop_request[0]:
            self._stop_request = (reason, exit_code)

    def _finalize(self: Any) -> None:
        """Save, then evaluate: an evaluation that fails, or is killed, takes nothing with it that was trained."""
        self._sync_stop_requests()  # what was asked since the last window was read
        if idle := self.resumed and self.progress.step == self._started_at:
            self._warn_nothing_trained(self.plan_reached if self.training_horizon else "")
        self._save_if_due(end=True)
        # one that was asked to stop goes on elsewhere, and may be killed soon: it saves, and no more
        if self.config.evaluate_last and not self.stop_requested:
            if self._last_eval_step != self.progress.step:
                self.evaluate()
            elif self._unlogged_metrics:
                self.session.log(self._unlogged_metrics, self.progress.step)
            self._save_if_due(end=True)  # a callback may have stopped the run for good only now
        if self.finished and not idle:
            logger.warning(f"stopped for good after update {self.progress.step}: {self.stop_reason}")

    def _save_before_error(self: Any, error: BaseException) -> None:
        """Save before the run ends by an error that weights and progress have no part in, to go on when it is mended.

        That is a `ScoringError`, which all ranks raise together. In a run of one process it is also any error of other
        code, such as a callback, that is raised while no window is under way; of several, one rank cannot save alone.
        """
        own = isinstance(error, ArcticError) or not isinstance(error, Exception)
        alone = process_group.world_size() == 1 and self.is_between_steps and not own
        if self.progress.step and (alone or isinstance(error, ScoringError)):
            try:
                self._save_if_due(end=True)
            except Exception as failure:
                logger.error(f"update {self.progress.step} could not be saved before the run ends: {failure}")

    def _sync_stop_requests(self) -> None:
        """Stop on every rank when one was asked to. All processes call it together."""
        wishes = [(code, why) for why, code in collectives.all_gather_object(self._stop_request) if why]
        if self.stop_requested or not wishes:
            return
        self.exit_code, reason = max(wishes)
        self.stop_requested, self.stop_reason = True, self.stop_reason or reason
        logger.warning(f"stops after update {self.progress.step}: {reason}{self._resume_hint()}")

    def _resume_hint(self) -> str:
        """What a person must know who starts the run again, as the end of a sentence."""
        sections = [engine for engine in self.checkpointers if engine.resumable]
        if not sections:
            return "; the recipe has no checkpoint from which it could go on"
        if not any(engine.config.auto_resume for engine in sections):
            return f"; it goes on from there with `resume: {sections[0].output_dir}`, or with auto_resume"
        return ""

    def _warn_nothing_trained(self, over: str) -> None:
        """Logs why a resumed run has trained nothing; ``plan_reached`` is what of its plan is carried out."""
        since = f"nothing was trained: the run stands at update {self.progress.step}"
        if self.finished:
            logger.warning(
                f"{since}, where it was stopped for good: {self.stop_reason}; "
                "it trains on when what it trains is another, or with allow_changes: [stop]"
            )
        elif over:
            logger.warning(
                f"{since}, and {over}; raise that, or begin another run with its weights by model.name_or_path"
            )
