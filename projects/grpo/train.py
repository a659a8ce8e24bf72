"""Callbacks of a run that learns from its own completions: where it ends, and its figures."""

from typing import Any

from arctic_training import Callback, ComponentConfig, TrainingError, is_main


class UntilConfig(ComponentConfig):
    """Keys of the callback."""

    success: float = 0.9
    """Share of right answers at which training ends."""


class StopAtSuccess(Callback):
    """Ends the run when the model is good enough. A run that ends before fails."""

    name = "until"
    config_type = UntilConfig

    def post_evaluate(self, trainer: Any, values: dict[str, float]) -> None:
        if (right := values["exact_match/eval"]) >= self.config.success:
            trainer.stop(f"{right:.1%} of the answers are right")

    def post_train(self, trainer: Any) -> None:
        if not (trainer.finished or trainer.stop_requested):
            raise TrainingError(
                f"{self.label}.success: {self.config.success:g} was not reached in {trainer.progress.step} steps; "
                "train longer, or accept less"
            )


class PrintFigures(Callback):
    """Prints the share of right answers, by greedy decoding and by sampling, before and after."""

    name = "figures"

    def post_evaluate(self, trainer: Any, values: dict[str, float]) -> None:
        when = "after" if trainer.progress.step else "before"
        labels = {"exact_match/eval": "greedy", "reward/exact_match/eval": "sampled"}
        for name, label in labels.items():
            if is_main() and name in values:
                print(f"{label} answers that are right {when}: {values[name]:.1%}", flush=True)
