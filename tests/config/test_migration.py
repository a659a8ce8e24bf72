"""Configurations of other trainers become recipes that say the same, and what they do not say is listed."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_training import get_config
from arctic_training.cli.main import main
from arctic_training.config.migration.foreign import Foreign
from arctic_training.config.migration.migrate import FORMATS, Migrated, migrate
from arctic_training.config.recipe.node import to_python
from arctic_training.config.recipe.yaml_reader import read_yaml
from arctic_training.errors.types import InputError

AXOLOTL = """
base_model: some/model
load_in_4bit: true
adapter: qlora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
datasets:
  - {path: some/chats, type: chat_template, split: "train[:5%]"}
  - {path: json, data_files: rows.jsonl, type: alpaca}
val_set_size: 0.1
sequence_len: 4096
sample_packing: true
train_on_inputs: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 2e-4
warmup_steps: 10
weight_decay: 0.01
adam_beta2: 0.95
max_grad_norm: 0.3
bf16: auto
gradient_checkpointing: true
saves_per_epoch: 1
evals_per_epoch: 4
deepspeed: deepspeed_configs/zero2.json
wandb_project: mine
early_stopping_patience: 3
"""
LLAMA_FACTORY = """
model_name_or_path: some/model
stage: dpo
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj
pref_beta: 0.2
pref_loss: simpo
simpo_gamma: 1.5
dataset: known,unknown
template: llama3
cutoff_len: 1024
max_samples: 500
val_size: 0.05
eval_strategy: steps
eval_steps: 200
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: linear
warmup_ratio: 0.1
bf16: true
save_steps: 500
report_to: none
loraplus_lr_ratio: 16
"""
TRL = """
model_name_or_path: some/model
dataset_name: some/problems
dataset_config: main
reward_funcs: accuracy_reward
per_device_train_batch_size: 16
gradient_accumulation_steps: 4
num_generations: 8
max_prompt_length: 256
max_completion_length: 768
temperature: 0.9
beta: 0.04
max_steps: 200
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
use_vllm: true
save_strategy: epoch
save_total_limit: 2
model_revision: refs/pr/1
"""
TORCHTUNE = """
output_dir: /tmp/out
model:
  _component_: torchtune.models.llama3.lora_llama3_8b
  lora_attn_modules: [q_proj, output_proj]
  apply_lora_to_mlp: true
  lora_rank: 4
  lora_alpha: 8
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, max_seq_len: 2048}
checkpointer: {_component_: torchtune.training.FullModelHFCheckpointer, checkpoint_dir: /tmp/some-model/}
dataset: {_component_: torchtune.datasets.alpaca_cleaned_dataset, packed: true}
batch_size: 2
epochs: 2
gradient_accumulation_steps: 8
optimizer: {_component_: torch.optim.AdamW, lr: 3e-4, weight_decay: 0.02}
lr_scheduler: {_component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup, num_warmup_steps: 100}
loss: {_component_: torchtune.modules.loss.CEWithChunkedOutputLoss}
clip_grad_norm: null
dtype: bf16
enable_activation_checkpointing: true
max_steps_per_epoch: 50
tensor_parallel_dim: 2
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def migrated(text: str, **more: Any) -> Migrated:
    Path("other.yaml").write_text(text)
    return migrate(Path("other.yaml"), **more)


def values(recipe: dict[str, Any], *paths: str) -> list[Any]:
    several: list[Any] = []
    for path in paths:
        one: Any = recipe
        for key in path.split("."):
            one = one[int(key)] if isinstance(one, list) else one[key]
        several.append(one)
    return several


def test_axolotl() -> None:
    one = migrated(AXOLOTL)
    adapter = {"peft_type": "LORA", "r": 32, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": "all-linear"}
    assert (one.format, one.problems) == ("axolotl", [])
    assert values(one.recipe, "type", "model.name_or_path", "model.dtype", "model.peft_config") == [
        "sft",
        "some/model",
        "bf16",
        adapter,
    ]
    assert one.recipe["data"] == {
        "sources": [{"name_or_path": "some/chats", "split": "train[:5%]"}, "rows.jsonl"],
        "train_eval_split": [0.9, 0.1],
        "max_length": 4096,
        "pack_samples": True,
        "mask_inputs": False,
    }
    assert one.recipe["optimizer"] == {"type": "adamw", "lr": 2e-4, "weight_decay": 0.01, "betas": [0.9, 0.95]}
    assert one.recipe["scheduler"] == {"name": "cosine", "warmup_steps": 10}
    assert one.recipe["deepspeed"] == {"zero_optimization": {"stage": 2}}
    assert one.recipe["max_grad_norm"] == 0.3
    assert values(one.recipe, "micro_batch_size", "gradient_accumulation_steps", "epochs") == [2, 4, 3]
    assert one.recipe["wandb"] == {"enable": True, "project": "mine"}
    assert one.left_out == []
    noted = {"load_in_4bit", "adamw_bnb_8bit", "evals_per_epoch", "early_stopping_patience"}
    assert {note.partition(":")[0] for note in one.notes} == noted


def test_llama_factory() -> None:
    Path("data").mkdir()
    Path("data/dataset_info.json").write_text('{"known": {"hf_hub_url": "some/pairs"}}')
    one = migrated(LLAMA_FACTORY)
    assert (one.format, one.problems) == ("llama_factory", [])
    adapter = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}
    keys = ("type", "model.peft_config", "beta", "loss_type", "simpo_gamma", "eval_interval", "evaluate_last")
    assert values(one.recipe, *keys) == ["dpo", adapter, 0.2, "simpo", 1.5, 200, True]
    assert one.recipe["data"] == {
        "sources": [
            {"name_or_path": "some/pairs", "split": "train[:500]"},
            {"name_or_path": "data/unknown.json", "split": "train[:500]"},
        ],
        "train_eval_split": [0.95, 0.05],
        "max_length": 1024,
    }
    assert values(one.recipe, "optimizer.weight_decay", "scheduler.name", "scheduler.warmup_ratio") == [
        0,
        "linear",
        0.1,
    ]
    assert values(one.recipe, "checkpoint.0.save_every_n_steps", "checkpoint.1.type") == [500, "huggingface"]
    assert one.left_out == ["loraplus_lr_ratio: 16"]
    assert [note.partition(":")[0] for note in one.notes] == ["dataset", "template"]


