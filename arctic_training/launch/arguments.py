"""What the command line says. Knows no library, so that help is there at once."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from arctic_training.errors.types import InputError

COMMANDS = ("train", "process-data", "validate", "list")

HELP = """\
usage: arctic_training [COMMAND] RECIPE [KEY.PATH=VALUE ...] [OPTIONS]

Train what a recipe, a YAML file, says.

commands:
  train           train (the default)
  process-data    fill the data cache, and train nothing
  validate        check the recipe; needs neither device nor network
  list [KIND]     show the classes that a recipe can name

arguments:
  RECIPE          the recipe
  KEY.PATH=VALUE  put a value over the recipe's: optimizer.lr=1e-4
                  data.sources.0.split=train; the value is read as YAML

options:
  --show          print the resolved recipe, and where each value comes from
  --num_gpus N    GPUs to use, one process each; all of them when left out.
                  On a machine without a GPU: N processes on the CPU
  --master_port P port at which the processes meet; a free one when left out
  --num_nodes N   machines to use; more than one are started by DeepSpeed's
                  launcher, to which --hostfile, --include, --master_addr and
                  every option that is not named here are passed on
  --launcher deepspeed
                  the launcher of several machines; there is no other
  --python_profile tottime|cumtime
                  print where the time went, sorted by it, at the end
  --debug         show the traceback of an error
  --version       print the version
  -h, --help      print this

examples:
  arctic_training recipe.yaml
  arctic_training recipe.yaml optimizer.lr=1e-4 data.max_length=2k --num_gpus 2
  arctic_training recipe.yaml --num_nodes 2 --hostfile hosts.txt
  arctic_training validate recipe.yaml
  arctic_training list optimizer_factory

Started by torchrun or as a SLURM step of several tasks, a process is one rank
of the run.

exit codes:
  0    done, or stopped by the kill switch
  1    failed
  2    the recipe, its data or an argument cannot be used
  3    a loss, gradient or weight was not finite (nan_guard)
  70   a process hung (hang_timeout)
  75   saved and ended before its time was over (time_limit): start it again
  130, 138, 143
       saved and ended on SIGINT, SIGUSR1, SIGTERM: start it again
"""

_OURS = {"--show", "--debug", "-h", "--help", "--version"}
_WITH_VALUE = {"--python_profile", "--launcher", "--num_gpus", "--num_accelerators", "--num_nodes", "--master_port"}
_WORDS_WITH_VALUE = (
    "-H --hostfile -i --include -e --exclude --master_addr --node_rank --launcher_args --enable_each_rank_log "
    "--bind_core_list --ssh_port --venv_script --log_level"
)
_PASSED_WITH_VALUE = frozenset(_WORDS_WITH_VALUE.split())
_WORDS_ALONE = "--no_local_rank --no_ssh --no_ssh_check --force_multi --save_pid --bind_cores_to_rank -q --quiet"
_PASSED_ALONE = frozenset(_WORDS_ALONE.split())
_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=.*", re.DOTALL)


@dataclass
class Arguments:
    command: str = "train"
    recipe: str = ""
    """Empty where the command needs none, or none was given."""
    overrides: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    """What goes to DeepSpeed's launcher."""
    kind: str = ""
    show: bool = False
    debug: bool = False
    help: bool = False
    version: bool = False
    python_profile: str = ""
    num_gpus: int | None = None
    num_nodes: int = 1
    master_port: int | None = None

    def for_one_process(self) -> list[str]:
        """The arguments that every process of the run is started with."""
        profile = ["--python_profile", self.python_profile] if self.python_profile else []
        return [self.command, self.recipe, *self.overrides, *(["--debug"] if self.debug else []), *profile]


def parse(words: Sequence[str]) -> Arguments:
    """Raises `InputError` with what is wrong, and what would be right."""
    said = Arguments()
    left = list(words)
    positional: list[str] = []
    commanded = False
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if word in _OURS:
            setattr(said, {"-h": "help"}.get(word, word.lstrip("-")), True)
        elif name in _WITH_VALUE:
            if not equals:
                if not left:
                    raise InputError(f"{name}: a value has to follow")
                value = left.pop(0)
            _take(said, name, value)
        elif word.startswith("--local_rank"):  # DeepSpeed's launcher says in the environment too what it says here
            if not equals and left:
                left.pop(0)
        elif word.startswith("-"):
            said.passed.append(word)
            if equals or not left or word in _PASSED_ALONE:
                continue
            # of an option that is not known here, what follows the recipe and is no override is the value
            if name in _PASSED_WITH_VALUE or (positional and _is_value(left[0])):
                said.passed.append(left.pop(0))
        elif _OVERRIDE.fullmatch(word):
            said.overrides.append(word)
        elif word in COMMANDS and not positional and not commanded:
            said.command, commanded = word, True
        else:
            positional.append(word)
    _place(said, positional)
    return said


def _is_value(word: str) -> bool:
    return not word.startswith("-") and not _OVERRIDE.fullmatch(word)


def _take(said: Arguments, name: str, value: str) -> None:
    if name == "--launcher":
        if value != "deepspeed":
            raise InputError(f"--launcher {value}: not supported; deepspeed is the only one")
    elif name == "--python_profile":
        if value not in ("tottime", "cumtime"):
            raise InputError(f"--python_profile {value}: tottime or cumtime is wanted")
        said.python_profile = value
    else:
        if not value.isascii() or not value.isdecimal() or int(value) < 1:
            raise InputError(f"{name} {value}: a whole number above 0 is wanted")
        if name == "--master_port" and int(value) > 65_535:
            raise InputError(f"{name} {value}: ports end at 65535")
        setattr(said, "num_gpus" if name == "--num_accelerators" else name.lstrip("-"), int(value))


def _place(said: Arguments, positional: list[str]) -> None:
    if said.help or said.version:
        return
    if said.command == "list":
        said.kind = positional.pop(0) if positional else ""
    elif positional:
        said.recipe = positional.pop(0)
    if positional:
        close = difflib.get_close_matches(said.recipe, COMMANDS, n=1)
        meant = f"; did you mean the command {close[0]}?" if close else "; values are given as key.path=value"
        raise InputError(
            f"{positional[0]}: one recipe is wanted, and {said.recipe or said.kind} is given already{meant}"
        )
    if said.command != "list" and not said.recipe:
        raise InputError("no recipe is given: arctic_training recipe.yaml; --help says more")
