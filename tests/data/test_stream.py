"""Streams: the same from any saved position, split over ranks, mixed by weight, endless."""

import json
from collections import Counter
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from arctic_training.data.factories.prompt import PromptDataFactory
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.errors.types import DataError, ResumeError
from tests.data import templates
from tests.data.view import make

TOKENIZER = templates.byte_level(templates.CHATML)


def write(folder: Path, name: str, rows: int) -> str:
    chats = [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"{name}{n} " + "yes " * (n % 7)}]
        for n in range(rows)
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("streams")
    return write(folder, "a", 23), write(folder, "b", 7)


def stream(
    *sources: dict[str, Any], rank: int = 0, world: int = 1, micro: int = 1, length: int = 0, **section: Any
) -> Any:
    section = {"sources": [{"streaming": True, **source} for source in sources], "stream_buffer": 5, **section}
    run = {"rank": rank, "world": world, "micro": micro, "train_iters": 0 if length else 10, "epoch_length": length}
    return make(SFTDataFactory, TOKENIZER, section, **run)().train


def texts(batch: Any) -> list[str]:
    text = TOKENIZER.decode(batch["labels"][batch["labels"] != -100])
    return [answer.split()[0] for answer in text.split("<|im_end|>")[:-1]]


def take(loader: Any, count: int) -> list[list[str]]:
    batches = [texts(batch) for batch in islice(loader, count)]
    loader.close()
    return batches


def test_every_row_once_a_round(files: tuple[str, str]) -> None:
    loader = stream({"name_or_path": files[0]})
    assert len(loader) == 0
    assert Counter(row for batch in take(loader, 115) for row in batch) == Counter({f"a{n}": 5 for n in range(23)})


