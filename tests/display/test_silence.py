"""While any part of a run takes long, the terminal says what is done, and is drawn again."""

import json
from pathlib import Path

import yaml

from tests import tiny
from tests.command import clean_environment
from tests.display.terminal import Terminal
from tests.warm_start import Command

TRAIN = """
import json
import time

from arctic_training import Callback, SFTTrainer, Tracker
from arctic_training.display import watch
from arctic_training.display.activity import current
from arctic_training.display.bar import Bar
from tests.processes import HANG

drawn = []
render = Bar._render


def draw(bar):
    drawn.append([one.name for one in current()])
    return render(bar)


Bar._render, watch._PAUSE = draw, 0.01


def be_slow(part):
    first, deadline = len(drawn), time.monotonic() + HANG
    while len(drawn) < first + 3:  # as long as it takes until it was drawn several times
        assert time.monotonic() < deadline, part
        time.sleep(0.01)
    with open("shown.jsonl", "a") as file:
        file.write(json.dumps([part, drawn[-1]]) + "\\n")


class Slow(SFTTrainer):
    name = "slow_everywhere"

    def check_recipe(self):
        be_slow("check_recipe")

    def check_data(self):
        be_slow("check_data")

    def check(self):
        super().check()
        be_slow("check")

    def loss(self, batch):
        be_slow("loss")
        return super().loss(batch)


class SlowEvents(Callback):
    name = "slow_events"

    def pre_train(self, trainer):
        be_slow("pre_train")

    def pre_evaluate(self, trainer):
        be_slow("pre_evaluate")

    def pre_checkpoint(self, trainer):
        be_slow("pre_checkpoint")

    def pre_load_checkpoint(self, trainer):
        be_slow("pre_load_checkpoint")

    def post_train(self, trainer):
        be_slow("post_train")


class SlowTracker(Tracker):
    name = "slow_tracker"

    def check(self):
        be_slow("check of the tracker")

    def start(self, recipe, run_dir, step):
        be_slow("start")

    def log(self, values, step):
        be_slow("log")

    def finish(self, failed):
        be_slow("finish")
"""
PARTS = (
    "check of the tracker, check_recipe, check_data, check, start, pre_train, loss, log, pre_checkpoint, pre_evaluate, "
    "post_train, finish"
)


def test_nothing_is_silent(tmp_path: Path, tiny_model: Path) -> None:
    """Also what waits for the main thread alone; of a run that resumes the loading of its checkpoint too."""
    tiny.save_chats(tmp_path / "chats.jsonl", 12)
    (tmp_path / "train.py").write_text(TRAIN)
    recipe = {
        "type": "slow_everywhere",
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": ["chats.jsonl"], "eval_sources": ["chats.jsonl"], "max_length": 400},
        "train_iters": 2,
        "eval_interval": 1,
        "checkpoint": [{"type": "deepspeed", "save_every_n_steps": 1, "auto_resume": True}],
        "callbacks": ["slow_events"],
        "trackers": ["slow_tracker"],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for more in (["exit_iteration=1"], []):
        terminal, environment = Terminal(lines=24), clean_environment(TERM="xterm")
        words = ["recipe.yaml", *more]
        start = lambda tty: Command(words, tmp_path, environment, tty, tty)  # noqa: B023, E731
        assert terminal.run(start) == 0, "\n".join(terminal.text)
    shown = [json.loads(line) for line in (tmp_path / "shown.jsonl").read_text().splitlines()]
    assert {part for part, _ in shown} == {*PARTS.split(", "), "pre_load_checkpoint"}
    assert not [part for part, activities in shown if not activities]
