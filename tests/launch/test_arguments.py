"""What the command line means, and what is refused of it."""

from typing import Any

import pytest

from arctic_training.cli.main import main
from arctic_training.errors.types import InputError
from arctic_training.launch.arguments import HELP, parse


@pytest.mark.parametrize(
    ("line", "means"),
    [
        ("r.yaml", {"command": "train", "recipe": "r.yaml"}),
        ("train r.yaml", {"command": "train", "recipe": "r.yaml"}),
        ("process-data r.yaml", {"command": "process-data"}),
        ("validate r.yaml seed=1 a.b.0.c=x=y", {"command": "validate", "overrides": ["seed=1", "a.b.0.c=x=y"]}),
        ("--show r.yaml", {"show": True, "recipe": "r.yaml"}),
        ("r.yaml --num_gpus 2", {"num_gpus": 2, "passed": []}),
        ("--num_gpus=2 r.yaml", {"num_gpus": 2, "recipe": "r.yaml"}),
        ("r.yaml --num_accelerators 3", {"num_gpus": 3}),
        ("r.yaml --master_port 29501 --num_nodes 1", {"master_port": 29501, "num_nodes": 1, "passed": []}),
        ("r.yaml --launcher deepspeed", {"passed": []}),
        ("r.yaml --python_profile tottime --debug", {"python_profile": "tottime", "debug": True}),
        ("r.yaml --hostfile h.txt seed=2", {"passed": ["--hostfile", "h.txt"], "overrides": ["seed=2"]}),
        ("--hostfile h.txt r.yaml", {"passed": ["--hostfile", "h.txt"], "recipe": "r.yaml"}),
        ("r.yaml --include worker-0@worker-1:0,2", {"passed": ["--include", "worker-0@worker-1:0,2"]}),
        ("r.yaml --no_ssh --master_addr=a", {"passed": ["--no_ssh", "--master_addr=a"]}),
        ("r.yaml --unknown_to_us 5 seed=2", {"passed": ["--unknown_to_us", "5"], "overrides": ["seed=2"]}),
        ("r.yaml --local_rank=1", {"passed": []}),
        ("list", {"command": "list", "kind": "", "recipe": ""}),
        ("list trainer", {"command": "list", "kind": "trainer"}),
        ("-h", {"help": True}),
        ("train --help", {"help": True}),
    ],
)
def test_what_is_said(line: str, means: dict[str, Any]) -> None:
    said = parse(line.split())
    assert {name: getattr(said, name) for name in means} == means


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "no recipe is given"),
        ("train", "no recipe is given"),
        ("r.yaml s.yaml", "s.yaml: one recipe is wanted, and r.yaml is given already"),
        ("tarin r.yaml", "r.yaml: one recipe is wanted, and tarin is given already; did you mean the command train?"),
        ("r.yaml --launcher ray", "--launcher ray: not supported; deepspeed is the only one"),
        ("r.yaml --python_profile time", "--python_profile time: tottime or cumtime is wanted"),
        ("r.yaml --num_gpus", "--num_gpus: a value has to follow"),
        ("r.yaml --num_gpus two", "--num_gpus two: a whole number above 0 is wanted"),
        ("r.yaml --num_gpus 0", "--num_gpus 0: a whole number above 0 is wanted"),
        ("list trainer callback", "callback: one recipe is wanted"),
    ],
)
def test_what_is_refused(line: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r".") as told:
        parse(line.split())
    assert str(told.value).startswith(why)
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1


def test_the_ranks_are_told_what_the_command_was_told() -> None:
    said = parse(["process-data", "r.yaml", "a=[1, 2]", "--num_gpus", "2", "--debug", "--python_profile", "cumtime"])
    again = parse(said.for_one_process())
    kept = ("command", "recipe", "overrides", "debug", "python_profile")
    assert [getattr(again, name) for name in kept] == [getattr(said, name) for name in kept]


def test_help_fits_a_terminal_and_shows_how() -> None:
    assert max(map(len, HELP.splitlines())) <= 80
    assert "examples:" in HELP
    for word in ("train", "process-data", "validate", "list", "--show", "--num_gpus", "--hostfile", "--debug"):
        assert word in HELP
