"""Vocabularies that cannot be, and data that are not of the vocabulary."""

import json
from typing import Any

from tests.bad_inputs.case import Case, lines

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
RANGE = "x: [x, 0, 9]"


def lexer(ranges: str = RANGE, misc: str = '"+", "="', *, more: str = "", data: str = "") -> str:
    """A recipe whose vocabulary is on line 4."""
    return (
        "model: {name_or_path: small, random_weights: true, dtype: fp32}\n"
        "tokenizer:\n"
        "  type: lexer\n"
        f"  vocab: {{range: {{{ranges}}}, misc: [{misc}]}}\n"
        f"{more}data: {{sources: [rows.jsonl]{data}}}\n"
    )


def case(says: str | list[str], recipe: str, *, cached: bool = False, **files: Any) -> Case:
    rows = {f"{name}.jsonl": lines(*({"problem": "x1 + x2", "answer": one} for one in files[name])) for name in files}
    small = {"small/config.json": json.dumps(CONFIG)}
    return Case(says, recipe=recipe, files={"rows.jsonl": problems("x3"), **rows, **small}, cached=cached)


def in_file(
    says: str,
    ranges: str = RANGE,
    *,
    more: str = "",
    answer: str = "x3",
    name: str = "lexer.yaml",
    text: str = "",
    cached: bool = False,
) -> Case:
    """A recipe whose vocabulary is in a file, with the range on line 3."""
    recipe = lexer().partition("tokenizer:")[0] + f"tokenizer: {{extends: {name}}}\ndata: {{sources: [rows.jsonl]}}\n"
    section = text or f"type: lexer\nvocab:\n  range: {{{ranges}}}\n  misc: ['+', '=']\n{more}"
    files = {"rows.jsonl": problems(answer), "small/config.json": json.dumps(CONFIG), "lexer.yaml": section}
    return Case(says, recipe=recipe, files=files, cached=cached)


def problems(answer: str) -> str:
    return lines(*({"problem": "x1 + x2", "answer": answer} for _ in range(8)))


AT = "recipe.yaml:4:"
CASES: dict[str, Case] = {
    "no vocabulary": case(
        "recipe.yaml:2:1: tokenizer.vocab: Field required",
        "model: {name_or_path: small}\ntokenizer: {type: lexer}\ndata: {sources: [rows.jsonl]}\n",
    ),
    "a vocabulary without a token": case(
        f"{AT}3: tokenizer.vocab: it has no tokens; give vocab.range or vocab.misc", lexer("", "")
    ),
    "a range from the end": case(
        f"{AT}19: tokenizer.vocab.range.x: ['x', 9, 0]: min is above max", lexer("x: [x, 9, 0]")
    ),
    "a range of two": case(
        f"{AT}19: tokenizer.vocab.range.x: ['x', 9]: expected [prefix, min, max], a string and two integers, "
        "such as [x, 0, 2]",
        lexer("x: [x, 9]"),
    ),
    "numbers too large": case(
        f"{AT}19: tokenizer.vocab.range.n: 10,000,000,001 tokens; a vocabulary has at most 1,000,000",
        lexer('n: ["", 0, 10000000000]'),
    ),
    "a token twice": case(
        f"{AT}51: tokenizer.vocab.misc.2: 'x7' is given twice; it is in tokenizer.vocab.range.x too",
        lexer(misc='"+", "=", x7'),
    ),
    "white space in a token": case(
        f"{AT}46: tokenizer.vocab.misc.1: 'a b': a token has no white space and no control characters",
        lexer(misc='"+", "a b"'),
    ),
    "groups of minus one": case(
        "recipe.yaml:5:32: tokenizer.number_policy.digit_group: -1 should be greater than or equal to 0",
        lexer(more="  number_policy: {digit_group: -1}\n"),
    ),
    "a key that no vocabulary has": case(
        f"{AT}11: tokenizer.vocab.ranges: unknown; did you mean 'range'?", lexer().replace("range:", "ranges:")
    ),
    "tokens outside the vocabulary": case(
        f"{AT}3: tokenizer.vocab: 3 tokens of the data are not in the vocabulary: 'y' (first in rows.jsonl:2), '12' "
        "(first in rows.jsonl:4), '%' (first in rows.jsonl:4); add them to tokenizer.vocab, or set "
        "tokenizer.strict: false",
        lexer(),
        rows=["x3", "y", "x4", "12 %", "y"],
        cached=True,
    ),
    "tokens outside the vocabulary in what is evaluated on": case(
        f"{AT}3: tokenizer.vocab: 1 token of the data is not in the vocabulary: 'y' (first in held.jsonl:2); add them "
        "to tokenizer.vocab, or set tokenizer.strict: false",
        lexer(data=", eval_sources: [held.jsonl]"),
        held=["x3", "y"],
        cached=True,
    ),
    "a model without rows for the vocabulary": case(
        "recipe.yaml:1:23: model.name_or_path: small: the tokenizer has 43 tokens, 'x59' among them, for which the "
        "model has no row (it has 64): they do not belong together; give a model with more rows, or "
        "model.resize_vocabulary: true for rows with random weights",
        lexer("x: [x, 0, 99]"),
    ),
    "a lexer file with a range from the end": in_file(
        "lexer.yaml:3:11: tokenizer.vocab.range.x: ['x', 9, 0]: min is above max", "x: [x, 9, 0]"
    ),
    "a lexer file with a key that no lexer has": in_file(
        "lexer.yaml:5:1: tokenizer.strickt: unknown; did you mean 'strict'?", more="strickt: false\n"
    ),
    "tokens outside the vocabulary of a lexer file": in_file(
        "lexer.yaml:2:1: tokenizer.vocab: 1 token of the data is not in the vocabulary: 'y' (first in rows.jsonl:1); "
        "add them to tokenizer.vocab, or set tokenizer.strict: false",
        answer="y",
        cached=True,
    ),
    "a lexer file that is not there": in_file(
        "recipe.yaml:2:22: tokenizer.extends: lexers.yaml: no such file", name="lexers.yaml"
    ),
    "a lexer file that is a list": in_file("lexer.yaml:1:1: the section is a list; expected a mapping", text="- x\n"),
}
