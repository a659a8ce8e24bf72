"""Runs in a notebook: a kernel of Jupyter shows the bar, a cell is interrupted, and the next run is as any other."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from jupyter_client.manager import KernelManager, start_new_kernel

pytestmark = pytest.mark.nightly

FIRST = """
import sys, torch
from arctic_training import TensorClassifierTrainer, get_config

points = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
rows = {"rows": points, "labels": (points.sum(1) > 0).long()}

def trainer(folder, **keys):
    network = torch.nn.Linear(2, 2)
    keys = {"optimizer": {"lr": 1e-2}, "micro_batch_size": 16, "loss_log_interval": 1, "output_dir": folder, **keys}
    config = get_config({"type": "tensor_classifier", **keys})
    return TensorClassifierTrainer(config, model=network, train_dataset=rows, eval_dataset=rows)
"""


@dataclass
class Cell:
    """What a cell has printed, displayed and raised."""

    printed: str = ""
    displayed: list[str] = field(default_factory=list)
    widgets: int = 0
    error: str = ""


@dataclass
class Notebook:
    """A kernel, of which cells are executed one after the other."""

    manager: KernelManager
    client: Any

    def run(self, code: str, *, interrupt_at: str = "") -> Cell:
        """Executes ``code``; interrupts it once ``interrupt_at`` is displayed."""
        cell = Cell()

        def hear(message: dict[str, Any]) -> None:
            content = message["content"]
            cell.printed += content.get("text", "")
            if data := content.get("data"):
                cell.widgets += "application/vnd.jupyter.widget-view+json" in data
                cell.displayed.append(re.sub(r"\x1b\[[\d;]*m", "", data.get("text/plain", "")).replace("\xa0", " "))
                if interrupt_at and interrupt_at in cell.displayed[-1] and not interrupted:
                    interrupted.append(True)
                    self.manager.interrupt_kernel()

        interrupted: list[bool] = []
        reply = self.client.execute_interactive(code, timeout=300, output_hook=hear)["content"]
        cell.error = reply.get("ename", "")
        assert bool(interrupted) == bool(interrupt_at), cell
        return cell


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    folder = tmp_path_factory.mktemp("notebook")
    manager, client = start_new_kernel(cwd=str(folder), startup_timeout=120)
    book = Notebook(manager, client)
    assert not book.run(FIRST).error
    yield book
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_a_cell_that_is_interrupted_and_a_run_after_it(notebook: Notebook) -> None:
    cell = notebook.run("first = trainer('first', epochs=1_000_000); first.train()", interrupt_at="loss")
    assert cell.error == "KeyboardInterrupt"
    assert cell.widgets == 1
    after = notebook.run("print(first.progress.step > 0, first.evaluate().keys()); first.close()")
    assert not after.error and after.printed.startswith("True") and "loss/eval" in after.printed
    second = notebook.run("second = trainer('second', epochs=2); second.train(); second.close()")
    assert not second.error and second.widgets == 1
    assert any(re.search(r"\b8/8\b.*\bloss \d", one, re.DOTALL) for one in second.displayed), second.displayed
    files = notebook.run("import os; print(sorted(os.listdir('second')))").printed
    assert "'environment.json', 'logs', 'metrics.jsonl', 'recipe.yaml'" in files


def test_lines_without_the_library_of_widgets(notebook: Notebook) -> None:
    # what `importlib.util.find_spec` finds of it is None then
    hide = "sys.modules['ipywidgets'] = None"
    cell = notebook.run(f"{hide}\nthird = trainer('third', epochs=1); third.train(); third.close()")
    assert not cell.error and not cell.widgets
    assert re.search(r"step 4/4 \| .*\bloss \d", cell.printed)
