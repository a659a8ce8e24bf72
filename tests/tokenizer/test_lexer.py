"""The lexer: what its tokens are, against a slow lexer in plain Python, and that it travels."""

import json
import pickle
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from arctic_training.cli.main import main
from arctic_training.config.checks.problems import problems_of
from arctic_training.config.recipe.node import to_python
from arctic_training.config.recipe.yaml_reader import read_yaml
from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.data.formats.chat import Sample, reader
from arctic_training.data.tokenization.encoder import SampleEncoder
from arctic_training.errors.types import ModelError
from arctic_training.generation.special_tokens import decode_completion, find_eos_token_ids
from arctic_training.tokenizer.lexer_factory import LexerConfig, LexerFactory
from tests.bad_inputs import bad_lexers
from tests.processes import ROOT
from tests.work import calls

RANGES: dict[str, Any] = {"coefficients": ["C", -50, 50], "variables": ["x", 0, 2], "numbers": ["", 0, 9]}
MISC = ["+", "*", "^", "|", "||", ".", "-", "(", ")", ","]
SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "[SEP]"]


def make(recipe_dir: Path = Path(), **section: Any) -> Any:
    config = LexerConfig.model_validate({"vocab": {"range": RANGES, "misc": MISC}, **section, "type": "lexer"})
    return LexerFactory(SimpleNamespace(config=SimpleNamespace(recipe_dir=recipe_dir)), config)()  # type: ignore[arg-type]


def read(tokenizer: Any, text: str) -> list[str]:
    """The words of ``text``; one that is unknown in angle brackets."""
    actual = tokenizer(text, return_offsets_mapping=True)
    words = [text[start:end] for start, end in actual["offset_mapping"]]
    pairs = zip(words, actual["input_ids"], strict=True)
    return [f"<{word}>" if one == tokenizer.unk_token_id else word for word, one in pairs]


def policy(**keys: Any) -> dict[str, Any]:
    return {"number_policy": keys}


def test_the_examples() -> None:
    lexer = make(**policy(digit_group=1))
    assert " ".join(lexer.tokenize("C-50*x1^2 + 3.14")) == "C-50 * x1 ^ 2 + 3 . 1 4"
    assert " ".join(lexer.tokenize("x0||x1|x2")) == "x0 || x1 | x2"
    assert lexer.decode(lexer("C-50*x1^2+3.14")["input_ids"]) == "C-50 * x1 ^ 2 + 3 . 1 4"


def test_the_documentation_says_what_is_so() -> None:
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8").partition("## Symbolic text: the lexer")[2]
    section = to_python(read_yaml(text.split("```")[1].removeprefix("yaml"), "data.md"))["tokenizer"]
    lexer = make(**section)
    assert " ".join(lexer.tokenize("C-50*x1^2 + 14")) == "C-50 * x1 ^ 2 + 1 4"
    assert "`C-50*x1^2 + 14` is read as `C-50 * x1 ^ 2 + 1 4`" in text


