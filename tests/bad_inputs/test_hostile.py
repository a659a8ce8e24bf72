"""Recipes, models, templates and caches that were made to do harm do none, and secrets stay where they are."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from arctic_training.cli import main
from arctic_training.data import chat_template
from arctic_training.data.chat_template import ChatTemplate
from arctic_training.errors import DataError
from tests.bad_inputs.case import Case, sft
from tests.bad_inputs.test_bad_recipes import BOMB
from tests.data import templates
from tests.processes import ROOT

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
import io, json, re, sys, time
from contextlib import redirect_stderr
from arctic_training.cli import main
import arctic_training.config.recipe
told = []
for name in sys.argv[1:]:
    said, began = io.StringIO(), time.process_time()
    with redirect_stderr(said):
        code = main(["validate", name])
    status = open("/proc/self/status").read()  # what getrusage tells begins with the memory of who started this
    memory = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024
    told.append([code, time.process_time() - began, memory, said.getvalue()[:300]])
print(json.dumps(told))
"""


def refused(recipes: dict[str, str], folder: Path) -> list[tuple[str, float, float]]:
    """Each recipe's seconds, and the megabytes of the process after it: a process of its own reads them all."""
    for number, text in enumerate(recipes.values()):
        (folder / f"{number}.yaml").write_text(text)
    names = ["warm.yaml", *(f"{number}.yaml" for number in range(len(recipes)))]
    (folder / "warm.yaml").write_text(sft() + "seed: x\n")
    before = sorted(os.listdir(folder))
    words = names if recipes is VALUES else names[1:]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    told = json.loads(child.stdout)
    assert [code for code, *_ in told] == [2] * len(words), told
    assert all("Traceback" not in said for *_, said in told)
    assert sorted(os.listdir(folder)) == before
    names = [*["warm"] * (recipes is VALUES), *recipes]
    return [(name, seconds, memory) for name, (_, seconds, memory, _) in zip(names, told, strict=True)]


@pytest.mark.fault(21)
def test_hostile_texts_are_refused_within_a_second_and_200_megabytes(tmp_path: Path) -> None:
    for name, seconds, memory in refused(TEXTS, tmp_path):
        assert seconds < 1, name
        assert memory < 200, name


@pytest.mark.fault(21)
def test_hostile_values_are_refused_within_a_second_and_200_megabytes(tmp_path: Path) -> None:
    """Beside what the libraries take that check them, which a first, harmless recipe has loaded."""
    (_, _, loaded), *told = refused(VALUES, tmp_path)
    for name, seconds, memory in told:
        assert seconds < 1, name
        assert memory - loaded < 200, name


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
    assert f"{table.parent.resolve()} is no whole entry of the data cache" in capsys.readouterr().err
    assert not Path("planted").exists()
    assert not Path("runs").exists()


@pytest.mark.fault(33)
def test_a_template_without_an_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "PATIENCE", 0.5)
    loops = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"takes more than 0\.5 s for a chat of two words"):
        ChatTemplate(templates.byte_level(loops))
    assert time.perf_counter() - began < 5
    ChatTemplate(templates.byte_level(templates.CHATML))  # and nothing rings later
    time.sleep(0.6)


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
    code = "from arctic_training.errors import TrainingError\n" * (error == "TrainingError") + code
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
