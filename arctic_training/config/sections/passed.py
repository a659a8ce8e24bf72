"""Placeholders for objects that a Python program passes to a trainer: models, a tokenizer, rows."""

from collections.abc import Iterable, Mapping

from arctic_training.config.checks.problems import REQUIRED, Problem

PASSED = "passed"
"""The type of a section whose model of transformers, tokenizer or rows are passed."""
PASSED_MODULE = "passed_module"
"""The type of a section whose model is another torch module."""
PASSED_TENSORS = "passed_tensors"
"""The type of a source whose rows are tensors."""

OF_FILES = ("random_weights", "new_weights", "hf_config_kwargs", "trust_remote_code")
"""Keys that say how a model is loaded, and of which a passed one has none."""
LATER = "(passed later)"
"""Stands for an object, or for the name of a model, that is not known yet."""


def with_placeholders(recipe: Mapping[str, object], problems: Iterable[Problem]) -> dict[str, object]:
    """Returns ``recipe`` with a section of a type above for each model, and for the rows, that it lacks by the
    ``problems``, as if an object were passed for it."""
    assumed = dict(recipe)
    for name, key in (one.path for one in problems if one.text == REQUIRED and len(one.path) == 2):
        stated = recipe.get(name)
        section = stated if isinstance(stated, Mapping) else {}
        if key == "sources":
            rows = [{"type": PASSED, "rows": LATER}]
            evaluation = {} if {"eval_sources", "train_eval_split"} & section.keys() else {"eval_sources": rows}
            assumed[name] = {**section, "sources": rows, **evaluation}
        elif key == "name_or_path" and section.keys() & OF_FILES:
            assumed[name] = {**section, key: LATER}  # inherited from a model that is passed
        elif section.get("type", "huggingface") == "huggingface":
            kind = PASSED if key == "name_or_path" else PASSED_MODULE
            assumed[name] = {**section, "type": kind, "module": LATER}
    return assumed
