"""The command line. Imports the standard library only, so that help is printed at once."""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from arctic_training.errors.types import InputError
from arctic_training.registry import did_you_mean

COMMANDS = ("train", "process-data", "validate")
"""The commands that read a recipe as `parse` does; the others are those of `cli.commands`."""

_USAGE = "arctic_training [COMMAND] RECIPE [KEY.PATH=VALUE ...] [OPTIONS]"
_DESCRIPTION = """\
Train from a recipe, a YAML file.

commands:
  train           train (the default)
  process-data    fill the data cache without training
  validate        check the recipe; needs neither device nor network
%(commands)s

arguments:
  RECIPE          path of the recipe
  KEY.PATH=VALUE  override a value of the recipe: optimizer.lr=1e-4
                  data.sources.0.split=train; the value is read as YAML
  +KEY.PATH=VALUE add what is not there, or append to a list:
                  +callbacks={type: ema}
  ~KEY.PATH       remove a key, or an element of a list
"""
_EPILOG = """\
examples:
  arctic_training recipe.yaml
  arctic_training recipe.yaml optimizer.lr=1e-4 data.max_length=2k --num_gpus 2
  arctic_training recipe.yaml --num_nodes 2 --hostfile hosts.txt
  arctic_training recipe.yaml --sweep optimizer.lr=1e-4,3e-4 seed=1,2
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
  75   saved and stopped before the time limit (time_limit): start it again
  130, 138, 143
       saved and stopped on SIGINT, SIGUSR1, SIGTERM: start it again
"""

_DEEPSPEED_OPTIONS = (
    "-H --hostfile -i --include -e --exclude --master_addr --node_rank --launcher_args --enable_each_rank_log "
    "--bind_core_list --ssh_port --venv_script --log_level"
)
"""Options of DeepSpeed's launcher that take a value."""
_DEEPSPEED_FLAGS = "--no_local_rank --no_ssh --no_ssh_check --force_multi --save_pid --bind_cores_to_rank -q --quiet"
_KEY = r"[A-Za-z_][\w-]*(\.[\w-]+)*"
_OVERRIDE = re.compile(rf"\+?{_KEY}=.*|~{_KEY}", re.DOTALL)