def test_only_last_answers_are_targets_with_mask_history(tmp_path: Path) -> None:
    turns = [{"role": role, "content": f"{role[0]}{n}"} for n in range(2) for role in ("user", "assistant")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": turns[:count]}) + "\n" for count in (2, 3, 4)))
    batches = take(stream({"name_or_path": str(path)}, mask_history=True), 3)
    assert sorted(answer for batch in batches for answer in batch) == ["a0", "a0", "a1"]


def test_rows_that_are_tokens_already(tmp_path: Path, files: tuple[str, str]) -> None:
    path = tmp_path / "tokens.jsonl"
    path.write_text("".join(json.dumps({"input_ids": [n, 5, 6], "labels": [-100, 5, 6]}) + "\n" for n in range(9)))
    tokens = {"name_or_path": str(path), "process": False}
    loader = stream(tokens)
    assert Counter(tuple(batch["input_ids"][0, :3].tolist()) for batch in islice(loader, 45)) == {
        (n, 5, 6): 5 for n in range(9)
    }
    loader.close()
    loader = stream(tokens, {"name_or_path": files[0]})
    targets = Counter(int((batch["labels"] != -100).sum()) == 2 for batch in islice(loader, 60))
    assert targets[True] > 15 and targets[False] > 15
    loader.close()
    path.write_text('{"input_ids": [-7]}\n')
    with pytest.raises(DataError, match=r"tokens\.jsonl: .*-7 is no token.*; the row begins \{\"input_ids\": \[-7"):
        take(stream(tokens), 1)


def test_ranks_share_the_rows(files: tuple[str, str]) -> None:
    rows = [
        row
        for rank in range(2)
        for batch in take(stream({"name_or_path": files[0]}, rank=rank, world=2), 10)
        for row in batch
    ]
    assert Counter(rows) == Counter([f"a{n % 23}" for n in range(20)])


@settings(max_examples=12)
@given(before=st.integers(0, 30), packed=st.booleans(), again=st.integers(0, 6))
def test_going_on_from_a_saved_position_is_exact(files: tuple[str, str], before: int, packed: bool, again: int) -> None:
    sources = [{"name_or_path": file, "weight": weight} for file, weight in zip(files, (1, 3), strict=True)]
    section = {"pack_samples": packed, "max_length": 64, "div_length": 8}
    expected = take(stream(*sources, **section), before + again + 9)
    first = stream(*sources, **section)
    reading = iter(first)
    assert [texts(batch) for batch in islice(reading, before)] == expected[:before]
    state = json.loads(json.dumps(first.state_dict()))
    assert [texts(batch) for batch in islice(reading, 3)] == expected[before : before + 3]  # telling it moves nothing
    first.close()
    second = stream(*sources, **section)
    second.load_state_dict(state)
    reading = iter(second)
    assert [texts(batch) for batch in islice(reading, again)] == expected[before : before + again]
    state = second.state_dict()
    second.close()
    third = stream(*sources, **section)
    third.load_state_dict(state)
    assert take(third, 9) == expected[before + again :]


def rows(loaders: list[Any], steps: int) -> list[str]:
    """What all ranks hand out in so many micro-batches of one row, row by row."""
    batches = [[texts(batch) for batch in islice(loader, steps)] for loader in loaders]
    return [" ".join(batches[rank][step]) for step in range(steps) for rank in range(len(loaders))]


@pytest.mark.fault(18)
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    cuts=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), min_size=2, max_size=4),
    packed=st.booleans(),
)
@example(cuts=[(2, 0), (1, 1), (2, 1)], packed=False)
def test_any_number_of_ranks_goes_on_with_the_rows_of_the_first(
    files: tuple[str, str], cuts: list[tuple[int, int]], packed: bool
) -> None:
    sources = [{"name_or_path": file, "weight": weight} for file, weight in zip(files, (1, 3), strict=True)]
    section = {"pack_samples": packed, "max_length": 64, "div_length": 8}
    seen: list[str] = []
    shares: list[Any] = []
    for world, steps in cuts:
        loaders = [stream(*sources, rank=rank, world=world, **section) for rank in range(world)]
        for loader in loaders if shares else ():
            loader.load_sharded_state_dict(shares)
        seen += rows(loaders, steps)
        shares = [json.loads(json.dumps(loader.state_dict())) for loader in loaders]
        for loader in loaders:
            loader.close()
    first = cuts[0][0]
    streams = [stream(*sources, rank=rank, world=first, **section) for rank in range(first)]
    assert seen == rows(streams, -(-len(seen) // first))[: len(seen)]
    for loader in streams:
        loader.close()


@pytest.mark.fault(18)
def test_another_micro_batch_takes_the_same_rows(files: tuple[str, str]) -> None:
    one, two = (stream({"name_or_path": files[0]}, micro=micro) for micro in (1, 3))
    before = [row for batch in islice(one, 7) for row in texts(batch)]
    two.load_state_dict(one.state_dict())
    assert take(two, 4) == [[row for batch in islice(one, 3) for row in texts(batch)] for _ in range(4)]
    assert len(before) == 7
    one.close()


def test_rows_that_are_counted_in_another_way_are_refused(files: tuple[str, str]) -> None:
    state = stream({"name_or_path": files[0]}).state_dict()
    with pytest.raises(
        ResumeError, match="samples of buffers of 5 rows, and this run has samples of buffers of 6 rows"
    ):
        stream({"name_or_path": files[0]}, stream_buffer=6).load_state_dict(state)
    with pytest.raises(ResumeError, match="this run has packs of 64 tokens of buffers of 5 rows"):
        stream({"name_or_path": files[0]}, pack_samples=True, max_length=64).load_state_dict(state)


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(length=st.integers(1, 7), taken=st.integers(0, 7), world=st.sampled_from([1, 2]), later=st.sampled_from([1, 2]))
def test_epochs_of_a_length_follow_one_another(
    files: tuple[str, str], length: int, taken: int, world: int, later: int
) -> None:
    """Two rows a step, in three epochs, in the second of which other ranks go on after ``taken`` steps."""
    taken = min(taken, length)

    def loaders(world: int) -> list[Any]:
        return [
            stream({"name_or_path": files[0]}, rank=rank, world=world, micro=2 // world, length=length)
            for rank in range(world)
        ]

    def read(loaders: list[Any], epoch: int, row: int, steps: int = length) -> list[str]:
        for loader in loaders:
            loader.seek(epoch, row)
        batches = [[texts(batch) for batch in islice(loader, steps)] for loader in loaders]
        return [row for step in zip(*batches, strict=True) for batch in step for row in batch]

    first = loaders(world)
    seen = read(first, 0, 0) + read(first, 1, 0, taken)
    states = [json.loads(json.dumps(loader.state_dict())) for loader in first]
    second = loaders(later)
    for loader in second:
        loader.load_sharded_state_dict(states)
    seen += read(second, 1, 2 * taken) + read(second, 2, 0)
    endless = [stream({"name_or_path": files[0]}, rank=rank, world=world, micro=2 // world) for rank in range(world)]
    batches = [take(loader, 3 * length) for loader in endless]
    assert seen == [row for step in zip(*batches, strict=True) for batch in step for row in batch]
    assert len(seen) == 2 * 3 * length
    for loader in (*first, *second):
        loader.close()


def test_weights(files: tuple[str, str]) -> None:
    loader = stream({"name_or_path": files[0], "weight": 3}, {"name_or_path": files[1], "weight": 1}, stream_buffer=50)
    shares = Counter(row[0] for batch in take(loader, 400) for row in batch)
    assert 0.68 < shares["a"] / 400 < 0.82


def test_a_part_of_a_stream(files: tuple[str, str]) -> None:
    loader = stream({"name_or_path": files[0], "sample_count": 3})
    assert Counter(row for batch in take(loader, 30) for row in batch) == Counter({"a0": 10, "a1": 10, "a2": 10})


def test_streams_of_several_shapes_are_mixed_and_their_bad_rows_named(files: tuple[str, str], tmp_path: Path) -> None:
    alpaca = tmp_path / "alpaca.jsonl"
    questions = [{"instruction": "q", "output": f"c{n}"} for n in range(9)]
    alpaca.write_text("".join(json.dumps(row) + "\n" for row in questions))
    sources = [{"name_or_path": file} for file in (files[0], str(alpaca))]
    section = {"pack_samples": True, "max_length": 64, "stream_buffer": 20}
    loaders = [stream(*sources, rank=rank, world=2, **section) for rank in range(2)]
    seen = Counter(row.split()[0][0] for row in " ".join(rows(loaders, 30)).split())
    assert min(seen["a"], seen["c"]) > 30 and set(seen) == {"a", "c"}
    for loader in loaders:
        loader.close()
    alpaca.write_text("".join(json.dumps(row) + "\n" for row in [*questions, {"instruction": "q", "output": 3}]))
    with pytest.raises(
        DataError, match=r'alpaca\.jsonl: message 2 .*; the row begins \{"instruction": "q", "output": 3'
    ):
        take(stream(*sources), 100)


def test_a_stream_beside_a_file(files: tuple[str, str]) -> None:
    loader = stream({"name_or_path": files[0]}, {"name_or_path": files[1], "streaming": False}, stream_buffer=50)
    assert {row[0] for batch in take(loader, 50) for row in batch} == {"a", "b"}


def test_what_a_stream_cannot_do(files: tuple[str, str], tmp_path: Path) -> None:
    section = {"sources": [{"name_or_path": files[0], "streaming": True}]}
    with pytest.raises(DataError, match="train_iters must say how long"):
        make(SFTDataFactory, TOKENIZER, section)()
    with pytest.raises(DataError, match="cannot be cut out"):
        stream({"name_or_path": files[0], "split": "train[:5]"})
    with pytest.raises(DataError, match="no length to take sample_ratio of"):
        stream({"name_or_path": files[0], "sample_ratio": 0.5})
    with pytest.raises(DataError, match="a stream cannot be split"):
        stream({"name_or_path": files[0]}, train_eval_split=[0.5, 0.5])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="there are no rows"):
        take(stream({"name_or_path": str(tmp_path / "empty.jsonl")}), 1)
    (tmp_path / "bad.jsonl").write_text('{"messages": 1')
    with pytest.raises(DataError, match=r"bad\.jsonl:1: not JSON"):
        take(stream({"name_or_path": str(tmp_path / "bad.jsonl")}), 1)


def test_evaluation_on_a_stream_says_how_much(files: tuple[str, str], tmp_path: Path) -> None:
    source = {"name_or_path": files[1], "streaming": True}
    section = {"sources": [files[0]], "cache_dir": str(tmp_path)}
    with pytest.raises(DataError, match="needs a sample_count"):
        make(SFTDataFactory, TOKENIZER, {**section, "eval_sources": [source]})()
    loaders = make(SFTDataFactory, TOKENIZER, {**section, "eval_sources": [{**source, "sample_count": 3}]})()
    assert [texts(batch) for batch in loaders.evaluation["eval"]] == [["b0"], ["b1"], ["b2"]]


@pytest.mark.parametrize("source", [{}, {"type": "huggingface_instruct"}, {"streaming": False}])
def test_rows_of_parquet_are_as_they_were_written(tmp_path: Path, source: dict[str, Any]) -> None:
    """Arrow has one set of keys for all calls, and kinds of values that JSON has not."""
    rows = []
    for arguments in ({"word": "sky"}, {"number": 3, "deep": {"a": [{"b": 1}]}}, {"deep": {"a": [{"c": 1}]}}):
        call = {"type": "function", "function": {"name": "find", "arguments": arguments}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        chat = [{"role": "user", "content": "q"}, answer, {"role": "assistant", "content": "done"}]
        rows.append({"messages": chat, "time": datetime(2024, 1, 1), "picture": b"x"})
    path = tmp_path / "rows" / "train.parquet"
    path.parent.mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), path)
    tokenizer = templates.byte_level(templates.CALLS)
    expected = {tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows}
    place = str(path if "type" not in source else path.parent)
    more = {"name_or_path": str(write(tmp_path, "more", 1)), "streaming": True, "weight": 1e-9}
    section = {
        "sources": [{"name_or_path": place, "streaming": True, "weight": 1, **source}, more],
        "eval_sources": [{"name_or_path": place, "streaming": True, "sample_count": 3, **source}],
        "stream_buffer": 3,
        "cache_dir": str(tmp_path / "cache"),
        "div_length": 1,
    }
    loaders = make(SFTDataFactory, tokenizer, section, train_iters=3)()
    (held_out,) = loaders.evaluation.values()
    for loader in (loaders.train, held_out):
        assert {tokenizer.decode(batch["input_ids"][0]) for batch in islice(loader, 3)} == expected
        loader.close()


LONG, GOOD = "long " * 300, "a"


def answered(tmp_path: Path, *answers: str, factory: Any = SFTDataFactory, **section: Any) -> Any:
    """A stream of rows with these answers, the long ones too long, an empty one no target."""
    path = tmp_path / "answers.jsonl"
    question = LONG if factory is PromptDataFactory else "q"
    rows = [{"question": question if answer == LONG else "q", "answer": answer} for answer in answers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"sources": [{"name_or_path": str(path), "streaming": True}], "stream_buffer": 2, **section}
    return make(factory, TOKENIZER, section, train_iters=10)().train


@pytest.mark.parametrize(("factory", "bad"), [(SFTDataFactory, LONG), (SFTDataFactory, ""), (PromptDataFactory, LONG)])
def test_rows_that_nothing_is_left_of_end_no_stream(tmp_path: Path, factory: Any, bad: str) -> None:
    loader = answered(tmp_path, GOOD, bad, bad, bad, bad, bad, GOOD, factory=factory)
    assert len(list(islice(loader, 5))) == 5
    loader.close()


@pytest.mark.parametrize(
    ("answers", "section", "message"),
    [
        ([LONG] * 3, {}, r"2 of 2 samples are longer than max_length .* nothing is left.*so it was with the last \d+"),
        ([""] * 3, {}, "2 of 2 rows have no target token.*nothing is left"),
        ([GOOD] * 3, {"pack_samples": True, "always_max_length": True, "drop_last": True}, "no row is filled"),
    ],
)
def test_a_stream_that_nothing_is_left_of_is_refused(
    tmp_path: Path, answers: list[str], section: dict[str, Any], message: str
) -> None:
    loader = answered(tmp_path, *answers, **section)
    with pytest.raises(DataError, match=message):
        next(iter(loader))
    loader.close()
