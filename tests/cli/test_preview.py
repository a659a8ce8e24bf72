"""The command `preview`: what it prints to a pipe and to a terminal, as JSON, and that it only fills the cache."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny
from tests.command import execute

END = "<|im_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of 12 chats, of which two are the same and one is too long, and 4 to evaluate on."""
    folder = tmp_path_factory.mktemp("preview")
    tiny.save_model(folder / "model")
    rows = tiny.chats(10)
    rows += [
        rows[0],
        {"messages": [{"role": "user", "content": "\x1b[31mred\x07"}, {"role": "assistant", "content": "x " * 300}]},
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.save_chats(folder / "held_out.jsonl", 3, seed=0)
    recipe = {
        "model": {"name_or_path": "model", "dtype": "fp32"},
        "data": {
            "sources": ["chats.jsonl"],
            "eval_sources": ["held_out.jsonl"],
            "max_length": 256,
            "pack_samples": True,
            "filter_samples": False,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def preview(folder: Path, *words: str, **environment: str) -> str:
    done = execute(folder, "preview", "recipe.yaml", *words, ARCTIC_TRAINING_CACHE=str(folder / "cache"), **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def targets(row: dict[str, Any]) -> list[str]:
    """What the assistant says in a row: the texts of the spans of targets."""
    spans, before = [""], False
    for text in row["texts"]:
        for token in text["tokens"]:
            if token["target"] and not before:
                spans.append("")
            spans[-1] += token["text"] if token["target"] else ""
            before = token["target"]
    return spans[1:]


def test_json_has_every_answer_of_the_files(folder: Path) -> None:
    sets = json.loads(preview(folder, "--json", "-n", "100"))["sets"]
    assert list(sets) == ["train", "eval"]
    says = [turn["content"] + END for row in tiny.chats(3) for turn in row["messages"][1::2]]
    assert sorted(span for row in sets["eval"]["first_rows"] for span in targets(row)) == sorted(says)
    train = sets["train"]
    assert (train["samples"], train["duplicates"], train["target_spans_without_end_token"]) == (12, 1, 1)
    assert train["preparation"]["truncated"] == {"samples longer than max_length = 256": 1}
    assert (sets["eval"]["also_in_train"], sets["eval"]["duplicates"]) == (3, 0)
    assert not (folder / "runs").exists()
    assert [path.name for path in (folder / "cache").iterdir()]  # as a run would fill it


def test_a_pipe_gets_marks_and_no_escapes(folder: Path) -> None:
    text = preview(folder, "-n", "9", "--tokens", "0")
    assert "\x1b" not in text and "\x07" not in text
    assert "\\x1b" in text.replace("│", "")  # of the data, where a person can see it
    says = [turn["content"] + END for row in tiny.chats(10) for turn in row["messages"][1::2]]
    joined = re.sub(r"[│\n ]", "", text)
    assert all(f"⟦{answer.replace(' ', '')}⟧" in joined for answer in says)
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^duplicates +1$", text, re.MULTILINE)
    assert re.search(r"^truncated +1: samples longer than max_length = 256$", text, re.MULTILINE)
    fills = re.findall(r"^fill of rows +(\d+\.\d)%, the rest is padding$", text, re.MULTILINE)
    sets = json.loads(preview(folder, "--json"))["sets"].values()  # each packed row is one of 256 tokens
    assert fills == [f"{100 * one['texts']['']['tokens'] / (256 * one['rows']):.1f}" for one in sets]
    assert re.search(r"^messages +.*user, .*assistant$", text, re.MULTILINE)


def test_colours_where_they_are_wanted(folder: Path) -> None:
    coloured = preview(folder, "-n", "1", FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b[1;32m" in coloured and "⟦" not in coloured
    plain = preview(folder, "-n", "1", FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1")
    assert not re.search(r"\x1b\[[\d;]*3[1-7]", plain) and "⟦" in plain


def test_data_that_cannot_be_used_are_refused_with_their_place(folder: Path) -> None:
    done = execute(folder, "preview", "recipe.yaml", "data.max_length=2", "data.filter_samples=true")
    assert done.returncode == 2 and not done.stdout
    assert "max_length" in done.stderr and "nothing is left" in done.stderr