def test_special_tokens_come_first_then_ranges_then_the_others() -> None:
    lexer = make(vocab={"misc": ["+", "a"], "range": {"x": ["x", -1, 0]}})
    assert lexer.convert_ids_to_tokens(list(range(len(lexer)))) == [*SPECIAL, "x-1", "x0", "+", "a"]
    assert (lexer.pad_token, lexer.bos_token, lexer.eos_token, lexer.unk_token, lexer.sep_token) == tuple(SPECIAL)
    renamed = make(special_tokens={"eos": "E", "sep": "||>"})
    assert renamed.tokenize("x1||>x2 E") == ["x1", "||>", "x2", "E"]
    assert renamed.decode(renamed("x1||>x2 E")["input_ids"], skip_special_tokens=True) == "x1 x2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x1x2", "x1 x2"),  # white space is not needed
        ("x12 x1 2 x1y", "<x12> x1 2 x1 <y>"),
        ("12 7 07", "<12> 7 <07>"),  # never 1 2
        ("3.14 3. 4 .5", "<3.14> 3 . 4 . 5"),
        ("C50 C51 C-5 C--5", "C50 <C51> C-5 <C> - - 5"),
        ("foo bar_2 %é e\u0301 \u0664", "<foo> <bar_2> <%> <é> <e\u0301> <\u0664>"),
        ("x1[SEP]x2[EOS]", "x1 [SEP] x2 [EOS]"),
        ("\u2003x1\u00a0\t\nx2\x85", "x1 x2"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_what_a_token_is(text: str, expected: str) -> None:
    words = read(make(), text)
    assert words == expected.split(" ") if expected else not words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-5", "-5"),
        ("3-5", "3 - 5"),
        ("3 - 5", "3 - 5"),
        ("3 -5", "3 -5"),
        ("3 +5", "3 + 5"),  # no +5 in the vocabulary
        ("3*-5,-5", "3 * -5 , -5"),
        ("(-5)-5", "( -5 ) - 5"),
        ("{-5}-5", "<{> -5 <}> - 5"),
        ("[-5]-5", "<[> -5 <]> - 5"),
        ("--5", "- -5"),
        ("3--5", "3 - -5"),
        ("x1-5", "x1 - 5"),
        ("x1+-5^-5|-5", "x1 + -5 ^ -5 | -5"),
        ("y-5 %-5", "<y> - 5 <%> -5"),
        ("[SEP]-5[EOS]", "[SEP] -5 [EOS]"),
        ("-7", "- 7"),  # only 7 is in the vocabulary
        ("-57", "- <57>"),
        ("-5.5", "- <5.5>"),
        ("-5.", "-5 ."),
        ("-1.5", "-1.5"),
        ("-1.5.5", "-1.5 . 5"),
    ],
)
def test_a_sign_belongs_to_the_number_unless_an_operand_is_before_it(text: str, expected: str) -> None:
    vocab = {"range": RANGES | {"negative": ["", -5, -1]}, "misc": [*MISC, "-1.5"]}
    assert read(make(vocab=vocab), text) == expected.split(" ")
    separate = expected.replace("-1.5", "- <1.5>").replace("-5", "- 5")
    assert read(make(vocab=vocab, **policy(attach_sign=False)), text) == separate.split(" ")


@pytest.mark.parametrize(
    ("size", "text", "expected"),
    [
        (1, "1005 3.14", "1 0 0 5 3 . 1 4"),
        (2, "1005 7 123", "10 05 7 1 23"),
        (2, "12345.12345", "1 23 45 . 12 34 5"),
        (2, "-512 -12.5 -612", "-5 12 - 12 . 5 - 6 12"),
        (2, "-5.125", "-5 . 12 5"),
        (3, "12", "12"),
        (3, "1234", "1 <234>"),
        (1, "y12 2x", "<y12> 2 <x>"),
        (1, "1.2.3", "1 . 2 . 3"),
    ],
)
def test_digits_are_grouped_from_the_point(size: int, text: str, expected: str) -> None:
    vocab = {"range": {"n": ["", -5, 99]}, "misc": [".", "-", "*", *(f"0{n}" for n in range(10))]}
    assert read(make(vocab=vocab, **policy(digit_group=size)), text) == expected.split(" ")


def test_a_point_is_no_part_of_a_number_without_floats() -> None:
    assert read(make(**policy(allow_float=False)), "3.14 3.1") == ["3", ".", "<14>", "3", ".", "1"]
    assert read(make(**policy(allow_float=False, digit_group=1)), "3.14") == ["3", ".", "1", "4"]
    grouped = make(vocab={"range": {"n": ["", 0, 99]}, "misc": ["."]}, **policy(allow_float=False, digit_group=2))
    assert read(grouped, "1.125") == ["1", ".", "1", "25"]


def test_the_longest_wins() -> None:
    lexer = make(
        vocab={"range": {"n": ["", -9, 9], "v": ["x", 0, 9]}, "misc": ["x", "2x", "x1'", "->", "-", "5.", "--"]}
    )
    cases = {"x1'x1x": "x1' x1 x", "2x1": "2x 1", "2x 2": "2x 2", "-->-5": "-- <>> -5", "->5": "-> 5"}
    cases["5.x 5.5"] = "5. x <5.5>"
    for text, expected in cases.items():
        assert read(lexer, text) == expected.split(" "), text


# a slow lexer


def is_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" or character == "_"