def test_llama_factory_that_masks_the_history() -> None:
    text = "model_name_or_path: a\nstage: {}\ndo_train: true\ndataset: d\ntemplate: qwen\nmask_history: true\n{}"
    one = migrated(text.format("sft", ""))
    assert one.recipe["data"] == {"sources": ["data/d.json"], "max_length": 2048, "mask_history": True}
    assert "mask_history: a conversation longer than cutoff_len is dropped" in "\n".join(one.notes)
    for stage, more in (("sft", "train_on_prompt: true\n"), ("dpo", "")):  # which it refuses
        one = migrated(text.format(stage, more))
        assert one.left_out == ["mask_history: True"] and "mask_history" not in one.recipe["data"]


def test_trl() -> None:
    one = migrated(TRL)
    assert (one.format, one.problems, one.left_out) == ("trl", [], [])
    keys = ("type", "micro_batch_size", "gradient_accumulation_steps", "num_generations", "max_new_tokens")
    assert values(one.recipe, *keys) == ["grpo", 2, 4, 8, 768]
    assert values(one.recipe, "train_iters", "data.max_length", "beta", "temperature", "rewards") == [
        200,
        1024,
        0.04,
        0.9,
        ["exact_match"],
    ]
    assert values(one.recipe, "data.sources.0") == [
        {"name_or_path": "some/problems", "type": "huggingface", "kwargs": {"name": "main"}}
    ]
    assert values(one.recipe, "optimizer.lr", "scheduler") == [
        1e-6,
        {"name": "cosine_with_min_lr", "warmup_ratio": 0.0, "scheduler_specific_kwargs": {"min_lr_rate": 0.1}},
    ]
    assert values(one.recipe, "checkpoint.0.save_every_n_epochs", "checkpoint.0.keep_last") == [1, 2]
    assert {"model_revision", "accuracy_reward", "use_vllm"} == {note.partition(":")[0] for note in one.notes}


@pytest.mark.parametrize(
    ("more", "trainer"),
    [
        ("beta: 0.1", "dpo"),
        ("desirable_weight: 1.0", "kto"),
        ("center_rewards_coefficient: 0.01", "reward"),
        ("", "sft"),
    ],
)
def test_the_keys_of_trl_tell_the_trainer(more: str, trainer: str) -> None:
    text = f"model_name_or_path: a\ndataset_name: b\n{more}\n"
    one = migrated(text)
    assert one.recipe["type"] == trainer and not one.problems
    assert migrated(text, trainer="kto").recipe["type"] == "kto"


def test_what_trl_trains_on_is_trained_on() -> None:
    """By default every token of a chat."""
    one = migrated("model_name_or_path: a\ndataset_name: b\n")
    assert values(one.recipe, "data.mask_inputs", "epochs", "micro_batch_size", "optimizer.lr") == [False, 3, 8, 2e-5]
    one = migrated("model_name_or_path: a\ndataset_name: b\nassistant_only_loss: true\n")
    assert "mask_inputs" not in one.recipe["data"]  # type: ignore[operator]


def test_torchtune() -> None:
    one = migrated(TORCHTUNE)
    assert (one.format, one.problems, one.left_out) == ("torchtune", [], [])
    assert one.recipe["mesh"] == {"model": 2}
    modules = ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    keys = ("type", "model.name_or_path", "model.peft_config.target_modules", "model.peft_config.r")
    assert values(one.recipe, *keys) == ["sft", "/tmp/some-model", modules, 4]
    assert one.recipe["data"] == {
        "sources": ["yahma/alpaca-cleaned"],
        "max_length": 2048,
        "pack_samples": True,
        "mask_inputs": False,
    }
    assert one.recipe["optimizer"] == {"type": "adamw", "lr": 3e-4, "weight_decay": 0.02}
    assert one.recipe["scheduler"] == {"name": "cosine", "warmup_steps": 100}
    assert values(one.recipe, "max_grad_norm", "epochs", "micro_batch_size") == [0, 2, 2]
    assert [note.partition(":")[0] for note in one.notes] == ["max_steps_per_epoch"]


