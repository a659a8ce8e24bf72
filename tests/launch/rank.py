"""A trainer that writes its environment to a file and does what a test needs, copied beside a recipe."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from arctic_training import SFTTrainer
from arctic_training.errors.types import DataError

_TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TOLD += ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


class RankTrainer(SFTTrainer):
    """Joins no run and builds nothing; ``model.name_or_path`` selects what it does."""

    name = "rank"

    def __init__(self, config: Any) -> None:
        self.config, self.stop_reason = config, ""
        self.number = int(os.environ.get("RANK", "0"))
        variables: dict[str, Any] = {name: os.environ.get(name) for name in _TOLD}
        self.tell("here", json.dumps(variables | {"pid": os.getpid(), "parent": os.getppid(), "argv": sys.argv}))

    def tell(self, what: str, text: str = "") -> None:
        folder = Path("ranks")
        folder.mkdir(exist_ok=True)
        (folder / f"{what}_{self.number}.new").write_text(text)
        (folder / f"{what}_{self.number}.new").rename(folder / f"{what}_{self.number}")

    def request_stop(self, reason: str, exit_code: int = 0) -> None:
        self.stop_reason = reason

    def train(self) -> None:
        self.tell("training")
        what = self.config.model.name_or_path
        last = self.number == 1
        if what == "end":
            return
        if what == "refuse":
            raise DataError("rows.jsonl:3: not JSON; mend the line")
        if what == "raise" and last:
            raise RuntimeError("on purpose")
        if what == "die" and last:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "deaf":
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            self.tell("deaf")
        end = time.monotonic() + 3600
        while not self.stop_reason and time.monotonic() < end:
            time.sleep(0.02)
        self.tell("asked", self.stop_reason)

    def close(self, *, failed: bool = False) -> None:
        self.tell("closed", str(failed))
