"""The commands on pages: those of this package are run, of the others everything is checked but what they would do."""

import re
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

from arctic_training.cli.main import main
from arctic_training.launch.arguments import parse
from tests.processes import ROOT

COMMANDS = ("arctic_training", "bash", "git", "make", "pip", "python", "torchrun", "wandb")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def commands(block: str) -> list[list[str]]:
    """Returns the commands that a shell would start, each with its words."""
    record = 'printf "%s\\0" {0} "$@" $\'\\1\''
    functions = "\n".join(f"function {name} {{ {record.format(name)}; }}" for name in (*COMMANDS, "."))
    script = ["bash", "-euc", f"{functions}\n{block}"]
    done = subprocess.run(script, stdout=subprocess.PIPE, check=True, text=True, env={"INDEX_OF_YOUR_BUILD": "index"})
    return [one.strip("\0").split("\0") for one in done.stdout.split("\1")[:-1]]


def run(block: str, *, trains: bool = True) -> None:
    """Runs the commands of this package in the working folder, and checks the others.

    They exit with 0, or with 2 where a comment says it. What would train on several machines is validated, and, where
    ``trains`` is false, all that would train.
    """
    for name, *words in commands(block):
        if name == "arctic_training":
            if "--num_nodes" in words:
                check_deepspeed(words)
                trains = False
            if words[0].endswith(".yaml") and not trains:
                words = ["validate", *words]
            code = main(words)
            assert code == (2 if "# exit code 2" in block else 0), (
                f"arctic_training {' '.join(words)}: exit code {code}"
            )
        else:
            check(name, *words)


def check(name: str, *words: str) -> None:
    """Raises AssertionError for a command that names what is not there, or an option that its program does not know.

    What it would do takes a network, an account, several machines, or the minutes that `make` and projects take.
    """
    if name == "make":
        targets = [word for word in words if re.fullmatch(r"[a-z-]+", word)]
        assert targets and all(re.search(rf"^{one}:", MAKEFILE, re.MULTILINE) for one in targets), words
    elif name == "pip":
        named = re.findall(r"(?:\.|arctic_training)\[([\w,-]+)\]", " ".join(words))
        assert {extra for extras in named for extra in extras.split(",")} <= {*EXTRAS}, words
    elif name in ("bash", "python") and words[0] != "-m":
        assert (ROOT / words[0]).is_file(), words
    elif name == "python":
        module = ROOT / words[1].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), words
    elif name == "arctic_training":
        recipes = [word for word in words if word.endswith(".yaml")]
        assert recipes and all((ROOT / one).is_file() for one in recipes), words
    elif name == "torchrun":
        check_torchrun(words)


def check_torchrun(words: Sequence[str]) -> None:
    """Raises SystemExit for an option that torchrun does not know, and checks the recipe that it would train."""
    from torch.distributed.run import get_args_parser

    args = get_args_parser().parse_args(words)
    assert args.module and args.training_script == "arctic_training", words
    assert main(["validate", *args.training_script_args]) == 0


def check_deepspeed(words: Sequence[str]) -> None:
    """Checks what DeepSpeed's launcher reads of a command for several machines: its options and the host file."""
    from deepspeed.launcher.runner import fetch_hostfile, parse_args

    own = parse(words)
    args = parse_args([*own.launcher_args, "--num_nodes", str(own.num_nodes), "--module", "arctic_training"])
    hosts = fetch_hostfile(args.hostfile)
    assert args.num_nodes == len(hosts) > 1 and all(slots > 0 for slots in hosts.values()), hosts


def check_requeue(script: str, folder: Path, again: Sequence[int]) -> None:
    """Raises AssertionError for a script of sbatch that does not pass the exit code of its run on, or queues itself
    again after others than the exit codes ``again``."""
    for code in (0, 1, 2, 3, 70, 75, 130, 137, 138, 143):
        stubs = f'srun() {{ return {code}; }}\nscontrol() {{ echo "$@" > {folder}/requeued; }}\nSLURM_JOB_ID=7\n'
        (folder / "requeued").unlink(missing_ok=True)
        assert subprocess.run(["bash", "-c", stubs + script]).returncode == code
        assert (folder / "requeued").exists() == (code in again), code
