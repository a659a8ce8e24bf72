"""One process of two dies while a checkpoint is saved: the one before stays in force, and the run goes on from it."""

from pathlib import Path

import pytest

from arctic_training.checkpoint import folder as disk
from tests.faults.test_kills import losses, sums, written, zero
from tests.forked import Run
from tests.processes import HANG

DYING = """
import os, signal
from pathlib import Path
from arctic_training import SFTTrainer
from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointEngine

class Dying(DeepSpeedCheckpointEngine):
    name = "dying"

    def write(self, folder, engines, state):
        die = os.environ.get("RANK") == "1" and self.trainer.progress.step == 4 and not Path("{flag}").exists()
        if die:
            Path("{flag}").touch()
        if die and "{moment}" == "before its shard":
            os.kill(os.getpid(), signal.SIGKILL)
        if die and "{moment}" == "within its shard":
            (folder / "model_1.pt").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        written = super().write(folder, engines, state)
        if die:
            os.kill(os.getpid(), signal.SIGKILL)
        return written

class Trainer(SFTTrainer):
    name = "with_dying"
    checkpoint_engine_type = [Dying, DeepSpeedCheckpointEngine]
"""


@pytest.mark.fault(5)
@pytest.mark.parametrize("moment", ["before its shard", "within its shard", "after its shard"])
def test_the_checkpoint_before_stays(moment: str, tmp_path: Path) -> None:
    code = DYING.format(flag=tmp_path / "died", moment=moment)
    (tmp_path / "train.py").write_text(code)
    more = {**zero(3), "type": "with_dying"}
    command = [str(written("sft", tmp_path / "files", tmp_path / "run", more, checkpoint="dying"))]
    root = tmp_path / "run" / "checkpoints" / "dying"
    with Run(command, tmp_path / "log", world=2) as run:
        run.processes[1].join(HANG)
        assert run.codes[1] == -9, run.output()
    assert disk.named_step(root) == 2
    assert disk.list_steps(root) == [2]
    with Run(command, tmp_path / "log", world=2) as run:
        assert run.wait(), run.output()
        assert run.codes == [0, 0], run.output()
    (tmp_path / "died").touch()
    uninterrupted = [str(written("sft", tmp_path / "files", tmp_path / "whole", more, checkpoint="dying"))]
    with Run(uninterrupted, tmp_path / "log", world=2) as run:
        assert run.wait(), run.output()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert sums(tmp_path / "run", "dying") == sums(tmp_path / "whole", "dying")