def slow(text: str, tokens: list[str], *, attach_sign: bool, digit_group: int, allow_float: bool) -> list[str]:
    number = r"[0-9]+(\.[0-9]+)?" if allow_float else r"[0-9]+"
    names = [token for token in tokens if not re.fullmatch(f"[+-]?{number}", token)]
    words, at = [], 0
    while at < len(text):
        if text[at] in "\t\n\v\f\r\x85" or unicodedata.category(text[at])[0] == "Z":
            at += 1
            continue
        actual: list[list[str]] = []
        for token in names:
            if text.startswith(token, at):
                after = text[at + len(token) : at + len(token) + 1]
                if not (token[-1] in "0123456789" and after and after in "0123456789"):
                    actual.append([token])
        before = text[:at]
        operand = bool(before) and (is_word(before[-1]) or before[-1] in ")]}") and not before.endswith(tuple(SPECIAL))
        literal = re.compile(number).match(text, at)
        if literal:
            actual.append(groups(literal[0], digit_group))
        signed = re.compile(f"[+-]{number}").match(text, at)
        if attach_sign and signed and not operand:
            parts = groups(signed[0], digit_group)
            if parts[0] in tokens:
                actual.append(parts)
        if not actual:
            end = at + 1
            while is_word(text[at]) and end < len(text) and is_word(text[end]):
                end += 1
            actual.append([text[at:end]])
        best = max(actual, key=lambda parts: len("".join(parts)))
        words += [part if part in tokens else f"<{part}>" for part in best]
        at += len("".join(best))
    return words


def groups(literal: str, size: int) -> list[str]:
    if not size:
        return [literal]
    sign = literal[0] if literal[0] in "+-" else ""
    integer, point, fraction = literal[len(sign) :].partition(".")
    cut = len(integer) % size
    tokens = [integer[:cut], *(integer[n : n + size] for n in range(cut, len(integer), size))]
    tokens = list(filter(None, tokens))
    tokens[0] = sign + tokens[0]
    return [*tokens, *point, *(fraction[n : n + size] for n in range(0, len(fraction), size))]


NASTY = r"\^$.|?*+()[]{}-/#&~<>='%!,:;@`"
PIECES = [
    "x",
    "C",
    "ab",
    "a",
    "é",
    "_",
    "1",
    "12",
    "-",
    "+",
    "--",
    ".",
    "3.1",
    "-5",
    "x1",
    "2x",
    "1.2.3",
    "-5x",
    "5.",
    "=",
]
TOKENS = st.sampled_from([*PIECES, *NASTY, "||", "->", "(?", "\\d", "[^", "\U0001f642"])
RANGE = st.tuples(st.sampled_from(["", "x", "C", "-", "a1", "+", "["]), st.integers(-12, 12), st.integers(0, 30)).map(
    lambda drawn: [drawn[0], drawn[1], drawn[1] + drawn[2]]
)
POLICIES = st.fixed_dictionaries(
    {"attach_sign": st.booleans(), "digit_group": st.integers(0, 4), "allow_float": st.booleans()}
)
JUNK = ["\u200b", "\x00", "\x1c", "\u0664", "e\u0301", "\u2003", "\u4f60", "[SEP]", "[EOS]", "[UNK", "é", "\ufeff", "²"]
NUMBERS = st.from_regex(r"[+-]?[0-9]{1,6}(\.[0-9]{0,4})?", fullmatch=True)
SPACES = st.sampled_from(["", "", " ", "\n", "\t "])


@st.composite
def lexers(draw: st.DrawFn) -> tuple[list[str], dict[str, Any], Any]:
    """All tokens, the policy and the lexer. What is drawn twice is left out."""
    ranges: dict[str, Any] = {}
    taken = list(SPECIAL)
    for n, (prefix, low, high) in enumerate(draw(st.lists(RANGE, max_size=3))):
        tokens = [f"{prefix}{number}" for number in range(low, high + 1)]
        if not {*tokens} & {*taken}:
            ranges[str(n)] = [prefix, low, high]
            taken += tokens
    misc = [token for token in draw(st.lists(TOKENS, min_size=1, max_size=12, unique=True)) if token not in taken]
    taken += misc or ["only"]
    keys = draw(POLICIES)
    return taken, keys, make(vocab={"range": ranges, "misc": misc or ["only"]}, number_policy=keys)


MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.fault(33)
@MANY
@given(lexers(), st.data())
def test_any_text_is_read_as_the_slow_lexer_reads_it(drawn: Any, data: st.DataObject) -> None:
    tokens, keys, lexer = drawn
    piece = st.sampled_from(tokens) | NUMBERS | st.sampled_from([*JUNK, *NASTY]) | TOKENS
    text = "".join(word for pair in data.draw(st.lists(st.tuples(piece, SPACES), max_size=12)) for word in pair)
    expected = slow(text, tokens, **keys)
    assert [word.replace("<[UNK]>", "[UNK]") for word in read(lexer, text)] == expected
    ids = lexer(text)["input_ids"]
    if lexer.unk_token_id not in ids:
        assert lexer(lexer.decode(ids))["input_ids"] == ids


@pytest.mark.fault(33)
@MANY
@given(
    st.lists(st.text(max_size=4), max_size=4),
    st.text(max_size=40) | st.text(st.sampled_from(NASTY + "x1 "), max_size=60),
    POLICIES,
)
def test_any_vocabulary_is_taken_or_refused_and_no_text_is_lost(misc: list[str], text: str, keys: Any) -> None:
    try:
        lexer = make(vocab={"range": {"n": ["x", 0, 3]}, "misc": misc}, number_policy=keys)
    except ValueError:
        return
    actual = lexer(text, return_offsets_mapping=True)["offset_mapping"]
    words = "".join(text[start:end] for start, end in actual)
    assert words == re.sub(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]", "", text)


LONG = ["-", "9", "x1", "-9", "9.", "y", "C-", "(?", "[SEP]", "+9 "]


