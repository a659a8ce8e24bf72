"""The objects that a recipe names, to be passed to its trainer instead, and the recipe without them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arctic_training.model.tasks import TASKS
from arctic_training.registry import lookup

Recipe = dict[str, Any]


def split(recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """Returns a recipe of `tests.contract.cases` without models, tokenizer and rows, and these as objects. Networks of
    other types than `mlp` stay in the recipe."""
    recipe, objects = {**recipe}, dict[str, Any]()
    names = {key: one["name_or_path"] for key, one in recipe.items() if isinstance(one, dict) and "name_or_path" in one}
    roles: Any = lookup("trainer", recipe["type"]).roles  # type: ignore[attr-defined]
    for role in roles:
        section = dict(recipe.get(role.name, {}))
        if section.get("type") == "mlp":
            objects[role.name] = network(section, recipe["seed"])
        elif "name_or_path" in section:
            objects[role.name] = pretrained(section, role)
        if role.name in objects:
            recipe[role.name] = {key: section[key] for key in section.keys() & {"peft_config", "labels"}}
    if name := names.get("model"):
        from transformers import AutoTokenizer

        objects["tokenizer"] = AutoTokenizer.from_pretrained(name)
    data = dict(recipe["data"])
    objects["train_dataset"] = rows(data.pop("sources"))
    recipe["data"] = data
    return recipe, objects


def pretrained(section: Recipe, role: Any) -> Any:
    """Returns the model that a section names."""
    import transformers

    auto_class = getattr(transformers, TASKS[role.tasks[0]].auto_class)
    options = {"num_labels": len(section["labels"])} if "labels" in section else {}
    if role.num_labels is not None:
        options["num_labels"] = role.num_labels
    options |= section.get("hf_config_kwargs", {})
    return auto_class.from_pretrained(section["name_or_path"], dtype=torch.float32, **options)


def network(section: Recipe, seed: int) -> torch.nn.Module:
    """Returns the network that a section of type `mlp` describes, with the weights that a run draws for ``seed``."""
    sizes, dropout, activation = section["sizes"], section.get("dropout", 0), section.get("activation", "relu")
    functions = {"relu": torch.nn.ReLU, "leaky_relu": torch.nn.LeakyReLU, "silu": torch.nn.SiLU}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[torch.nn.Module] = []
        for n in range(len(sizes) - 1):
            layers += [torch.nn.Linear(sizes[n], sizes[n + 1])]
            if n < len(sizes) - 2:
                layers += [functions[activation](), *([torch.nn.Dropout(dropout)] if dropout else [])]
        return torch.nn.Sequential(*layers)


def rows(sources: list[Any]) -> Any:
    """Returns the rows of the one file that is named."""
    (source,) = sources
    path = Path(source if isinstance(source, str) else source["name_or_path"])
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    arrays = np.load(path)
    return arrays if path.suffix == ".npy" else {name: arrays[name] for name in arrays.files}
