"""The callbacks and best weights that other trainers choose by the metrics of their evaluations."""

from arctic_training.config.migration.foreign import Foreign, integer

_LOSSES = ("loss", "eval_loss")


def migrate_monitoring(foreign: Foreign, patience: str) -> None:
    """Carries over the callbacks that follow a metric: ``patience`` is the key of early stopping.

    It is called where the recipe has its `eval_interval`, which these callbacks need.
    """
    metric = foreign.take("metric_for_best_model")
    foreign.ignore(["greater_is_better"])
    callbacks: list[dict[str, object]] = []
    keys = []
    if waited := integer(foreign.number(patience)):
        callbacks.append({"type": "early_stopping", "patience": max(1, waited)})
        keys.append(patience)
    if foreign.flag("load_best_model_at_end"):
        callbacks.append({"type": "restore_best"})
        keys.append("load_best_model_at_end")
    if callbacks and "eval_interval" not in foreign.recipe:
        for key, section in zip(keys, callbacks, strict=True):
            words = ", ".join(f"{name}: {value}" for name, value in section.items())
            foreign.note(key, f"give data to evaluate on, eval_interval, in steps, and callbacks: [{{{words}}}]")
        return
    if callbacks and metric not in (None, *_LOSSES):
        foreign.note("metric_for_best_model", f"{metric}: the loss stands for it; give monitor and mode of callbacks")
    foreign.put("callbacks", callbacks or None)
