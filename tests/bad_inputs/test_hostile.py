"""Recipes, models, templates and caches that were made to do harm do none, and secrets stay where they are."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arctic_training.cli.main import main
from arctic_training.data.tokenization import chat_template
from arctic_training.data.tokenization.chat_template import ChatTemplate
from arctic_training.errors.types import DataError
from tests.bad_inputs.case import Case, sft
from tests.bad_inputs.test_bad_recipes import BOMB
from tests.data import templates
from tests.processes import HANG, ROOT

REFERENCES = "a0: xxxxxxxxxx\n" + "".join(f"a{n + 1}: {f'${{a{n}}}' * 10}\n" for n in range(30))

# what is refused by its text alone
TEXTS = {
    "a bomb of aliases": BOMB,
    "aliases that merge": "a0: &a0 {x: 1}\n"
    + "".join(f"a{n + 1}: &a{n + 1} {{p: *a{n}, q: *a{n}, <<: *a{n}}}\n" for n in range(30)),
    "brackets without end": "a: " + "[" * 500_000,
    "braces without end": "a: " + "{a: " * 200_000,
    "blocks without end": "".join(" " * n + "a:\n" for n in range(1_300)),
    "keys without end": "".join(f"{'? ' * 400}a\n" for _ in range(3)),
    "a tag that runs": "a: !!python/object/apply:os.mkdir [planted]\n",
    "a tag that calls": "a: !!python/object/new:os.system ['mkdir planted']\n",
    "ten thousand keys": "".join(f"k{n}: {n}\n" for n in range(60_000)),
    "a file without end": "a: " + "x" * 5_000_000,
    "an anchor in itself": "a: &a {b: &b [*a, *b]}\n",
    "one long line of quotes": 'a: "' + '\\"' * 400_000,
}
# what is read, and then makes no sense
VALUES = {
    "a long key": f"{'k' * 100_000}: 1\n" + sft(),
    "a long value": f"seed: {'k' * 400_000}\n" + sft(),
    "a number of many digits": f"seed: {'9' * 400_000}\n" + sft(),
    "a number that explodes": "seed: 9^999999999\n" + sft(),
    "a number with a large exponent": "seed: 1e999999999\n" + sft(),
    "references that explode": REFERENCES + sft(),
    "references in a circle": "output_dir: ${a}\na: ${b}${b}\nb: ${a}${a}\n" + sft(),
    "a pattern that is slow to match": f"seed: {'1_' * 50_000}x\n" + sft(),
    "a reference of many parts": f"output_dir: ${{{'a.' * 100_000}}}\n" + sft(),
    "thousands of unknown keys": "".join(f"key_{n}: 1\n" for n in range(4_000)) + sft(),
}

CHILD = """
import io, json, sys, tracemalloc
from contextlib import redirect_stderr
from arctic_training.cli.main import main
import arctic_training.config.get_config
from tests.work import calls
def validate(name):
    output = io.StringIO()
    with redirect_stderr(output):
        code = main(["validate", name])
    return code, output.getvalue()[:300]

results = []
validate("harmless.yaml")
for name in sys.argv[1:]:
    outcomes = []
    tracemalloc.start()
    count = calls(lambda: outcomes.append(validate(name)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    results.append([*outcomes[0], count, peak])
print(json.dumps(results))
"""


@pytest.mark.fault(21)
@pytest.mark.parametrize("recipes", [TEXTS, VALUES], ids=["texts", "values"])
def test_hostile_recipes_are_refused_with_little_work_and_memory(recipes: dict[str, str], tmp_path: Path) -> None:
    """In a process of its own; a first, harmless recipe has loaded the libraries that check the others."""
    for number, text in enumerate(recipes.values()):
        (tmp_path / f"{number}.yaml").write_text(text)
    (tmp_path / "harmless.yaml").write_text(sft() + "seed: x\n")
    names = ["harmless.yaml", *(f"{number}.yaml" for number in range(len(recipes)))]
    before = sorted(os.listdir(tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *names],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert child.returncode == 0, child.stderr
    assert sorted(os.listdir(tmp_path)) == before
    for name, (code, output, count, peak) in zip(["harmless", *recipes], json.loads(child.stdout), strict=True):
        assert code == 2 and "Traceback" not in output, (name, output)
        assert count < 20e6 and peak < 50e6, (name, count, peak)


@pytest.mark.fault(20)
def test_a_pickle_in_the_data_cache_is_not_run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Planted:
        def __reduce__(self) -> Any:
            return os.mkdir, ("planted",)

    monkeypatch.chdir(tmp_path)
    Case("", recipe=sft(data=", cache_dir: cache")).plant(tmp_path, tiny_model)
    assert main(["process-data", "recipe.yaml"]) == 0
    (table,) = Path("cache").glob("*/rows.arrow")
    size = table.stat().st_size
    table.write_bytes(pickle.dumps(Planted()).ljust(size, b"\0"))
    assert main(["recipe.yaml"]) == 2
    assert f"{table.parent.resolve()} is an incomplete entry of the data cache" in capsys.readouterr().err
    assert not Path("planted").exists()
    assert not Path("runs").exists()


@pytest.mark.fault(33)
def test_a_template_without_an_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    with monkeypatch.context() as short:
        short.setattr(chat_template, "RENDER_TIMEOUT", 0.5)
        with pytest.raises(DataError, match=r"takes more than 0\.5 s for a chat of two words"):
            ChatTemplate(templates.byte_level(loops))
    ChatTemplate(templates.byte_level(templates.CHATML))
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)  # and nothing rings later
    assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL


LEAKY = """
from arctic_training import SFTTrainer
from arctic_training.logging import logger


class Config(SFTTrainer.config_type):
    token: str = ""


class Leaky(SFTTrainer):
    name = "leaky"
    config_type = Config

    def loss(self, batch):
        logger.info(f"logs in with {self.config.token}")
        logger.warning(f"logs in with {self.config.token}")
        raise {error}(f"the server does not know {self.config.token}")
"""


@pytest.mark.fault(36)
@pytest.mark.parametrize("error", ["ValueError", "TrainingError"])
@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["plain", "debug"])
def test_a_secret_is_in_no_log_folder_or_message(
    error: str,
    debug: list[str],
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    secret = "hf_Q7x9vTz2LmNp"
    monkeypatch.setenv("A_TOKEN", secret)
    monkeypatch.chdir(tmp_path)
    code = LEAKY.replace("{error}", error).replace("leaky", f"leaky_{error}_{len(debug)}")
    if error == "TrainingError":
        code = f"from arctic_training.errors.types import TrainingError\n{code}"
    recipe = f"type: leaky_{error}_{len(debug)}\ntoken: ${{env:A_TOKEN}}\n{sft()}"
    Case("", recipe=recipe, files={"train.py": code}).plant(tmp_path, tiny_model)
    assert main(["recipe.yaml", *debug]) == 1
    out, err = capsys.readouterr()
    assert "the server does not know ${env:A_TOKEN}" in err
    assert err.count("logs in with ${env:A_TOKEN}") == 1
    assert secret not in out + err
    written = [path for path in Path("runs").rglob("*") if path.is_file()]
    assert any("logs in with ${env:A_TOKEN}" in path.read_text(errors="replace") for path in written)
    assert [path for path in written if secret.encode() in path.read_bytes()] == []
