"""Every command beside training: its help, and what is refused of its arguments."""

import logging
from importlib import import_module

import pytest

from arctic_training.cli.commands import COMMANDS
from arctic_training.cli.main import main


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_that_fits_a_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: arctic_training {name}")
    described = import_module(f"arctic_training.cli.{COMMANDS[name].module}").__doc__ or ""
    assert " ".join(described.split()) in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_refused_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--no-such-option"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(f"; see arctic_training {name} --help\n") and err.count("\n") == 1


def test_the_help_of_all_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name:<15} {command.summary}\n" in text


def test_a_misspelled_command_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lsit", "trainer"]) == 2
    assert "did you mean 'list'?" in capsys.readouterr().err


def test_no_command_prints_warnings_of_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that needs no DeepSpeed imports it with another library, and it warns of a machine without GPU."""
    log, printed = logging.getLogger("DeepSpeed"), list[str]()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: printed.append(record.getMessage()))
    monkeypatch.setattr(log, "handlers", [handler])

    def run(arguments: object) -> int:
        log.warning("no GPU")
        log.error("an error")
        return 0

    monkeypatch.setattr("arctic_training.cli.recipes.run", run)
    assert main(["recipes", "list"]) == 0
    log.warning("of the program")
    assert printed == ["an error", "of the program"]