@pytest.mark.parametrize(
    ("section", "expected", "notes"),
    [
        ("torch.optim.Adam, lr: 1e-3, betas: [0.9, 0.95]", {"type": "adam", "lr": 1e-3, "betas": [0.9, 0.95]}, []),
        ("torch.optim.Adam, fused: true", {"type": "adam", "lr": 1e-3}, []),
        ("torch.optim.SGD, lr: 0.1, momentum: 0.9", {"type": "sgd", "lr": 0.1, "momentum": 0.9}, []),
        ("torch.optim.RMSprop, alpha: 0.9", {"type": "rmsprop", "lr": 1e-2, "alpha": 0.9}, []),
        ("torch.optim.NAdam, weight_decay: 0.1", {"type": "nadam", "lr": 2e-3, "weight_decay": 0.1}, ["NAdam"]),
        ("torch.optim.Adam, amsgrad: true", {"type": "adam", "lr": 1e-3}, ["optimizer"]),
        ("bitsandbytes.optim.PagedAdamW8bit", {"type": "adamw", "lr": 1e-3, "weight_decay": 0.01}, ["PagedAdamW8bit"]),
        ("own.Shampoo, beta: 1", {"type": "adamw", "lr": 1e-3, "weight_decay": 0.01}, ["Shampoo"]),
    ],
)
def test_optimizers_of_torchtune(section: str, expected: dict[str, Any], notes: list[str]) -> None:
    line = next(one for one in TORCHTUNE.splitlines() if one.startswith("optimizer:"))
    one = migrated(TORCHTUNE.replace(line, f"optimizer: {{_component_: {section}}}"))
    assert one.recipe["optimizer"] == {"weight_decay": 0.0, **expected} and one.problems == []
    assert [note.partition(":")[0] for note in one.notes] == ["max_steps_per_epoch", *notes]


@pytest.mark.parametrize("text", [AXOLOTL, LLAMA_FACTORY, TRL, TORCHTUNE])
def test_the_command_writes_what_can_be_read(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    one = migrated(text)
    assert main(["migrate", "other.yaml", "-o", "recipe.yaml"]) == 0
    config = get_config("recipe.yaml")
    assert config.type == one.recipe["type"]
    assert to_python(read_yaml(Path("recipe.yaml").read_text(), "recipe.yaml")) == one.recipe
    errors = capsys.readouterr().err
    assert max(map(len, errors.splitlines())) <= 80
    errors = " ".join(errors.split())
    lines = [*one.notes, *one.left_out]
    assert lines and all(line in errors and f"# - {line}\n" in Path("recipe.yaml").read_text() for line in lines)
    assert main(["migrate", "other.yaml", "-o", "recipe.yaml"]) == 2
    assert "recipe.yaml exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("a: 1\n", [], "other.yaml: a configuration of none of axolotl, llama_factory, torchtune, trl by its keys"),
        ("- a\n", [], "other.yaml: expected a mapping of keys to values"),
        ("a: [1\nb: 2\n", [], "other.yaml:2:2: not YAML"),
        ("model: {_component_: x}\n", [], "without a model and an optimizer trains nothing"),
        ("model_name_or_path: a\nstage: sft\ndo_predict: true\n", [], "without do_train, for prediction or export"),
        ("base_model: a\n", ["--from", "nemo"], "argument --from: invalid choice: 'nemo'"),
    ],
)
def test_mistakes(text: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.yaml").write_text(text)
    assert main(["migrate", "other.yaml", *words]) == 2
    assert message in capsys.readouterr().err


TEXTS = {"axolotl": AXOLOTL, "llama_factory": LLAMA_FACTORY, "trl": TRL, "torchtune": TORCHTUNE}
WORDS = st.sampled_from(["", "a", "no", "cosine", "1e-4"])
SCALARS = st.none() | st.booleans() | st.integers(-2, 9) | st.floats(-1, 2) | WORDS
ANY = st.recursive(
    SCALARS, lambda one: st.lists(one, max_size=2) | st.dictionaries(st.sampled_from("ab"), one, max_size=2)
)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15)
@given(data=st.data())
def test_no_value_of_a_key_leads_to_a_crash(name: str, data: st.DataObject) -> None:
    """Whatever stands under the keys, the result is a mapping that can be written, or a refusal."""
    known = yaml.safe_load(TEXTS[name])
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(known)), ANY, max_size=6))
    foreign = Foreign(known | changed)
    try:
        FORMATS[name](foreign, "")
    except InputError:
        return
    text = Migrated(name, foreign.recipe, foreign.notes, foreign.unread(), []).text("other.yaml")
    assert to_python(read_yaml(text, "recipe.yaml")) == foreign.recipe
