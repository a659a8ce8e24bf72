"""Every method of PEFT: what a run saves loads with PEFT alone, on the base it names, and has the run's last loss."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import get_config
from arctic_training.errors.types import InputError
from arctic_training.model.vocabulary import warn_about_untrained_rows
from arctic_training.registry import lookup
from tests import tiny

LORA: dict[str, Any] = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}
ROWS = [320, 321]
"""The numbers of the two tokens that the tokenizer of "new tokens" has more than the model has rows."""

METHODS: dict[str, dict[str, Any]] = {
    "BEFT": {},
    "BOFT": {},
    "C3A": {"block_size": 16},
    "CARTRIDGE": {"num_virtual_tokens": 4, "num_frozen_tokens": 1},
    "DEFT": {},
    "DELORA": {},
    "FOURIERFT": {"n_frequency": 50},
    "FROD": {},
    "GLORA": {},
    "GRALORA": {},
    "HIRA": {},
    "HRA": {},
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {"target_modules": None},
    "LOHA": {},
    "LOKR": {},
    "LORA": {},
    "MISS": {"r": 8},
    "OFT": {},
    "OSF": {},
    "PEANUT": {},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "PSOFT": {"r": 8},
    "PVERA": {},
    "P_TUNING": {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
    "RANDLORA": {},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 4},
    "SUPERTUNING": {},
    "TINYLORA": {},
    "TRAINABLE_TOKENS": {"target_modules": None, "token_indices": [5, 6, 7]},
    "UNILORA": {},
    "VBLORA": {"vector_length": 16, "num_vectors": 8, "topk": 2},
    "VERA": {},
    "WAVEFT": {"n_frequency": 48},
}

CONDITIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"source": "tied"},
    "new tokens": {"source": "new", "model": {"resize_vocabulary": True}},
    "new tokens, tied": {"source": "new tied", "model": {"resize_vocabulary": True}},
    "random weights": {"model": {"random_weights": True}},
    "another config": {"model": {"hf_config_kwargs": {"rms_norm_eps": 1e-4}}},
    "head saved": {"peft": {"modules_to_save": ["lm_head"]}},
    "merged": {"checkpoint": {"merge_adapter": True}},
}

LORAS: dict[str, dict[str, Any]] = {
    "embedding and head saved": {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "embedding adapted": {"target_modules": ["q_proj", "embed_tokens"]},
    "embedding and head adapted": {"target_modules": ["embed_tokens", "lm_head"]},
    "new tokens": {"trainable_token_indices": ROWS},
    "one of the new tokens": {"trainable_token_indices": ROWS[:1]},
    "new tokens at both ends": {"trainable_token_indices": {"embed_tokens": ROWS, "lm_head": ROWS}},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa by chance": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "all layers": {"target_modules": "all-linear"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, some with more tokens than rows, and chats of equal length that use those tokens."""
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp("adapters")
    for name in ("model", "tied", "new", "new tied"):
        tiny.save_model(root / name, tie_word_embeddings="tied" in name)
        if "new" in name:
            tokenizer = AutoTokenizer.from_pretrained(root / name)
            tokenizer.add_tokens(["<new0>", "<new1>"])
            tokenizer.save_pretrained(root / name)
    words = [["one", "two"], ["three", "four"], ["five", "six"], ["nine", "ten"]]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"<new0> {a}"},
                {"role": "assistant", "content": f"{b} <new1> {a}"},
            ]
        }
        for a, b in words
    ]
    (root / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def make_trainer(root: Path, out: Path, adapter: dict[str, Any] | None, **keys: Any) -> Any:
    recipe = {
        "type": "sft",
        "model": {"name_or_path": str(root / keys.pop("source", "model")), "dtype": "fp32", "peft_config": adapter}
        | keys.pop("model", {}),
        "data": {"sources": [str(root / "chats.jsonl")], "eval_sources": [str(root / "chats.jsonl")]}
        | {"max_length": 64, "cache_dir": str(root / "cache")},
        "optimizer": {"type": "sgd", "lr": 1.0},
        "scheduler": {"warmup_ratio": 0},
        "deepspeed": {"gradient_clipping": 0},
        "train_iters": 1,
        "evaluate_last": True,
        "micro_batch_size": 4,
        "loss_log_interval": 0,
        "output_dir": str(out),
        "logger": {"level": "ERROR"},
        "checkpoint": {"type": "huggingface", "save_end_of_training": True, "output_dir": str(out / "saved")}
        | keys.pop("checkpoint", {}),
        **keys,
    }
    config = get_config(recipe)
    return lookup("trainer", recipe["type"])(config)  # type: ignore[call-arg]


def trained(root: Path, out: Path, adapter: dict[str, Any], **keys: Any) -> tuple[Path, float, list[Any]]:
    """The folder that a run of one update saves, its last evaluation loss, and the batches of that."""
    trainer = make_trainer(root, out, adapter, **keys)
    trainer.train()
    loader = next(iter(trainer.eval_loaders.values()))
    last = json.loads((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    loss = last[f"loss/{next(iter(trainer.eval_loaders))}"]
    loader.seek(0, 0)
    batches = [{name: batch[name].clone() for name in ("input_ids", "attention_mask", "labels")} for batch in loader]
    trainer.close()
    return out / "saved" / "step_1", loss, batches


@torch.no_grad()
def alone(folder: Path, batches: list[Any]) -> tuple[float, float]:
    """The loss of what PEFT alone loads, on the base that the adapter names; and of that base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.manual_seed(99)
    if (folder / "adapter_config.json").exists():
        name = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        without = mean(base, batches)
        return mean(PeftModel.from_pretrained(base, folder), batches), without
    return mean(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), batches), float("nan")


def mean(model: Any, batches: list[Any]) -> float:
    total, count = 0.0, 0
    for batch in batches:
        logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"][:, 1:]
        logits = logits[:, -labels.shape[1] - 1 : -1][labels != -100]
        total += torch.nn.functional.cross_entropy(logits, labels[labels != -100], reduction="sum").item()
        count += len(logits)
    return total / count


def settings(method: str, more: dict[str, Any]) -> dict[str, Any]:
    import dataclasses

    import peft

    fields = {field.name for field in dataclasses.fields(peft.PEFT_TYPE_TO_CONFIG_MAPPING[method])}
    adapter = {"target_modules": ["q_proj", "v_proj"]} | METHODS[method] | more
    return {"peft_type": method} | {name: one for name, one in adapter.items() if name in fields and one is not None}


def require_equal(root: Path, out: Path, adapter: dict[str, Any], **keys: Any) -> None:
    folder, loss, batches = trained(root, out, adapter, **keys)
    merged, without = alone(folder, batches)
    assert merged == pytest.approx(loss, abs=1e-5)
    assert without != pytest.approx(loss, abs=1e-8)  # the adapter does something


PAIRS = [(method, list(CONDITIONS)[n % 6]) for n, method in enumerate(METHODS) if method != "LORA"]
PAIRS += [("LORA", condition) for condition in CONDITIONS]


@pytest.mark.parametrize(("method", "condition"), PAIRS)
def test_what_is_saved_loads_with_peft_alone(root: Path, tmp_path: Path, method: str, condition: str) -> None:
    keys = dict(CONDITIONS[condition])
    require_equal(root, tmp_path, settings(method, keys.pop("peft", {})), **keys)


@pytest.mark.nightly
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_loads_or_is_refused_before_data(root: Path, tmp_path: Path, method: str, condition: str) -> None:
    keys = dict(CONDITIONS[condition])
    try:
        require_equal(root, tmp_path, settings(method, keys.pop("peft", {})), **keys)
    except InputError:
        assert condition == "merged" and method != "LORA"


@pytest.mark.parametrize("source", ["new", "new tied"])
@pytest.mark.parametrize("how", LORAS)
def test_lora_loads_however_it_is_put_on(root: Path, tmp_path: Path, how: str, source: str) -> None:
    more = dict(LORAS[how])
    if "tied" not in source:
        more.pop("ensure_weight_tying", None)
    require_equal(root, tmp_path, LORA | more, source=source, model={"resize_vocabulary": True})


PARTED = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}, "gradient_clipping": 0}


@pytest.mark.parametrize("method", ["LORA", "VERA", "RANDLORA", "IA3", "PROMPT_TUNING", "SHIRA"])
def test_what_is_saved_of_parted_weights_loads_with_peft_alone(root: Path, tmp_path: Path, method: str) -> None:
    require_equal(root, tmp_path, settings(method, {"modules_to_save": ["lm_head"]}), deepspeed=PARTED)


def test_modules_that_end_with_a_name_are_trained_where_weights_are_parted(root: Path, tmp_path: Path) -> None:
    """PEFT takes ``norm`` for each module whose path ends with it: the last norm, and those of the layers."""
    require_equal(root, tmp_path, LORA | {"modules_to_save": ["norm"]}, deepspeed=PARTED)


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        (LORA | {"init_lora_weights": "pissa"}, "init_lora_weights: pissa decomposes the weights, which ZeRO stage 3"),
        (LORA | {"use_dora": True}, "this LORA is made of weights of the model, which ZeRO stage 3"),
        (LORA | {"trainable_token_indices": [5]}, "this LORA is made of weights of the model, which ZeRO stage 3"),
        ({"peft_type": "LN_TUNING"}, "this LN_TUNING is made of weights"),
        ({"peft_type": "PSOFT", "r": 8, "target_modules": ["q_proj"]}, "this PSOFT is made of weights"),
        ({"peft_type": "DELORA", "target_modules": ["q_proj"]}, "this DELORA is made of weights"),
    ],
)
def test_an_adapter_of_parted_weights_is_refused_before_data(
    root: Path, tmp_path: Path, adapter: dict[str, Any], why: str
) -> None:
    require_refused(root, tmp_path, adapter, why, deepspeed=PARTED)


@pytest.mark.parametrize(
    ("adapter", "why", "keys"),
    [
        ({"peft_type": "POLY", "target_modules": ["q_proj"]}, "POLY needs the task of every row", {}),
        ({"peft_type": "ADALORA", "total_step": 9}, "ADALORA reallocates its ranks", {}),
        ({"peft_type": "LILY"}, "LILY weights its experts by the mean over all tokens of a batch", {}),
        ({"peft_type": "ADAPTION_PROMPT", "adapter_len": 4, "adapter_layers": 2}, "calls the model past the loss", {}),
        (LORA | {"init_lora_weights": "pizza"}, "init_lora_weights: pizza", {}),
        (LORA | {"init_lora_weights": "eva"}, "eva takes the first weights from data", {}),
        (
            LORA | {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
            "is a view of the memory of",
            {"source": "tied"},
        ),
        (LORA | {"use_dora": True}, "merge_adapter", {"checkpoint": {"merge_adapter": True}}),
    ],
)
def test_what_cannot_be_is_refused_before_data(
    root: Path, tmp_path: Path, adapter: dict[str, Any], why: str, keys: dict[str, Any]
) -> None:
    require_refused(root, tmp_path, adapter, why, **keys, model={"resize_vocabulary": True})


def require_refused(root: Path, out: Path, adapter: dict[str, Any], why: str, **keys: Any) -> None:
    chats = [str(root / "chats.jsonl")]
    data = {"sources": chats, "eval_sources": chats, "max_length": 64, "cache_dir": str(out / "cache")}
    with pytest.raises(InputError, match=why):
        make_trainer(root, out / "run", adapter, **keys, data=data)
    assert not (out / "cache").exists() and not (out / "run").exists()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, ["2 new tokens, '<new0>' among them, have random rows in embed_tokens", "2 .* in lm_head"]),
        (LORAS["one of the new tokens"], ["1 new tokens, '<new1>' among them, .* in embed_tokens", "2 .* in lm_head"]),
        (LORAS["embedding adapted"], ["2 .* in lm_head"]),
        (LORAS["new tokens at both ends"], []),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, []),
    ],
)
def test_new_rows_that_nothing_trains_are_told(
    root: Path, messages: list[str], more: dict[str, Any], expected: list[str]
) -> None:
    from peft import get_peft_config, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(root / "new")
    model.resize_token_embeddings(322, mean_resizing=False)
    settings = get_peft_config({"task_type": "CAUSAL_LM", **LORA, **more})
    warn_about_untrained_rows(get_peft_model(model, settings), [(320, "<new0>"), (321, "<new1>")])
    assert len(messages) == len(expected)
    assert all(re.search(one, line) for one, line in zip(expected, messages, strict=True))


@pytest.mark.parametrize("deepspeed", [{"gradient_clipping": 0}, PARTED])
@pytest.mark.parametrize("how", ["plain", "head saved", "pissa by chance"])
def test_the_folder_of_an_adapter_is_read_as_a_model(
    root: Path, tmp_path: Path, how: str, deepspeed: dict[str, Any]
) -> None:
    """As it is, and below another adapter, which PEFT puts on the same model again."""
    more = {"plain": {}, "head saved": {"modules_to_save": ["lm_head"]}, **LORAS}[how]
    folder, loss, _ = trained(root, tmp_path / "first", LORA | more)
    keys = {"source": folder, "deepspeed": deepspeed}
    trainer = make_trainer(root, tmp_path / "whole", None, **keys)
    assert next(iter(trainer.evaluate().values())) == pytest.approx(loss, abs=1e-5)
    assert all(parameter.requires_grad for parameter in trainer.model.module.parameters())
    trainer.close()
    folder, loss, batches = trained(root, tmp_path / "second", LORA, **keys)
    assert alone(folder, batches)[0] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        ("{", "adapter_config.json is damaged"),
        ('{"peft_type": "LORA"}', "adapter_config.json is damaged, or names no base"),
        ('{"peft_type": "LORA", "base_model_name_or_path": "/nowhere"}', "the base of the adapter, /nowhere: no such"),
    ],
)
def test_a_folder_of_an_adapter_without_its_base_is_refused(root: Path, tmp_path: Path, adapter: str, why: str) -> None:
    from arctic_training.config.get_config import missing_paths

    (tmp_path / "adapter_config.json").write_text(adapter, encoding="utf-8")
    recipe = {"type": "sft", "model": {"name_or_path": str(tmp_path)}, "data": {"sources": [str(root / "chats.jsonl")]}}
    assert why in missing_paths(get_config(recipe))[0]


@pytest.mark.parametrize("merged", [False, True])
def test_lora_on_fused_experts_is_saved_and_merged(root: Path, tmp_path: Path, merged: bool) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    source = tiny.save_tokenizer(tmp_path / "experts")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_local_experts": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(vocab_size=320, **sizes, **heads)).save_pretrained(source)
    adapter = {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"}
    require_equal(root, tmp_path / "run", adapter, source=source, checkpoint={"merge_adapter": merged})