@dataclass
class Arguments:
    """The parsed command line of `COMMANDS`."""

    command: str = "train"
    recipe: str = ""
    """Path of the recipe."""
    overrides: list[str] = field(default_factory=list)
    launcher_args: list[str] = field(default_factory=list)
    """The arguments for DeepSpeed's launcher."""
    sweep: list[str] = field(default_factory=list)
    """Lists of values, ``key.path=value,value``: each combination is a run."""
    dry_run: bool = False
    show: bool = False
    debug: bool = False
    help: bool = False
    version: bool = False
    python_profile: str = ""
    num_gpus: int | None = None
    num_nodes: int = 1
    master_port: int | None = None

    def for_one_process(self) -> list[str]:
        """Returns the arguments that every process of the run is started with."""
        profile = ["--python_profile", self.python_profile] if self.python_profile else []
        return [self.command, self.recipe, *self.overrides, *(["--debug"] if self.debug else []), *profile]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def positive(text: str) -> int:
    """Returns the integer above 0 that an argument is. Raises ArgumentTypeError for anything else."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer above 0, got {text!r}")
    return int(text)


def _port(text: str) -> int:
    if positive(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port of at most 65535, got {text!r}")
    return int(text)


def _parser(others: Mapping[str, str]) -> _Parser:
    """``others`` are the other commands with their summaries."""
    parser = _Parser(
        usage=_USAGE,
        description=_DESCRIPTION % {"commands": "\n".join(map("  {0[0]:<15} {0[1]}".format, others.items()))},
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=18, width=80),
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--show", action="store_true", help="print the resolved recipe and where each value comes from")
    dry_run = "two steps, an evaluation and a checkpoint in small, of which nothing is kept"
    add("--dry-run", action="store_true", help=dry_run)
    sweep = "a run for each combination of these values, in folders of their own, and a table at the end"
    add("--sweep", nargs="+", metavar="KEY.PATH=VALUE,VALUE", help=sweep)
    gpus = "GPUs to use, one process each (default: all). On a machine without a GPU: N processes on the CPU"
    add("--num_gpus", type=positive, metavar="N", help=gpus)
    add("--num_accelerators", type=positive, dest="num_gpus", help=argparse.SUPPRESS)
    add("--master_port", type=_port, metavar="P", help="port at which the processes meet (default: a free one)")
    nodes = "machines to use; several are started by DeepSpeed's launcher, which is given --hostfile, --include, "
    nodes += "--master_addr and every option that is not listed here"
    add("--num_nodes", type=positive, metavar="N", help=nodes)
    add("--launcher", choices=["deepspeed"], dest="_launcher", help="the launcher of several machines")
    profile = "print where the time went at the end, sorted by it"
    add("--python_profile", choices=["tottime", "cumtime"], help=profile)
    add("--debug", action="store_true", help="print the traceback of an error")
    add("--version", action="store_true", help="print the version")
    add("-h", "--help", action="store_true", help="print this help")
    # DeepSpeed's launcher passes it beside the environment variable
    add("--local_rank", dest="_local_rank", help=argparse.SUPPRESS)
    return parser


def options() -> list[str]:
    """Returns the options of the commands that read a recipe as `parse` does."""
    return [
        one
        for action in _parser({})._actions
        if action.help != argparse.SUPPRESS
        for one in action.option_strings
        if one.startswith("--")
    ]


def format_help(others: Mapping[str, str]) -> str:
    """Returns the help of the command; ``others`` are the other commands with their summaries."""
    return _parser(others).format_help()


def parse(words: Sequence[str], others: Iterable[str] = ()) -> Arguments:
    """Returns the parsed command line. Raises `InputError` for one that cannot be used.

    ``others`` are the names of the other commands, which a misspelled first word may stand for.
    """
    commands = (*COMMANDS, *others)
    try:
        args, rest = _parser({}).parse_known_args(words, Arguments())
    except argparse.ArgumentError as error:
        raise InputError(f"{error.argument_name}: {error.message}") from None
    positional: list[str] = []
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            args.launcher_args.append(word)
            if rest and _takes_value(word, rest[0], after_recipe=bool(positional)):
                args.launcher_args.append(rest.pop(0))
        elif _OVERRIDE.fullmatch(word):
            args.overrides.append(word)
        else:
            positional.append(word)
    if not args.help and not args.version:
        _assign_positional(args, positional, commands)
        if (args.sweep or args.dry_run) and (args.command != "train" or (args.sweep and args.dry_run)):
            raise InputError("--sweep and --dry-run train, each by itself; give one of them, and no other command")
    return args


def _takes_value(option: str, following: str, *, after_recipe: bool) -> bool:
    """Returns whether ``following`` is the value of an option for DeepSpeed's launcher.

    Of an option that is not known, what follows it after the recipe and is no override is the value.
    """
    if "=" in option or option in _DEEPSPEED_FLAGS.split():
        return False
    is_value = not following.startswith("-") and not _OVERRIDE.fullmatch(following)
    return option in _DEEPSPEED_OPTIONS.split() or (after_recipe and is_value)


def _assign_positional(args: Arguments, words: list[str], commands: Sequence[str]) -> None:
    """Sets command and recipe. Raises `InputError` where words are missing or too many."""
    if words and words[0] in COMMANDS:
        args.command = words.pop(0)
    if not words or not words[0]:
        raise InputError("missing the recipe: arctic_training recipe.yaml; see --help")
    args.recipe, *more = words
    if more:
        guess = "" if "." in args.recipe else did_you_mean(args.recipe, commands)
        guess = guess or "overrides are written key.path=value"
        raise InputError(f"expected one recipe ({args.recipe}), got a second: {more[0]}; {guess}")
