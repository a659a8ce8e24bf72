"""Whatever is read, it is taken or refused by an error of ours: no crash, no hang, no blow-up."""

import contextlib
import copy
import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from arctic_training.config.get_config import get_config
from arctic_training.config.recipe.node import to_python
from arctic_training.config.recipe.yaml_reader import read_yaml
from arctic_training.config.recipe.yaml_writer import write_yaml
from arctic_training.data.batching.packing import best_fit
from arctic_training.data.factories.sft import SFTDataConfig
from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.chat import reader as shape_reader
from arctic_training.data.formats.preference import reader as preference_reader
from arctic_training.data.sources.arrow_rows import RowReader
from arctic_training.data.tokenization.encoder import SampleEncoder
from arctic_training.errors.types import ArcticError, DataError, InputError, ModelError, RecipeError
from arctic_training.launch.arguments import parse
from arctic_training.model import weight_files
from arctic_training.registry import lookup
from tests.data import templates
from tests.tracked import tracked
from tests.work import calls

pytestmark = pytest.mark.fault(33)

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# recipes

RECIPES = [path.read_text(encoding="utf-8") for path in tracked("tests/config/recipes_08/*.yaml", "projects/*/*.yaml")]
# by what the package has, and not by a project's own code
TREES = [{**to_python(read_yaml(text, "r")), "type": kind} for text in RECIPES for kind in ("sft", "dpo", "gan")]

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "0", "-1", "1e400", "9^99", "~", "a/b", "${seed}", "${type", "../..", "a\0b", "x" * 5_000]),
    st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.sampled_from(["type", "a", "0", "name_or_path"]), st.text(max_size=3), max_size=2),
)


def read(source: Any, overrides: list[str] | None = None) -> None:
    problems = ["none"]
    try:
        get_config(source, overrides or [])
    except RecipeError as error:
        problems = error.problems
    assert problems
    assert all(problem and len(problem.splitlines()) == 1 for problem in problems)


@st.composite
def changed_trees(draw: st.DrawFn) -> dict[str, Any]:
    """A good recipe with a few values, keys or sections of it replaced."""
    tree = copy.deepcopy(draw(st.sampled_from(TREES)))
    for _ in range(draw(st.integers(1, 3))):
        at: Any = tree
        while True:
            keys = sorted(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], (dict, list)) and draw(st.booleans()):
                at = at[key]
                continue
            if isinstance(at, dict) and draw(st.booleans()):
                at[draw(st.text(min_size=1, max_size=5))] = at.pop(key)
            else:
                at[key] = draw(ODD)
            break
    return tree


@FEW
@given(changed_trees())
def test_any_change_of_a_good_recipe(tree: dict[str, Any]) -> None:
    read(tree)


@st.composite
def changed_bytes(draw: st.DrawFn, texts: list[bytes]) -> bytes:
    """A good file, a few stretches of it taken out, doubled or replaced."""
    content = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        piece = draw(st.one_of(st.just(b""), st.just(content[start:end] * 2), st.binary(max_size=8)))
        content = content[:start] + piece + content[end:]
    return content


@FEW
@given(changed_bytes([text.encode() for text in RECIPES]) | st.binary(max_size=200))
def test_any_bytes_as_a_recipe(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(content)
        read(path)
        assert [one.name for one in path.parent.iterdir()] == ["recipe.yaml"]


WORD = st.text(st.sampled_from("ab.=0${}[]:_- ") | st.characters(exclude_categories=["Cs"]), max_size=12)
PATHS = st.sampled_from(
    ["seed", "optimizer.lr", "data.sources.0", "data.sources.0.split", "model", "checkpoint.0.type"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(WORD, st.tuples(PATHS, WORD).map("=".join)), max_size=3))
def test_any_override(words: list[str]) -> None:
    read({"model": {"name_or_path": "m"}, "data": {"sources": ["a/b"]}}, words)


OPTIONS = [
    "--num_gpus",
    "--num_gpus=2",
    "--show",
    "validate",
    "train",
    "r.yaml",
    "a=1",
    "--master_port",
    "-x",
    "--",
    "-",
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(OPTIONS) | WORD, max_size=5))
def test_any_command_line(words: list[str]) -> None:
    try:
        args = parse(words)
    except InputError:
        return
    assert args.recipe or args.help or args.version


