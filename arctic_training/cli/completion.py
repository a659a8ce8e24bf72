"""Print a script by which a shell completes commands, options, recipes and names of components.

bash   eval "$(arctic_training completion bash)"               in ~/.bashrc
zsh    eval "$(arctic_training completion zsh)"                in ~/.zshrc
fish   arctic_training completion fish > ~/.config/fish/completions/arctic_training.fish
"""

import argparse
import shlex
from typing import NamedTuple

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
_arctic_training() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" command="" words="" files="" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "${{COMP_WORDS[i]}}" in -*) ;; *) command="${{COMP_WORDS[i]}}"; break ;; esac
  done
  case "$command" in
    "") words="{commands} {train}"; files=yaml ;;
{cases}
    *) words="{train}" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [ "$files" = yaml ]; then
    COMPREPLY+=($(compgen -f -X '!*.yaml' -- "$current") $(compgen -f -X '!*.yml' -- "$current"))
    COMPREPLY+=($(compgen -d -- "$current"))
  elif [ "$files" = any ]; then
    COMPREPLY+=($(compgen -f -- "$current"))
  fi
  if [ -n "$files" ] && type compopt > /dev/null 2>&1; then compopt -o filenames 2> /dev/null; fi
}}
complete -F _arctic_training arctic_training
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


class Words(NamedTuple):
    """Words that may follow a command."""

    summary: str
    words: list[str]
    """Options, and the words that an argument may be."""
    files: str
    """``yaml``, ``any``, or empty where no file is an argument."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``completion``."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")


def run(arguments: argparse.Namespace) -> int:
    """Prints the script."""
    commands = all_words()
    script = _fish(commands) if arguments.shell == "fish" else _bash(commands)
    print((_ZSH if arguments.shell == "zsh" else "") + script, end="")
    return 0


def all_words() -> dict[str, Words]:
    """Returns what may follow each command, by its name."""
    from importlib import import_module

    from arctic_training.cli.commands import COMMANDS
    from arctic_training.launch.arguments import COMMANDS as RECIPE_COMMANDS
    from arctic_training.launch.arguments import options

    commands = {name: Words("", options(), "yaml") for name in RECIPE_COMMANDS}
    for name, command in COMMANDS.items():
        module = import_module(f"arctic_training.cli.{command.module}")
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        arguments = [action for action in parser._actions if not action.option_strings]
        words = [*(module.words() if hasattr(module, "words") else [])]
        words += [str(choice) for action in arguments for choice in action.choices or ()]
        words += [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        reads_recipe = any(action.dest == "recipe" for action in arguments)
        reads_file = not hasattr(module, "words") and any(action.choices is None for action in arguments)
        commands[name] = Words(command.summary, words, "yaml" if reads_recipe else "any" if reads_file else "")
    return commands


def _bash(commands: dict[str, Words]) -> str:
    case = "    {}) words={}; files={} ;;"
    cases = [case.format(name, shlex.quote(" ".join(one.words)), one.files) for name, one in commands.items()]
    return _BASH.format(commands=" ".join(commands), train=" ".join(commands["train"].words), cases="\n".join(cases))


def _fish(commands: dict[str, Words]) -> str:
    lines = ["complete -c arctic_training -f"]
    for name, one in commands.items():
        first = f"complete -c arctic_training -n __fish_use_subcommand -a {name}"
        lines.append(f"{first} -d {shlex.quote(one.summary)}" if one.summary else first)
        here = f"complete -c arctic_training -n {shlex.quote(f'__fish_seen_subcommand_from {name}')}"
        lines.append(f"{here} -a {shlex.quote(' '.join(one.words))}")
        if one.files == "any":
            lines.append(f"{here} -F")
    recipes = "complete -c arctic_training -k -a"
    lines += [f"{recipes} '(__fish_complete_suffix .{suffix})'" for suffix in ("yaml", "yml")]
    return "\n".join(lines) + "\n"
