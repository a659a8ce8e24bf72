"""Arguments of components are checked by `validate` before anything is loaded, whatever model the recipe names."""

from pathlib import Path
from typing import Any

import pytest

from arctic_training import get_config
from arctic_training.errors.types import InputError
from arctic_training.trainer.validation import check_run

HUB: dict[str, Any] = {
    "model": {"name_or_path": "nobody/has-this-model"},
    "data": {"sources": ["nobody/has-these-rows"], "train_eval_split": [0.9, 0.1]},
    "train_iters": 2,
    "eval_interval": 1,
    "callbacks": [],
}
BLEU = {"type": "torchmetrics", "metric": "text.BLEUScore", "kwargs": {"n_gramm": 4}}
NO_SUCH = ": kwargs: .*n_gramm"


MUON = " would be clipped and not the gradients; use max_grad_norm, or give deepspeed.zero_optimization.stage: 0"
FP16 = "callbacks.loss_spike.action: skip would lower the scale of the loss in fp16; set back, or model.dtype: bf16"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"type": "grpo", "rewards": [{"type": "ended"}, BLEU]}, rf"rewards\.1: scorers: torchmetrics: .*{NO_SUCH}"),
        ({"evaluators": [{**BLEU, "metric": "text.BLEU"}]}, r"text.BLEU: there is no such metric; did you mean"),
        (
            {"type": "grpo", "rewards": ["ended"], "callbacks": ["sample_rollouts"], "sequence_parallel_size": 2},
            "callbacks: sample_rollouts needs sequence_parallel_size: 1, where a rank has all tokens",
        ),
        (
            {"optimizer": {"type": "muon"}, "gradient_clip_value": 1},
            MUON,
        ),
        ({"evaluators": [{"type": "generate", "scorers": [BLEU]}]}, rf"scorers: torchmetrics: .*{NO_SUCH}"),
        ({"evaluators": [{**BLEU, "kwargs": {}}]}, r" measures predictions of classes, and type: sft makes none"),
        ({"callbacks": [{"type": "ema", "role": "critic"}]}, r"callbacks\.ema\.role: 'critic' is not trained here"),
        ({"callbacks": [{"type": "reduce_lr_on_plateau", "role": "ref_model"}]}, "'ref_model' is not trained here"),
        ({"callbacks": [{"type": "reduce_lr_on_instability", "role": "a"}]}, "'a' is not trained here"),
        ({"callbacks": ["sample_tensors"]}, r"sft has no method sample\(count\), which generates rows; remove it"),
        ({"callbacks": ["visualization"]}, r"the trainer sft has no method sample\(count\)"),
        ({"callbacks": ["loss_spike"], "model": {**HUB["model"], "dtype": "fp16"}}, FP16),
        (
            {
                "callbacks": ["restore_best", {"type": "ema", "export": True}],
                "checkpoint": [{"type": "huggingface", "save_end_of_training": True}],
            },
            "callbacks.restore_best: a callback ema has export: true, and both replace what is saved",
        ),
    ],
)
def test_what_the_recipe_alone_shows(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = get_config({"type": "sft", **HUB, "output_dir": str(tmp_path / "run"), **sections})
    with pytest.raises(InputError, match=message):
        check_run(config)
    assert not (tmp_path / "run").exists()


def test_a_good_recipe_of_the_hub_passes(tmp_path: Path) -> None:
    more = {"evaluators": [{"type": "generate", "scorers": [{**BLEU, "kwargs": {}}]}], "callbacks": ["ema"]}
    check_run(get_config({"type": "sft", **HUB, "output_dir": str(tmp_path / "run"), **more}))
