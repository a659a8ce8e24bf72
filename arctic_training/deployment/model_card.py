"""Writes the card of an exported model: what it was trained from, how, on what, and how well it does."""

import importlib.metadata
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arctic_training.checkpoint.saved_model import SavedModel
from arctic_training.config.recipe.node import to_python
from arctic_training.config.recipe.recipe_file import read_recipe_file
from arctic_training.deployment.model_index import could_be_on_hub, evaluation_results, sections
from arctic_training.deployment.verify_merge import MergeReport
from arctic_training.model.pretrained_adapter import base_of
from arctic_training.model.seq2seq_token_classifier import SUFFIX
from arctic_training.model.tasks import task_of_config
from arctic_training.tokenizer.huggingface_factory import has_tokenizer
from arctic_training.tracker.records import METRICS, read_records

_PIPELINES = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}
_LIBRARIES = ("torch", "transformers", "deepspeed", "peft")
_NO_FIGURES = {"step", "time"}
_LICENSE = ("license", "license_name", "license_link")
"""Keys of a card that say under which license a model is: the last two for one that the hub calls ``other``."""


def model_card(saved: SavedModel, folder: Path, report: MergeReport | None, name: str) -> str:
    """Returns the text of the README.md of the model that was exported to ``folder`` from ``saved``.

    Recipe and figures are those of the run folder, where there is one. ``report``: of a merged adapter. ``name`` is
    where the model is to be loaded from: a folder, or its name on the hub.
    """
    from huggingface_hub import ModelCardData

    recipe = _recipe(saved)
    base, sources = _base(saved, recipe), _sources(recipe)
    kind = str(recipe.get("type", "")) or None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    figures, title, pipeline = _figures(saved), _title(saved, base), _pipeline(config)
    values = {metric: value for metric, (value, _) in figures.items()}
    license_of_base = _license(base or saved.name)
    data = ModelCardData(
        license=license_of_base.get("license"),
        license_name=license_of_base.get("license_name"),
        license_link=license_of_base.get("license_link"),
        base_model=base if base and could_be_on_hub(base) else None,
        datasets=[one for one in sources if could_be_on_hub(one)] or None,
        library_name="diffusers" if "_diffusers_version" in config else "transformers",
        pipeline_tag=pipeline,
        tags=["arctic_training", *([kind] if kind else [])],
        model_name=title,
        eval_results=evaluation_results(recipe, values, pipeline or str(kind)) or None,
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {title}"]
    by = f"Trained by the trainer `{kind}` of" if kind else "Exported by"
    how = f"{by} arctic_training {importlib.metadata.version('arctic_training')}"
    step = f", step {saved.step}" if saved.step is not None else ""
    parts.append(how + (f" from `{base}`" if base else "") + f"{step}.")
    if report is not None:
        parts.append(
            f"Its LoRA adapter is merged into its weights in fp32: logits differ by {report.error:.2g} from those of "
            f"the adapter on its base, where the adapter changes them by {report.effect:.2g}."
        )
    parts += ["## Use", f"```python\n{_loading(config, folder, json.dumps(name))}\n```"]
    if sources:
        parts += ["## Data", "\n".join(f"- `{one}`" for one in sources)]
    if figures:
        rows = [f"| {name} | {value:.6g} | {step} |" for name, (value, step) in sorted(figures.items())]
        parts += ["## Figures", "\n".join(["| metric | value | step |", "|---|---:|---:|", *rows])]
    if saved.recipe is not None:
        parts += ["## Recipe", f"```yaml\n{saved.recipe.read_text(encoding='utf-8').strip()}\n```"]
    parts += ["## Versions", "\n".join(f"- {name} {importlib.metadata.version(name)}" for name in _LIBRARIES)]
    return "\n\n".join(parts) + "\n"


def _recipe(saved: SavedModel) -> Mapping[str, object]:
    value = to_python(read_recipe_file(saved.recipe)) if saved.recipe is not None else {}
    return value if isinstance(value, Mapping) else {}


def _base(saved: SavedModel, recipe: Mapping[str, object]) -> str:
    """Returns the name of the model that was trained; empty where it is not known."""
    model = recipe.get("model")
    if isinstance(model, Mapping) and model.get("name_or_path"):
        return str(model["name_or_path"])
    return base_of(saved.name) if saved.kind == "adapter" else ""


def _sources(recipe: Mapping[str, object]) -> list[str]:
    """Returns the names of the training sources of a recipe with all its defaults."""
    data = recipe.get("data")
    rows = sections(data.get("sources")) if isinstance(data, Mapping) else []
    names = [row.get("name_or_path") or row.get("path") or row.get("type") for row in rows]
    return [str(name) for name in names if name]


def _figures(saved: SavedModel) -> dict[str, tuple[float, int]]:
    """Returns the latest value of each metric up to the step of the model, and the step at which it was measured."""
    figures: dict[str, tuple[float, int]] = {}
    for record in read_records(saved.run_dir / METRICS)[0] if saved.run_dir is not None else ():
        if saved.step is not None and record["step"] > saved.step:
            continue
        for name, value in record.items():
            if name not in _NO_FIGURES and math.isfinite(value):
                figures[name] = (float(value), int(record["step"]))
    return figures


def _pipeline(config: Mapping[str, Any]) -> str | None:
    """Returns what the hub calls the task of a model, by the class that its config names."""
    architectures = config.get("architectures") or [""]
    return next((task for ending, task in _PIPELINES.items() if str(architectures[0]).endswith(ending)), None)


def _title(saved: SavedModel, base: str) -> str:
    run = saved.run_dir.name if saved.run_dir is not None else Path(saved.name).name
    return f"{Path(base).name}, trained by {run}" if base else run


def _license(name: str) -> dict[str, str]:
    """Returns what the card of the model ``name`` says of its license, by the keys of cards. The card is that of its
    folder, or one in the hub's cache: the hub is not asked. Nothing where there is none."""
    from huggingface_hub import metadata_load, try_to_load_from_cache

    path = Path(name).expanduser()
    try:
        if path.exists():
            data = metadata_load((path if path.is_dir() else path.parent) / "README.md")
        else:
            cached = try_to_load_from_cache(name, "README.md")
            data = metadata_load(cached) if isinstance(cached, str) else None
    except Exception:  # no file, no name of the hub, or front matter that YAML cannot read
        data = None
    return {key: data[key] for key in _LICENSE if isinstance(data.get(key), str)} if data else {}


def _loading(config: Mapping[str, object], folder: Path, name: str) -> str:
    """Returns the code that loads the model with the ``config`` of ``folder`` from ``name``, which is quoted."""
    from transformers import PreTrainedConfig

    if "_diffusers_version" in config:
        network = config["_class_name"]
        return f"from diffusers import {network}\n\nmodel = {network}.from_pretrained({name})"
    if (folder / "modules.json").is_file():
        return f"from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer({name})"
    names = {key: config[key] for key in ("architectures", "is_encoder_decoder") if key in config}
    auto_class = task_of_config(PreTrainedConfig(**names)).auto_class
    if auto_class.endswith(SUFFIX):  # transformers has no such class
        return f"from arctic_training import load_pretrained\n\nmodel, tokenizer = load_pretrained({name})"
    arguments = f"{name}, trust_remote_code=True" if "auto_map" in config else name
    classes = {"model": auto_class} | ({"tokenizer": "AutoTokenizer"} if has_tokenizer(folder) else {})
    lines = [f"{variable} = {loader}.from_pretrained({arguments})" for variable, loader in classes.items()]
    return "\n".join([f"from transformers import {', '.join(classes.values())}", "", *lines])
