"""What the command line means, and what is refused of it."""

from typing import Any

import pytest

from arctic_training.cli.commands import COMMANDS
from arctic_training.cli.main import main
from arctic_training.errors.types import InputError
from arctic_training.launch.arguments import format_help, parse


@pytest.mark.parametrize(
    ("line", "means"),
    [
        ("r.yaml", {"command": "train", "recipe": "r.yaml"}),
        ("train r.yaml", {"command": "train", "recipe": "r.yaml"}),
        ("process-data r.yaml", {"command": "process-data"}),
        ("validate r.yaml seed=1 a.b.0.c=x=y", {"command": "validate", "overrides": ["seed=1", "a.b.0.c=x=y"]}),
        ("--show r.yaml", {"show": True, "recipe": "r.yaml"}),
        ("r.yaml --num_gpus 2", {"num_gpus": 2, "launcher_args": []}),
        ("--num_gpus=2 r.yaml", {"num_gpus": 2, "recipe": "r.yaml"}),
        ("r.yaml --num_accelerators 3", {"num_gpus": 3}),
        ("r.yaml --master_port 29501 --num_nodes 1", {"master_port": 29501, "num_nodes": 1, "launcher_args": []}),
        ("r.yaml --launcher deepspeed", {"launcher_args": []}),
        ("r.yaml --python_profile tottime --debug", {"python_profile": "tottime", "debug": True}),
        ("r.yaml --hostfile h.txt seed=2", {"launcher_args": ["--hostfile", "h.txt"], "overrides": ["seed=2"]}),
        ("--hostfile h.txt r.yaml", {"launcher_args": ["--hostfile", "h.txt"], "recipe": "r.yaml"}),
        ("r.yaml --include worker-0@worker-1:0,2", {"launcher_args": ["--include", "worker-0@worker-1:0,2"]}),
        ("r.yaml --no_ssh --master_addr=a", {"launcher_args": ["--no_ssh", "--master_addr=a"]}),
        ("r.yaml --unknown_to_us 5 seed=2", {"launcher_args": ["--unknown_to_us", "5"], "overrides": ["seed=2"]}),
        ("r.yaml +a.b=c ~d.0 -q", {"overrides": ["+a.b=c", "~d.0"], "launcher_args": ["-q"]}),
        ("r.yaml a=1 --sweep b=1,2 c=3 --num_gpus 2", {"overrides": ["a=1"], "sweep": ["b=1,2", "c=3"], "num_gpus": 2}),
        ("r.yaml --dry-run --debug", {"dry_run": True, "debug": True}),
        ("r.yaml --local_rank=1", {"launcher_args": []}),
        ("-h", {"help": True}),
        ("train --help", {"help": True}),
    ],
)
def test_what_a_command_line_means(line: str, means: dict[str, Any]) -> None:
    args = parse(line.split())
    assert {name: getattr(args, name) for name in means} == means


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "missing the recipe"),
        ("train", "missing the recipe"),
        ("r.yaml s.yaml", "expected one recipe (r.yaml), got a second: s.yaml; overrides are written key.path=value"),
        ("tarin r.yaml", "expected one recipe (tarin), got a second: r.yaml; did you mean 'train'?"),
        ("r.yaml --launcher ray", "--launcher: invalid choice: 'ray' (choose from "),
        ("r.yaml --python_profile time", "--python_profile: invalid choice: 'time' (choose from "),
        ("r.yaml --num_gpus", "--num_gpus: expected one argument"),
        ("validate r.yaml --dry-run", "--sweep and --dry-run train, each by itself"),
        ("r.yaml --dry-run --sweep seed=1,2", "--sweep and --dry-run train, each by itself"),
        ("r.yaml --sweep", "--sweep: expected at least one argument"),
        ("r.yaml --num_gpus two", "--num_gpus: expected an integer above 0, got 'two'"),
        ("r.yaml --num_gpus 0", "--num_gpus: expected an integer above 0, got '0'"),
    ],
)
def test_what_is_refused(line: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as refused:
        parse(line.split())
    assert str(refused.value).startswith(why)
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1


def test_the_ranks_get_the_arguments_of_the_command() -> None:
    args = parse(["process-data", "r.yaml", "a=[1, 2]", "--num_gpus", "2", "--debug", "--python_profile", "cumtime"])
    again = parse(args.for_one_process())
    kept = ("command", "recipe", "overrides", "debug", "python_profile")
    assert [getattr(again, name) for name in kept] == [getattr(args, name) for name in kept]


def test_help_fits_a_terminal_and_shows_how() -> None:
    text = format_help({name: command.summary for name, command in COMMANDS.items()})
    assert max(map(len, text.splitlines())) <= 80
    assert "examples:" in text
    for word in ("train", "process-data", "validate", *COMMANDS, "--show", "--num_gpus", "--hostfile", "--debug"):
        assert word in text