def long_text(piece: str, size: int) -> tuple[Any, str]:
    """A lexer, and a text that is nothing but the piece."""
    vocab = {"range": RANGES | {"numbers": ["", -999, 999]}, "misc": [*MISC, "x1'", "99x"]}
    return make(vocab=vocab, **policy(digit_group=size)), piece * (200_000 // len(piece))


@pytest.mark.fault(33)
@pytest.mark.parametrize("piece", LONG)
@pytest.mark.parametrize("size", [0, 3])
def test_a_long_text_is_read_to_its_end(piece: str, size: int) -> None:
    lexer, text = long_text(piece, size)
    actual = lexer(text, return_offsets_mapping=True)["offset_mapping"]
    assert sum(end - start for start, end in actual) == len(text.replace(" ", ""))


def lexer_of_words(count: int) -> Any:
    ranges = {"a": ["a", -10 * count, 10 * count], "n": ["", 0, 9]}
    return make(vocab={"range": ranges, "misc": [f"w{n}'" for n in range(count)]})


def test_a_large_vocabulary_takes_no_long_time() -> None:
    assert calls(lambda: lexer_of_words(2_000)) < 2.2 * calls(lambda: lexer_of_words(1_000))
    actual = read(lexer_of_words(2_000), "a-20000a20001 w1999'w2000'")
    assert actual == ["a-20000", "<a20001>", "w1999'", "<w2000>", "<'>"]


def test_it_is_loaded_elsewhere_without_this_package(tmp_path: Path) -> None:
    lexer = make(**policy(digit_group=1), strict=False)
    text = "C-50*x1^2 + 3.14[SEP]-5 x12 (é"
    lexer.save_pretrained(tmp_path)
    chat = [{"role": "user", "content": "x1"}, {"role": "assistant", "content": "x2"}]
    code = (
        "import sys, json\nfrom transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\nids = tokenizer(sys.argv[2])['input_ids']\n"
        f"chat = tokenizer.apply_chat_template({chat!r}, tokenize=False)\n"
        "print(json.dumps([ids, tokenizer.decode(ids), chat, tokenizer.pad_token,\n"
        "tokenizer.init_kwargs['refuse_unknown'], 'arctic_training' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), text], capture_output=True, text=True, cwd=tmp_path
    )
    assert not done.returncode, done.stderr
    ids = lexer(text)["input_ids"]
    assert json.loads(done.stdout) == [ids, lexer.decode(ids), "x1 [SEP] x2 [EOS]", "[PAD]", False, False]


def test_it_pickles() -> None:
    lexer = make(strict=True)
    copy = pickle.loads(pickle.dumps(lexer))
    assert copy("x1[SEP]-5 y")["input_ids"] == lexer("x1[SEP]-5 y")["input_ids"]
    assert copy.init_kwargs["refuse_unknown"] is True


def test_the_prompt_of_a_problem_ends_where_its_answer_begins() -> None:
    lexer = make()
    row = {"problem": "x1 + 2", "answer": "-2"}
    sample = reader(list(row))(row)
    ((ids, labels),) = SampleEncoder(lexer)([sample])
    assert lexer.decode(ids) == "x1 + 2 [SEP] - 2 [EOS]"
    assert lexer.decode(ids[labels != -100]) == "- 2 [EOS]"
    prompt = lexer.apply_chat_template(sample.messages[:1], add_generation_prompt=True, tokenize=False)
    assert prompt == "x1 + 2 [SEP] "
    assert lexer.apply_chat_template(sample.messages, tokenize=False).startswith(prompt)
    turns = [*sample.messages, {"role": "user", "content": "3"}, {"role": "assistant", "content": "4"}]
    assert lexer.apply_chat_template(turns, tokenize=False) == "x1 + 2 [SEP] -2 [EOS] 3 [SEP] 4 [EOS]"


def test_the_template_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    assert make(tmp_path, chat_template="chat.jinja").chat_template == "{{ messages }}"
    with pytest.raises(ModelError, match=r"^tokenizer\.chat_template: .*no\.jinja: No such file"):
        make(tmp_path, chat_template="no.jinja")


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_model_of_random_weights_trains_with_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    (tmp_path / "small/config.json").write_text(json.dumps(bad_lexers.CONFIG))
    row = {"problem": "x1 + x2", "answer": "x3"}
    if kind == "dpo":
        row = {"problem": "x1", "chosen": "x2", "rejected": "x3"}
    rows = [row, row | {"problem": "x4"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluators = (
        f"type: {kind}\nepochs: 1\neval_interval: 1\nevaluators: [{{type: generate, max_new_tokens: 2, stop: [x2]}}]\n"
        "checkpoint: [{type: huggingface, save_end_of_training: true}]\n"
    )
    recipe = bad_lexers.lexer(data=", eval_sources: [rows.jsonl]") + evaluators
    if kind == "dpo":
        recipe += "ref_model: {name_or_path: small, random_weights: true, dtype: fp32}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert not main(["recipe.yaml"]), capsys.readouterr().err
    (saved,) = tmp_path.glob("runs/*/checkpoints/huggingface/*/tokenizer.json")
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(saved.parent).tokenize("x1+x2=x12") == ["x1", "+", "x2", "=", "[UNK]"]
    file, *_ = tmp_path.glob("runs/*/generations/eval/*.jsonl")
    first = json.loads(file.read_text().splitlines()[0])
    expected = ("x1 + x2 [SEP]", "x3") if kind == "sft" else ("x1 [SEP]", "x2")
    assert (first["problem"], first["reference"]) == expected


@pytest.mark.fault(33)
@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"vocab": {}}, "vocab: it has no tokens; give vocab.range or vocab.misc"),
        ({"vocab": {"range": {"x": ["x", 2, 0]}}}, "vocab.range.x: ['x', 2, 0]: min is above max"),
        (
            {"vocab": {"range": {"x": ["x", 0]}}},
            "vocab.range.x: ['x', 0]: expected [prefix, min, max], a string and two integers, such as [x, 0, 2]",
        ),
        (
            {"vocab": {"range": {"x": ["x", False, 1.5]}}},
            "vocab.range.x: ['x', false, 1.5]: expected [prefix, min, max], a string and two integers, such as "
            "[x, 0, 2]",
        ),
        (
            {"vocab": {"range": {"x": ["", 0, 10**30]}}},
            f"vocab.range.x: {10**30 + 1:,} tokens; a vocabulary has at most 1,000,000",
        ),
        (
            {"vocab": {"range": {"x": ["x", 0, 600_000], "y": ["y", 0, 600_000]}}},
            "vocab: 1,200,002 tokens; a vocabulary has at most 1,000,000",
        ),
        (
            {"vocab": {"range": {"x": ["x ", 0, 1]}}},
            "vocab.range.x: 'x 0': a token has no white space and no control characters",
        ),
        (
            {"vocab": {"misc": ["+", "a\u00a0b"]}},
            "vocab.misc.1: 'a\\xa0b': a token has no white space and no control characters",
        ),
        ({"vocab": {"misc": ["+", ""]}}, "vocab.misc.1: a token without characters"),
        (
            {"vocab": {"misc": ["\ud800"]}},
            "vocab.misc.0: '\\ud800': a token has no white space and no control characters",
        ),
        ({"vocab": {"misc": [1]}}, "vocab.misc.0: 1 should be a valid string; put it in quotes if it is meant as text"),
        ({"vocab": {"misc": ["+", "-", "+"]}}, "vocab.misc.2: '+' is given twice; it is in tokenizer.vocab.misc.0 too"),
        (
            {"vocab": {"range": {"a": ["x", 0, 3], "b": ["x1", 0, 3], "c": ["x", 3, 9]}}},
            "vocab.range.c: 'x3' is given twice; it is in tokenizer.vocab.range.a too",
        ),
        (
            {"vocab": {"misc": ["[SEP]"]}},
            "vocab.misc.0: '[SEP]' is given twice; it is in tokenizer.special_tokens.sep too",
        ),
        (
            {"special_tokens": {"pad": "[EOS]"}},
            "special_tokens.eos: '[EOS]' is given twice; it is in tokenizer.special_tokens.pad too",
        ),
        ({"number_policy": {"digit_group": -1}}, "number_policy.digit_group: -1 should be greater than or equal to 0"),
        (
            {"vocab": {"misc": ["a" * 101]}},
            f"vocab.misc.0: '{'a' * 27}...{'a' * 28}': a token has at most 100 characters, not 101",
        ),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(section: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LexerConfig.model_validate({"type": "lexer", "vocab": {"misc": ["+"]}, **section})
    messages = [f"{'.'.join(one.path)}: {one.text}" for one in problems_of(caught.value, LexerConfig)]
    assert messages == [expected]


def test_it_is_itself_beside_a_model_for_which_transformers_makes_one_of_its_own(tmp_path: Path) -> None:
    """So it does of any tokenizer that lies beside a Qwen2, whatever class its files name."""
    from transformers import AutoTokenizer, Qwen2Config

    from arctic_training.tokenizer.huggingface_factory import HFTokenizerConfig, HFTokenizerFactory

    lexer, text = make(**policy(digit_group=1)), "C-50*x1^2 + 3.14[SEP]-5 x1 , y"
    lexer.save_pretrained(tmp_path)
    Qwen2Config().save_pretrained(tmp_path)
    recipe = SimpleNamespace(model=SimpleNamespace(name_or_path=str(tmp_path)), recipe_dir=Path())
    loaded = HFTokenizerFactory(SimpleNamespace(config=recipe), HFTokenizerConfig(type="huggingface"))()  # type: ignore[arg-type]
    assert loaded(text)["input_ids"] == lexer(text)["input_ids"] and is_lexer(loaded)
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] != lexer(text)["input_ids"], "no need for it"


def test_letters_that_compose_may_be_tokens_of_their_own() -> None:
    for tokens in (["a", "\u0301"], ["=", "\u0338", "a"], ["\u1100", "\u1161"]):
        encoder = SampleEncoder(make(vocab={"misc": tokens}))
        turns = [{"role": "user", "content": tokens[0]}, {"role": "assistant", "content": "".join(tokens)}]
        ((ids, labels),) = encoder([Sample(turns)])
        assert encoder.tokenizer.decode(ids[labels != -100]) == " ".join([*tokens, "[EOS]"])


def test_a_model_ends_where_the_lexer_does() -> None:
    from transformers import FalconConfig, FalconForCausalLM

    from arctic_training.model.vocabulary import fit_vocabulary

    lexer = make()
    shape = {"vocab_size": 256, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = FalconForCausalLM(FalconConfig(**shape))
    assert model.config.eos_token_id == 11  # a token of the vocabulary here
    fit_vocabulary(model, lexer, resize=False)
    for config in (model.config, model.generation_config):
        ids = config.pad_token_id, config.bos_token_id, config.eos_token_id
        assert ids == (lexer.pad_token_id, lexer.bos_token_id, lexer.eos_token_id)
    assert find_eos_token_ids(lexer, model, [lexer("x1 foo[EOS]")["input_ids"]]) == [lexer.eos_token_id]


def test_what_is_said_holds_the_special_tokens_inside_it() -> None:
    lexer = make()
    ends = [lexer.eos_token_id]
    for text, expected in (
        ("x1 [SEP] x2 [EOS] [PAD]", "x1 [SEP] x2"),
        ("x1 x2 [PAD] x1", "x1 x2"),
        ("x1 foo [EOS]", "x1 [UNK]"),
        ("[EOS] x1", ""),
    ):
        assert decode_completion(lexer, lexer(text)["input_ids"], ends) == expected
