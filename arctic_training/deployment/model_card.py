"""Writes the card of an exported model: what it was trained from, how, on what, and how well it does."""

import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arctic_training.checkpoint.saved_model import SavedModel
from arctic_training.config.checks.files import is_hub_name
from arctic_training.config.recipe.node import to_python
from arctic_training.config.recipe.recipe_file import read_recipe_file
from arctic_training.deployment.verify_merge import MergeReport
from arctic_training.model.pretrained_adapter import base_of
from arctic_training.tracker.records import METRICS, read_records

_PIPELINES = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}
_LIBRARIES = ("torch", "transformers", "deepspeed", "peft")
_NO_FIGURES = {"step", "time"}


def model_card(saved: SavedModel, folder: Path, report: MergeReport | None) -> str:
    """Returns the text of the README.md of the model that was exported to ``folder`` from ``saved``.

    Recipe and figures are those of the run folder, where there is one. ``report``: of a merged adapter.
    """
    from huggingface_hub import ModelCardData

    recipe = _recipe(saved)
    base, sources = _base(saved, recipe), _sources(recipe)
    kind = str(recipe.get("type", "")) or None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    data = ModelCardData(
        base_model=base if base and _is_hub_name(base) else None,
        datasets=[one for one in sources if _is_hub_name(one)] or None,
        library_name="diffusers" if "_diffusers_version" in config else "transformers",
        pipeline_tag=_pipeline(config),
        tags=["arctic_training", *([kind] if kind else [])],
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {_title(saved, base)}"]
    by = f"Trained by the trainer `{kind}` of" if kind else "Exported by"
    how = f"{by} arctic_training {importlib.metadata.version('arctic_training')}"
    step = f", step {saved.step}" if saved.step is not None else ""
    parts.append(how + (f" from `{base}`" if base else "") + f"{step}.")
    if report is not None:
        parts.append(
            f"Its LoRA adapter is merged into its weights in fp32: logits differ by {report.error:.2g} from those of "
            f"the adapter on its base, where the adapter changes them by {report.effect:.2g}."
        )
    if sources:
        parts += ["## Data", "\n".join(f"- `{one}`" for one in sources)]
    if figures := _figures(saved):
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
    sources = data.get("sources") if isinstance(data, Mapping) else None
    rows = sources if isinstance(sources, Sequence) and not isinstance(sources, str) else []
    names = [row.get("name_or_path") or row.get("path") or row.get("type") for row in rows if isinstance(row, Mapping)]
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


def _is_hub_name(name: str) -> bool:
    """Returns whether ``name`` could be one of the hub, and is no file or folder here."""
    return name.count("/") == 1 and is_hub_name(name) and not Path(name).exists()
