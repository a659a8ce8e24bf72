"""Data that are missing, empty, malformed, or no use to the run."""

import pyarrow as pa
from pyarrow import parquet

from tests.bad_inputs.case import ANSWER, ASKED, CHAT, GOOD_ROWS, Case, lines, sft

LONG = lines(*({"messages": [ASKED, {"role": "assistant", "content": "two " * 100}]} for _ in range(3)))


def after(good: int, bad: str | bytes) -> bytes:
    """A file whose line after ``good`` good ones is bad."""
    return lines(*({"messages": CHAT} for _ in range(good))).encode() + (bad.encode() if isinstance(bad, str) else bad)


CASES: dict[str, Case] = {
    "no such file": Case(
        "recipe.yaml:2:18: data.sources.0.name_or_path: no.jsonl: no such file", recipe=sft("no.jsonl")
    ),
    "a pattern that nothing has": Case(
        "recipe.yaml:2:18: data.sources.0.name_or_path: no*.jsonl: no file has such a name", recipe=sft("no*.jsonl")
    ),
    "no such folder": Case(
        "recipe.yaml:2:18: data.sources.0.name_or_path: ./no: no such file or folder", recipe=sft("./no")
    ),
    "a folder": Case(
        "recipe.yaml:2:18: data.sources.0.name_or_path: rows.json: is a folder; name a file, or a "
        "pattern such as rows.json/*.jsonl",
        recipe=sft("rows.json"),
        files={"rows.json": lambda at: at.mkdir()},
    ),
    "empty": Case(
        "recipe.yaml:2:18: data.sources.0.name_or_path: rows.jsonl: the file is empty", files={"rows.jsonl": ""}
    ),
    "blank lines only": Case("rows.jsonl: there are no rows", files={"rows.jsonl": "\n \n\n"}),
    "empty CSV": Case(
        "recipe.yaml:2:18: data.sources.0.name_or_path: rows.csv: the file is empty",
        recipe=sft("rows.csv"),
        files={"rows.csv": ""},
    ),
    "a heading and no rows": Case(
        "rows.csv: there are no rows", recipe=sft("rows.csv"), files={"rows.csv": "prompt,completion\n"}
    ),
    "an empty list": Case("rows.json: there are no rows", recipe=sft("rows.json"), files={"rows.json": "[]"}),
    "empty text": Case(
        "recipe.yaml:3:18: data.sources.0.name_or_path: rows.txt: the file is empty",
        recipe="type: causal\n" + sft("rows.txt"),
        files={"rows.txt": ""},
    ),
    "empty Parquet": Case(
        "recipe.yaml:2:18: data.sources.0.name_or_path: rows.parquet: the file is empty",
        recipe=sft("rows.parquet"),
        files={"rows.parquet": ""},
    ),
    "a line that is not JSON": Case(
        "rows.jsonl:17: not JSON (Expecting value at column 15)", files={"rows.jsonl": after(16, '{"messages": [}\n')}
    ),
    "a last line that is cut off": Case(
        "rows.jsonl:4: not JSON (Unterminated string starting at column 24)",
        files={"rows.jsonl": after(3, '{"messages": [{"role": "us')},
    ),
    "not UTF-8": Case(
        "rows.jsonl:2: not UTF-8 (byte 18 is 0xe9)", files={"rows.jsonl": after(1, b'{"messages": "caf\xe9"}\n')}
    ),
    "UTF-16": Case(
        "rows.jsonl:1: not UTF-8 (byte 1 is 0xff; it looks like UTF-16)",
        files={"rows.jsonl": GOOD_ROWS.encode("utf-16")},
    ),
    "a NUL in a text": Case(
        "rows.jsonl:2: not JSON (a NUL character at column 8)", files={"rows.jsonl": after(1, b'{"a": "\x00"}\n')}
    ),
    "a block of NULs": Case(
        "rows.jsonl:2: not JSON (a NUL character at column 1)", files={"rows.jsonl": after(1, b"\x00" * 64)}
    ),
    "a key given twice in a row": Case(
        'rows.jsonl:3: a mapping has the key "content" twice; remove one',
        files={"rows.jsonl": after(2, '{"messages": [{"role": "user", "content": "a", "content": "b"}]}\n')},
    ),
    "a key given twice in a list": Case(
        'rows.json:4: a mapping has the key "prompt" twice; remove one',
        recipe=sft("rows.json"),
        files={"rows.json": '[\n{"prompt": "a", "completion": "b"},\n{"prompt": "a",\n"prompt": "b"},\n{}]'},
    ),
    "a key given twice in the arguments of a call": Case(
        'rows.jsonl:2: tool_calls of message 2 (assistant): a mapping has the key "n" twice; remove one',
        files={
            "rows.jsonl": after(1, "")
            + lines(
                {
                    "messages": [
                        ASKED,
                        {"role": "assistant", "tool_calls": '[{"name": "add", "arguments": {"n": 1, "n": 2}}]'},
                    ]
                }
            ).encode()
        },
    ),
    "a line that is a list": Case(
        "rows.jsonl:2: a row is a mapping of columns, not list", files={"rows.jsonl": after(1, "[1, 2]\n")}
    ),
    "a chat that is NaN": Case(
        "rows.jsonl:2: a chat is a list of messages, not nan", files={"rows.jsonl": after(1, '{"messages": NaN}\n')}
    ),
    "a number without end": Case(
        "rows.jsonl:2: a number of more than 4,300 digits",
        files={"rows.jsonl": after(1, '{"messages": ' + "1" * 5000 + "}\n")},
    ),
    "a list that is not JSON": Case(
        "rows.json: not JSON (Expecting value at line 2, column 15)",
        recipe=sft("rows.json"),
        files={"rows.json": '[{"messages": []},\n {"messages": ]'},
    ),
    "a mapping for a list": Case(
        "rows.json: no known format has the columns train; known are messages [{role, content}], "
        "conversations [{from, value}] (sharegpt), instruction, input, output (alpaca), prompt and "
        "completion (text or messages), problem and answer, problem and solution, question and answer, "
        "question and response, query and response, prompt and response, instruction and response, input and "
        "output, source and target",
        recipe=sft("rows.json"),
        files={"rows.json": '{"train": [1]}'},
    ),
    "an entry that is a number": Case(
        "rows.json: entry 2: a row is a mapping of columns, not int",
        recipe=sft("rows.json"),
        files={"rows.json": '[{"messages": []}, 3]'},
    ),
    "too many columns in a row": Case(
        "rows.csv: CSV parse error: Row #3: Expected 2 columns, got 3: a,b,c",
        recipe=sft("rows.csv"),
        files={"rows.csv": "prompt,completion\na,b\na,b,c\n"},
    ),
    "CSV that is not UTF-8": Case(
        "rows.csv:2: not UTF-8 (byte 6 is 0xe9)",
        recipe=sft("rows.csv"),
        files={"rows.csv": b"prompt,completion\na,caf\xe9\n"},
    ),
    "two columns of one name": Case(
        "rows.csv:1: two columns have one name: prompt, prompt",
        recipe=sft("rows.csv"),
        files={"rows.csv": b"prompt,prompt\na,b\n"},
    ),
    "CSV with a NUL": Case(
        "rows.csv:2: not text (a NUL character at byte 4)",
        recipe=sft("rows.csv"),
        files={"rows.csv": b"prompt,completion\na,b\x00\n"},
    ),
    "not Parquet": Case(
        "rows.parquet: Parquet file size is 7 bytes, smaller than the minimum file footer (8 bytes)",
        recipe=sft("rows.parquet"),
        files={"rows.parquet": "PAR1 no"},
    ),
    "text that is not UTF-8": Case(
        "rows.txt:2: not UTF-8 (byte 2 is 0xff)",
        recipe="type: causal\n" + sft("rows.txt"),
        files={"rows.txt": b"a\nb\xff\n"},
    ),
    "plain text for chats": Case(
        "rows.txt: no known format has the columns text; known are messages [{role, content}], "
        "conversations [{from, value}] (sharegpt), instruction, input, output (alpaca), prompt and "
        "completion (text or messages), problem and answer, problem and solution, question and answer, "
        "question and response, query and response, prompt and response, instruction and response, input and "
        "output, source and target; "
        "the causal trainer reads plain text",
        recipe=sft("rows.txt"),
        files={"rows.txt": b"a\nb\n"},
    ),
    "unknown columns": Case(
        "rows.jsonl: no known format has the columns q, a; known are messages [{role, content}], "
        "conversations [{from, value}] (sharegpt), instruction, input, output (alpaca), prompt and "
        "completion (text or messages), problem and answer, problem and solution, question and answer, "
        "question and response, query and response, prompt and response, instruction and response, input and "
        "output, source and target",
        files={"rows.jsonl": lines({"q": "a", "a": "b"})},
    ),
    "a row without its column": Case(
        "rows.jsonl:5: messages is missing; the row has text, id",
        files={"rows.jsonl": after(4, lines({"text": "a", "id": 4}))},
    ),
    "a bad row after blank lines": Case(
        "rows.jsonl:5: the chat is 'hi', which is not JSON",
        files={"rows.jsonl": after(2, "\n\n" + lines({"messages": "hi"}))},
    ),
    "an unknown role": Case(
        "rows.jsonl:5: message 2 has the unknown role 'robot'; known are system, developer, user, "
        "human, prompter, assistant, gpt, chatgpt, bot, model, tool, function, observation, ipython, ai, "
        "function_call, tool_call, function_response, tool_response",
        files={"rows.jsonl": after(4, lines({"messages": [ASKED, {"role": "robot", "content": "x"}]}))},
    ),
    "an empty answer": Case(
        "rows.jsonl:5: message 2 (assistant) has no content",
        files={"rows.jsonl": after(4, lines({"messages": [ASKED, {"role": "assistant", "content": ""}]}))},
    ),
    "an answer without content": Case(
        "rows.jsonl:5: message 2 (assistant) has no content",
        files={"rows.jsonl": after(4, lines({"messages": [ASKED, {"role": "assistant"}]}))},
    ),
    "a content that is a number": Case(
        "rows.jsonl:5: message 1 (user) has the content 3; expected text",
        files={"rows.jsonl": after(4, lines({"messages": [{"role": "user", "content": 3}, ANSWER]}))},
    ),
    "a content in parts that are none": Case(
        "rows.jsonl:5: message 1 (user) has the part 3 without a text; only text is read",
        files={"rows.jsonl": after(4, lines({"messages": [{"role": "user", "content": [3]}, ANSWER]}))},
    ),
    "an instruction without output": Case(
        "rows.jsonl:2: output is missing; the row has instruction",
        files={"rows.jsonl": lines({"instruction": "a", "output": "b"}, {"instruction": "a", "output": None})},
    ),
    "a prompt that is a number": Case(
        "rows.jsonl:2: the user's part is 3; expected text or messages",
        files={"rows.jsonl": lines({"prompt": "a", "completion": "b"}, {"prompt": 3, "completion": "x"})},
    ),
    "a chat that is a word": Case(
        "rows.jsonl:5: the chat is 'hello', which is not JSON",
        files={"rows.jsonl": after(4, lines({"messages": "hello"}))},
    ),
    "a chat that is a number": Case(
        "rows.jsonl:5: a chat is a list of messages, not 3", files={"rows.jsonl": after(4, lines({"messages": 3}))}
    ),
    "no answers at all": Case(
        "rows.jsonl: 4 of 4 rows have no target token: 1, 2, 3, 4; nothing is left to train on",
        files={"rows.jsonl": lines(*({"messages": [ASKED]} for _ in range(4)))},
    ),
    "too many rows without answers": Case(
        "rows.jsonl: 1 of 3 rows have no target token: 3; more than data.max_share_without_targets = 0.05 allows",
        files={"rows.jsonl": after(2, lines({"messages": [ASKED]}))},
    ),
    "all longer than max_length": Case(
        "recipe.yaml:2:43: data.max_length: 3 of 3 samples are longer than max_length = 32 tokens, the "
        "shortest 220: nothing is left; raise it, or truncate them with filter_samples: false",
        cached=True,
        recipe=sft(data=", max_length: 32"),
        files={"rows.jsonl": LONG},
    ),
    "chats for plain text": Case(
        "rows.jsonl: causal training reads the column text; there are messages. A source of type "
        "huggingface_causal takes it from the column that its key column names",
        recipe="type: causal\n" + sft(),
    ),
    "a row without text": Case(
        "rows.jsonl:2: text is None, which is no text",
        recipe="type: causal\n" + sft(),
        files={"rows.jsonl": lines({"text": "a"}, {"text": None})},
    ),
    "fewer rows than a global batch": Case(
        "8 rows make no batch; drop_last drops every global batch that is not full (16 rows)",
        cached=True,
        recipe=sft(data=", drop_last: true", more="micro_batch_size: 16\n"),
    ),
    "a slice of nothing": Case(
        "rows.jsonl: there are no rows in train[100:], of 8",
        recipe=sft('{name_or_path: rows.jsonl, split: "train[100:]"}'),
    ),
    "a slice that is none": Case(
        "recipe.yaml:2:52: data.sources.0.split: 'train[3]' is not a name, with a slice or without one: "
        "train, train[:1000], test[90%:]",
        recipe=sft('{name_or_path: rows.jsonl, split: "train[3]"}'),
    ),
    "an unknown split": Case(
        "d: there is no split 'test'; there are train",
        recipe=sft("{type: huggingface, name_or_path: d, split: test}"),
        files={"d/train.jsonl": GOOD_ROWS},
    ),
    "a data set of the hub, offline": Case(
        "data set some/where cannot be loaded: Couldn't reach 'some/where' on the Hub "
        "(OfflineModeIsEnabled); HF_HUB_OFFLINE is set: unset it, or name a local copy",
        recipe=sft("some/where"),
    ),
    "a folder without data": Case(
        "data set d cannot be loaded: No (supported) data files found in d", recipe=sft("d"), files={"d/x.bin": "x"}
    ),
    "no preferences": Case(
        "rows.jsonl: no preferences are in the columns messages; expected chosen and rejected, each a "
        "chat, its last messages or a text, with or without a prompt beside them",
        recipe="type: dpo\n" + sft(),
    ),
    "chosen and rejected are the same": Case(
        "rows.jsonl: 4 of 4 rows prefer nothing, chosen and rejected being the same, or empty: 1, 2, 3, "
        "4; nothing is left to train on",
        recipe="type: dpo\n" + sft(),
        files={"rows.jsonl": lines(*({"chosen": CHAT, "rejected": CHAT} for _ in range(4)))},
    ),
    "no rejected answer": Case(
        "rows.jsonl:2: rejected is empty",
        recipe="type: dpo\n" + sft(),
        files={
            "rows.jsonl": lines(
                {"chosen": CHAT, "rejected": [*CHAT[:1], {"role": "assistant", "content": "yes"}]},
                {"chosen": CHAT, "rejected": None},
            )
        },
    ),
    "no tokens": Case(
        "rows.jsonl: process is false: expected a column input_ids; there are messages",
        recipe=sft("{name_or_path: rows.jsonl, process: false}"),
    ),
    "tokens that are text": Case(
        "rows.jsonl:1: process is false, so every column must be a list of tokens: invalid literal for "
        "int() with base 10: 'abc'",
        recipe=sft("{name_or_path: rows.jsonl, process: false}"),
        files={"rows.jsonl": lines({"input_ids": "abc"})},
    ),
    "tokens beyond the vocabulary": Case(
        "rows.jsonl:1: input_ids: 99999 is no token of the tokenizer, which has 320",
        recipe=sft("{name_or_path: rows.jsonl, process: false}"),
        files={"rows.jsonl": lines({"input_ids": [1, 2, 99999]})},
    ),
    "tokens below 0": Case(
        "rows.jsonl:1: input_ids: -5 is no token of the tokenizer, which has 320",
        recipe=sft("{name_or_path: rows.jsonl, process: false}"),
        files={"rows.jsonl": lines({"input_ids": [1, 2, -5]})},
    ),
    "more tokens than labels": Case(
        "rows.jsonl:1: 3 tokens have 2 labels; each has one",
        recipe=sft("{name_or_path: rows.jsonl, process: false}"),
        files={"rows.jsonl": lines({"input_ids": [1, 2, 5], "labels": [1, 2]})},
    ),
    "a stream without an end": Case(
        "recipe.yaml: train_iters: 0, and a stream has no end; give the number of steps, or epoch_length",
        recipe=sft("{name_or_path: rows.jsonl, streaming: true}"),
    ),
    "a stream of CSV": Case(
        "recipe.yaml:2:54: data.sources.0.streaming: csv files cannot be streamed; make JSON lines or Parquet of them",
        recipe=sft("{name_or_path: rows.csv, streaming: true}", more="train_iters: 3\n"),
        files={"rows.csv": "a,b\n1,2\n"},
    ),
    "a cache that is a file": Case(
        "recipe.yaml:2:42: data.cache_dir: {here}/cache is a file; expected a folder",
        recipe=sft(data=", cache_dir: cache"),
        files={"cache": "x"},
    ),
    "no rows under some filter": Case(
        "d: there are no rows in train[5:]",
        recipe=sft('{type: huggingface, name_or_path: d, split: "train[5:]"}'),
        files={"d/train.jsonl": lines({"messages": CHAT})},
    ),
    "files that do not fit together": Case(
        "*.parquet: the files do not fit together: Unable to merge: Field prompt has incompatible types: int64 ...",
        recipe=sft('"*.parquet"'),
        files={
            "a.parquet": lambda at: parquet.write_table(pa.table({"prompt": [1]}), at),
            "b.parquet": lambda at: parquet.write_table(pa.table({"prompt": ["1"]}), at),
        },
    ),
    "a source without rows among others": Case(
        "other.jsonl: there are no rows", recipe=sft("rows.jsonl, other.jsonl"), files={"other.jsonl": "\n"}
    ),
    "a weight for one of two": Case(
        "recipe.yaml:2:8: data.sources: all of them have a weight, or none has",
        recipe=sft("rows.jsonl, {name_or_path: other.jsonl, weight: 2}"),
        files={"other.jsonl": GOOD_ROWS},
    ),
    "shares beyond 1": Case(
        "recipe.yaml:2:31: data.train_eval_split: 0.9 and 0.3 must be shares that add up to 1",
        recipe=sft(data=", train_eval_split: [0.9, 0.3]"),
    ),
    "a cache that has to be there": Case(
        "{top}/cache does not hold the prepared data ...",
        recipe=sft(data=", fail_on_missing_cache: true"),
    ),
    "a role_mapping to nothing": Case(
        "d: there is no column 'q', which role_mapping names; there are x",
        recipe=sft("{type: huggingface_instruct, name_or_path: d, role_mapping: {user: q, assistant: a}}"),
        files={"d/train.jsonl": lines({"x": "1"})},
    ),
    "no file to evaluate on": Case(
        "recipe.yaml:2:46: data.eval_sources.0.name_or_path: no.jsonl: no such file",
        recipe=sft(data=", eval_sources: [no.jsonl]"),
    ),
    "one row to split": Case(
        "recipe.yaml:2:31: data.train_eval_split: a single sample cannot be split; give eval_sources",
        cached=True,
        recipe=sft(data=", train_eval_split: [0.5, 0.5]"),
        files={"rows.jsonl": lines({"messages": CHAT})},
    ),
}
