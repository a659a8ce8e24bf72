"""Checkpoints that cannot be resumed from, and runs of which none can be saved."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, sft

CONTENT = b"weights"


def saved(**facts: Any) -> Callable[[Path], object]:
    """A complete checkpoint, whose manifest says ``facts``."""

    def save(at: Path) -> None:
        at.mkdir(parents=True)
        (at / "run_0.pt").write_bytes(CONTENT)
        files = {"run_0.pt": {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}}
        manifest = {"format": 3, "step": 1, "world": 1, "type": "deepspeed", "roles": ["model"], "files": files}
        manifest["run"] = {"recipe": {}, "prints": {}}
        (at / "manifest.json").write_text(json.dumps(manifest | facts))

    return save


NET = """
from torch import nn

from arctic_training import SFTTrainer
from arctic_training.model.factory import NetworkFactory


class Net(nn.Linear):
    def save_pretrained(self, folder):
        pass


class Own(NetworkFactory):
    name = "own_saved_network"

    def create_model(self, config):
        return Net(2, 2)


class Mine(SFTTrainer):
    name = "own_saved"
    model_factory_type = (Own,)
"""
OWN = "checkpoint: {type: deepspeed, auto_resume: true, output_dir: old}\n"
OTHER_RUN = "resume: old/step_1\nallow_changes: [type, data, tokenizer, global_batch_size]\n"

CASES: dict[str, Case] = {
    "of a type that is not known": Case(
        "recipe.yaml:3:9: resume: {here}/old/step_1 is a checkpoint of type 'strange'; this trainer reads deepspeed, "
        "huggingface",
        recipe=sft(more="resume: old/step_1\n"),
        files={"old/step_1": saved(type="strange")},
        cached=True,
    ),
    "of another type than the section": Case(
        "old/step_1 is a checkpoint of type 'huggingface', not 'deepspeed'",
        recipe=sft(more=OWN),
        files={"old/step_1": saved(type="huggingface")},
        cached=True,
    ),
    "for use elsewhere": Case(
        "{here}/old/step_1 is of type huggingface, for use elsewhere; no run can resume from it",
        recipe=sft(more=OTHER_RUN),
        files={"old/step_1": saved(type="huggingface")},
        cached=True,
    ),
    "of nobody knows which run": Case(
        "{here}/old/step_1 does not say which run it is of",
        recipe=sft(more="resume: old/step_1\n"),
        files={"old/step_1": saved(run=None)},
        cached=True,
    ),
    "of other models": Case(
        "{here}/old/step_1 and this run have different trained models: critic",
        recipe=sft(more=OTHER_RUN),
        files={"old/step_1": saved(roles=["critic", "model"])},
        cached=True,
    ),
    "of state on a disk": Case(
        "recipe.yaml:4:43: deepspeed.zero_optimization.offload_param: keeps state that checkpoint type deepspeed "
        "cannot save; remove one of them",
        recipe=sft(
            more="checkpoint: {type: deepspeed}\n"
            "deepspeed: {zero_optimization: {stage: 3, offload_param: {device: nvme, nvme_path: nvme}}}\n"
        ),
    ),
    "of a model that is not saved as those of transformers": Case(
        "recipe.yaml:5:20: checkpoint.type: huggingface cannot save a Net: Net.save_pretrained() got an unexpected "
        "keyword argument 'state_dict'",
        recipe="type: own_saved\nmodel: {}\ntokenizer: {name_or_path: model}\ndata: {sources: [rows.jsonl]}\n"
        "checkpoint: {type: huggingface}\n",
        files={"train.py": NET},
    ),
}
