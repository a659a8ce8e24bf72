"""Who takes part, and how each is started."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Contestant:
    name: str
    title: str
    script: str
    python: Path
    spec: dict[str, Any] = field(default_factory=dict)
    help_command: tuple[str, ...] = ()
    """What prints its command's help, where it has a command."""
    sees_package: bool = True
    """Whether this repository is on its path. ArcticTraining's package has the same name."""

    @property
    def installed(self) -> bool:
        return self.python.exists()

    def environment(self) -> dict[str, str]:
        """One thread, no network, no GPU, nothing inherited that says where modules are."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LOCAL_RANK", "RANK")}
        paths = {"PYTHONPATH": str(ROOT)} if self.sees_package else {}
        return (
            kept
            | paths
            | {
                "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
                "CUDA_VISIBLE_DEVICES": "",
                "DS_ACCELERATOR": "cpu",
                "HF_HUB_OFFLINE": "1",
                "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
                "MKL_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
                "RAYON_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",
                # what DeepSpeed compiles is made for one environment; shared, it is compiled anew at every start
                "TORCH_EXTENSIONS_DIR": str(self.python.parent.parent / "torch_extensions"),
                "TRANSFORMERS_VERBOSITY": "error",
                "WANDB_MODE": "disabled",
            }
        )


def contestants(python: Path, peers: Path) -> list[Contestant]:
    """All of them. ``python`` runs ours, the bare loops and TRL; ``peers`` holds the others' virtual environments."""
    other = peers / ".venv-arctic_training_0_8" / "bin" / "python"
    return [
        Contestant("ours", "ours", "ours.py", python, help_command=(str(python), "-m", "arctic_training", "--help")),
        Contestant("torch", "bare torch", "bare_torch.py", python),
        Contestant("deepspeed", "bare DeepSpeed", "bare_deepspeed.py", python),
        Contestant(
            "trl", "TRL", "trl_sft.py", python, {"packed": False}, help_command=(str(python.parent / "trl"), "--help")
        ),
        Contestant("trl_packed", "TRL packed", "trl_sft.py", python, {"packed": True}),
        Contestant(
            "arctic_0_8",
            "Arctic 0.8.0",
            "arctic_training_0_8.py",
            other,
            help_command=(str(other.parent / "arctic_training"), "--help"),
            sees_package=False,
        ),
    ]