@FEW
@given(
    st.dictionaries(
        st.sampled_from("abc"), st.lists(st.sampled_from(["${a}", "${b.c}", "$${", "${", "}", "x"])).map("".join)
    )
)
def test_any_references(tree: dict[str, str]) -> None:
    read({**tree, "model": {"name_or_path": "m"}, "data": {"sources": ["a/b"]}})


def test_what_is_written_of_a_good_recipe_reads_back() -> None:
    for tree in TREES:
        assert to_python(read_yaml(write_yaml(tree), "r")) == tree


# rows

GOOD = {
    ".jsonl": b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 3,
    ".json": b'[{"prompt": "a", "completion": "b"},\n {"prompt": 1, "completion": null}]',
    ".csv": 'prompt,completion\n"a\n""b""",\u00e9\nc,1\n'.encode(),
    ".txt": "one\n\ntwo\u00e9\r\nthree".encode(),
}


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"text": ["a", "b"], "n": [[1], []]}), sink)
    return bytes(sink.getvalue())


GOOD[".parquet"] = parquet_bytes()


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(sorted(GOOD)).flatmap(
        lambda kind: st.tuples(st.just(kind), changed_bytes([GOOD[kind]]) | st.binary(max_size=60))
    )
)
def test_any_bytes_as_a_data_file(drawn: tuple[str, bytes]) -> None:
    suffix, content = drawn
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(content)
        config = SFTDataConfig(sources=[str(path)], max_length=8).sources[0]
        source: Any = lookup("data_source", config.type)(None, config)  # type: ignore[call-arg]
        try:
            rows = source("train")
            encoded = RowReader(rows.features)(rows.with_format("arrow")[:])
        except DataError as error:
            refusal = str(error)
        else:
            refusal = ""
        if refusal:
            assert str(path) in refusal
            return
        assert len(encoded) == len(rows) > 0
        assert source.place(len(rows) - 1).startswith(str(path))
        take(shape_reader, encoded)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
COLUMNS = [
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "tools",
    "system",
]
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def take(reader: Callable[[list[str]], Callable[[Any], Any]], rows: list[dict[str, Any]]) -> None:
    """Read rows as one of the shapes, or refuse them."""
    with contextlib.suppress(DataError):
        sample = reader(list(rows[0]))
        for row in rows:
            sample(row)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(COLUMNS), JSON | st.just(CHAT), min_size=1, max_size=5))
def test_any_row(row: dict[str, Any]) -> None:
    take(shape_reader, [row])
    take(preference_reader, [row])


# weights


def weight_bytes() -> bytes:
    header = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"format": "pt"}}
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + bytes(24)


