"""Questions, and the programs that compute their answers: the problems of CodeI/O that reasoning-gym carries."""

import ast
import functools
import gzip
import hashlib
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

from arctic_training import Callback, DataSource, DataSourceConfig, is_main
from arctic_training.errors.types import MissingDependencyError


@functools.cache
def programs(split: str) -> list[tuple[str, str]]:
    """Returns questions and programs of ``split``, "train" or another for those held out: one in four, by its hash.

    Programs have no comments. Raises `MissingDependencyError` without the package that has them.
    """
    package = importlib.util.find_spec("reasoning_gym")
    if package is None or package.origin is None:
        raise MissingDependencyError("the programs are in reasoning-gym, which is not installed; make install has it")
    with gzip.open(Path(package.origin).parent / "data" / "codeio-hq.jsonl.gz", "rt", encoding="utf-8") as file:
        entries = json.load(file)
    pairs: dict[str, str] = {}
    for entry in entries:
        question = " ".join(entry["task_description"].split())
        held_out = hashlib.sha256(question.encode()).digest()[0] < 64
        if held_out == (split != "train"):
            pairs.setdefault(question, without_comments(entry["code_sample"]))
    return [(question, program) for question, program in pairs.items() if program]


def without_comments(code: str) -> str:
    """Returns a program without comments; nothing for one that is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strings with unknown escapes
            return ast.unparse(ast.parse(code))
    except SyntaxError:
        return ""


class ProgramsSource(DataSource):
    """Questions, each with the program that is to be found."""

    name = "programs"
    config_type = DataSourceConfig

    def load(self, config: DataSourceConfig, split: str) -> Any:
        from datasets import Dataset

        questions, texts = zip(*programs(split), strict=True)
        return Dataset.from_dict({"anchor": questions, "positive": texts})


class PrintFigures(Callback):
    """Prints how well programs are found, before and after."""

    name = "search_figures"

    def post_evaluate(self, trainer: Any, values: dict[str, float]) -> None:
        when = "after" if trainer.progress.step else "before"
        if is_main():
            print(f"found first {when}: {values['accuracy/eval']:.1%}, MRR {values['mrr/eval']:.3f}", flush=True)