@settings(max_examples=150, deadline=None)
@given(changed_bytes([weight_bytes()]) | st.binary(max_size=40))
def test_any_bytes_as_weights(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").write_bytes(content)
        with contextlib.suppress(ModelError):
            assert all(isinstance(shape, list) for shape in weight_files.read_shapes(Path(folder)).values())


# templates

SAID: dict[str, tuple[str, str, Callable[[str], str]]] = {
    # name: template, end-of-text token, what is a target of an answer
    "chatml": (templates.CHATML, "<|im_end|>", lambda answer: answer + "<|im_end|>"),
    "without prompt": (templates.CHATML_WITHOUT_PROMPT, "<|im_end|>", lambda answer: answer + "<|im_end|>"),
    "default system": (templates.CHATML_DEFAULT_SYSTEM, "<|im_end|>", lambda answer: answer + "<|im_end|>"),
    "tagged": (templates.TAGGED, "<|im_end|>", lambda answer: answer + "<|im_end|>"),
    "llama3": (templates.LLAMA3, "<|eot_id|>", lambda answer: answer + "<|eot_id|>"),
    "mistral": (templates.MISTRAL, "</s>", lambda answer: answer + "</s>"),
    "gemma": (templates.GEMMA, "<end_of_turn>", lambda answer: answer + "<end_of_turn>"),
    "plain": (templates.PLAIN, "</s>", lambda answer: answer),
}
OTHERS = {
    "phi3": templates.PHI3,
    "thinking": templates.THINKING,
    "calls": templates.CALLS,
    "merging": templates.MERGING,
}
ENCODERS = {name: templates.byte_level(text, eos=eos) for name, (text, eos, _) in SAID.items()}
ENCODERS |= {name: templates.byte_level(text) for name, text in OTHERS.items()}

NASTY = [
    *templates.SPECIAL,
    "### assistant:\n",
    "assistant",
    "user",
    "yes",
    "yes",
    "{{ x }}",
    "{% generation %}",
    "\n\n",
    " ",
    "\t",
    "\u200b",
]
NASTY += [
    "\u00e9",
    "e\u0301",
    "\U0001f642",
    "\ufeff",
    "\x00",
    "\x85",
    "<think>",
    "</think>",
    "Xq000001qX",
    "",
    "\u4f60\u597d",
    "[INST] a [/INST]",
]
WORDS = st.lists(st.sampled_from(NASTY) | st.text(max_size=3), max_size=5).map("".join)


def bare(text: str) -> str:
    return "".join(text.split())


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(ENCODERS)), words=st.lists(WORDS, min_size=2, max_size=7))
def test_any_dialogue_is_masked_exactly_or_refused(name: str, words: list[str]) -> None:
    tokenizer = ENCODERS[name]
    chat = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(words)]
    try:
        ((ids, labels),) = SampleEncoder(tokenizer)([Sample(messages=chat)])
    except DataError:
        return
    assert np.all((labels == ids) | (labels == -100))
    if name in SAID:
        answers = "".join(SAID[name][2](text) for text in words[1::2])
        # white space may be a template's own, or one token with the header before it
        assert bare(tokenizer.decode(ids[labels != -100])) == bare(answers)


@settings(max_examples=60, deadline=None)
@given(WORDS | st.text(st.sampled_from("{}%#-|'\" amsforinend_.()0"), max_size=60))
def test_any_text_as_a_template(template: str) -> None:
    samples = [Sample(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])]
    with contextlib.suppress(ArcticError):
        SampleEncoder(templates.byte_level(template or "x"))(samples)


# packing

LENGTHS = st.one_of(
    st.lists(st.integers(1, 64), max_size=200),
    st.lists(st.sampled_from([1, 2, 31, 32, 33, 63, 64]), max_size=300),
    st.integers(1, 200).map(lambda count: list(range(1, count))),
    st.integers(1, 40).map(lambda count: [2**n for n in range(min(count, 30))]),
)


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, capacity=st.integers(1, 2**31) | st.integers(1, 128))
def test_any_lengths_are_packed_once_within_the_room(lengths: list[int], capacity: int) -> None:
    capacity = max(capacity, *lengths, 1)
    packs = best_fit(lengths, capacity)
    assert sorted(packs.members.tolist()) == list(range(len(lengths)))
    assert all(sum(lengths[n] for n in pack) <= capacity for pack in packs)


LENGTHS: dict[str, tuple[list[int], int]] = {
    "room for all": (list(range(1, 1_500)), 10**9),
    "all lengths": (list(range(1, 3_000)), 131_072),
    "ones": ([1] * 200_000, 8_192),
    "none beside another": ([8_192 // 2 + 1] * 100_000, 8_192),
    "all above half": (list(range(4_097, 8_193)) * 5, 8_192),
    "whole and one": ([10**6, 1] * 5_000, 10**6),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_no_lengths_take_long_or_much(case: str) -> None:
    lengths, capacity = LENGTHS[case]
    packs: list[Any] = []
    tracemalloc.start()
    count = calls(lambda: packs.extend(best_fit(lengths, capacity)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, packs)) == len(lengths)
    assert count < 30 * len(lengths)
    assert peak < 100e6


def dialogue(turns: int) -> None:
    chat = [{"role": ("user", "assistant")[n % 2], "content": "yes"} for n in range(turns)]
    ((_, labels),) = SampleEncoder(ENCODERS["chatml"])([Sample(messages=chat)])
    assert json.dumps(labels.tolist()).count(", -100, ") > turns // 2


def test_a_dialogue_of_many_turns_is_not_slow() -> None:
    """It is rendered turn by turn, so that the work may grow with the square of the turns, and no faster."""
    dialogue(2)  # what is read once
    assert calls(lambda: dialogue(200)) < 4.4 * calls(lambda: dialogue(100))
