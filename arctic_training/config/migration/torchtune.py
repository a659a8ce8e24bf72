"""Recipes of torchtune's configurations: the YAML file of ``tune run``."""

import re
from collections.abc import Mapping

from arctic_training.config.migration.foreign import Foreign, as_list, integer
from arctic_training.config.migration.sections import Source, mapping, note_quantization, put_lora, put_sources, source
from arctic_training.config.migration.training_arguments import migrate_schedule
from arctic_training.errors.types import InputError

_DATA_SETS = {
    "alpaca_dataset": "tatsu-lab/alpaca",
    "alpaca_cleaned_dataset": "yahma/alpaca-cleaned",
    "grammar_dataset": "liweili/c4_200m",
    "hh_rlhf_helpful_dataset": "RLHFlow/HH-RLHF-Helpful-standard",
    "samsum_dataset": "Samsung/samsum",
    "slimorca_dataset": "Open-Orca/SlimOrca-Dedup",
    "stack_exchange_paired_dataset": "lvwerra/stack-exchange-paired",
    "cnn_dailymail_articles_dataset": "ccdv/cnn_dailymail",
    "wikitext_dataset": "EleutherAI/wikitext_document_level",
}
"""The data sets of its builders, on the hub."""
_TEXTS = ("text_completion_dataset", "wikitext_dataset", "cnn_dailymail_articles_dataset")
_ADAM = ("betas", "eps")
_OPTIMIZERS = {
    "AdamW": ("adamw", _ADAM, 1e-3),
    "Adam": ("adam", _ADAM, 1e-3),
    "RAdam": ("radam", _ADAM, 1e-3),
    "NAdam": ("nadam", (*_ADAM, "momentum_decay"), 2e-3),
    "RMSprop": ("rmsprop", ("alpha", "eps", "momentum", "centered"), 1e-2),
    "Adagrad": ("adagrad", ("lr_decay", "eps"), 1e-2),
    "SGD": ("sgd", ("momentum", "nesterov"), 1e-3),
    "Adafactor": ("adafactor", (), 1e-2),
    "Lion": ("lion", ("betas",), 1e-4),
}
"""Ours for each class of torch or another library: its name, the keys that have the same name in its section, and the
learning rate that is left out there."""
_STATES = re.compile(r"^Paged|_?[48]bit$|_?Fp8$", re.IGNORECASE)
"""Parts of names that say how states are stored."""
_MODULES = {"output_proj": "o_proj", "output": "lm_head"}
_MLP = ["gate_proj", "up_proj", "down_proj"]
_WITHOUT_EFFECT = (
    "tokenizer model checkpointer device shuffle metric_logger log_level log_peak_memory_stats profiler loss "
    "resume_from_checkpoint save_adapter_weights_only optimizer_in_bwd custom_sharded_layers collate_fn low_cpu_ram "
    "memory_efficient_fsdp_wrap fsdp fsdp_cpu_offload enable_kv_cache output_dir ref_checkpointer "
    "reference_checkpointer teacher_checkpointer num_output_chunks ac_mode ac_option"
)


def migrate_torchtune(foreign: Foreign, trainer: str = "") -> None:
    """Carries a configuration of torchtune over to a recipe of ``trainer``, which its keys tell if it is not given.

    Raises `InputError` for one that does not train: those of generation, evaluation and quantization.
    """
    if not isinstance(foreign.values.get("optimizer"), Mapping) or not foreign.values.keys() & {
        "model",
        "policy_model",
    }:
        raise InputError("a configuration of torchtune without a model and an optimizer trains nothing")
    kind = trainer or _trainer(foreign)
    foreign.put("type", kind)
    _model(foreign)
    _data(foreign, kind)
    _amounts(foreign)
    _optimizer(foreign)
    _objective(foreign, kind)
    foreign.put("checkpoint", [{"type": "huggingface", "save_every_n_epochs": 1, "save_end_of_training": True}])
    foreign.ignore(_WITHOUT_EFFECT.split())


def _component(value: object) -> str:
    """Returns the last part of the name of a component."""
    return str(mapping(value).get("_component_") or "").rpartition(".")[2]


def _trainer(foreign: Foreign) -> str:
    loss, data = _component(foreign.values.get("loss")), _component(foreign.values.get("dataset"))
    if "teacher_model" in foreign.values or "kd_ratio" in foreign.values:
        return "distill"
    if "ppo_epochs" in foreign.values or "reward_and_value_model" in foreign.values:
        return "ppo"
    if loss in ("DPOLoss", "RSOLoss"):
        return "dpo"
    return "causal" if data in _TEXTS else "sft"


def _model(foreign: Foreign) -> None:
    model = mapping(foreign.take("model", "policy_model"))
    name = _component(model)
    folder = mapping(foreign.take("checkpointer")).get("checkpoint_dir")
    foreign.put("model.name_or_path", str(folder or "model").rstrip("/"))
    foreign.put("model.dtype", {"fp16": "fp16", "fp32": "fp32"}.get(str(foreign.take("dtype")), "bf16"))
    foreign.move({"compile": "model.compile", "enable_activation_checkpointing": "model.activation_checkpointing"})
    if foreign.flag("enable_activation_offloading"):
        foreign.note("enable_activation_offloading", "activations are not kept in the memory of the CPU")
    if name.startswith(("qlora", "lora", "dora", "qdora")):
        modules = [_MODULES.get(str(one), str(one)) for one in as_list(model.get("lora_attn_modules"))]
        modules += _MLP if model.get("apply_lora_to_mlp") else []
        modules += ["lm_head"] if model.get("apply_lora_to_output") else []
        put_lora(
            foreign,
            rank=model.get("lora_rank") or 8,
            alpha=model.get("lora_alpha") or 16,
            dropout=model.get("lora_dropout"),
            targets=modules,
            use_dora=bool(model.get("use_dora")) or "dora" in name,
        )
    if name.startswith(("qlora", "qdora")) or model.get("quantize_base"):
        note_quantization(Foreign({name: True}, recipe=foreign.recipe, notes=foreign.notes), name)
    if foreign.take("quantizer") is not None:
        foreign.note("quantizer", "training that imitates quantization is not built")


def _data(foreign: Foreign, kind: str) -> None:
    sources = [_source(foreign, one) for one in as_list(foreign.take("dataset"))]
    put_sources(foreign, sources or [source("rows.jsonl")])
    length = mapping(foreign.take("tokenizer")).get("max_seq_len")
    foreign.put("data.max_length", length)
    sections = [mapping(one) for one in as_list(foreign.values.get("dataset"))]
    if any(one.get("packed") for one in sections):
        foreign.put("data.pack_samples", True)
    # of Alpaca, its builders train on the prompts too unless it is said otherwise
    on_inputs = [one.get("train_on_input", "alpaca" in _component(one)) for one in sections]
    if kind == "sft" and any(on_inputs):
        foreign.put("data.mask_inputs", False)
    foreign.put("data.seed", foreign.values.get("seed"))


def _source(foreign: Foreign, entry: object) -> Source:
    values, name = mapping(entry), _component(entry)
    path = values.get("source") or _DATA_SETS.get(name)
    path = values.get("data_files") if path in ("json", "csv", "parquet", "text") else path
    if path is None:
        foreign.note("dataset", f"{name}: give the data set that it reads in data.sources")
    if columns := values.get("column_map") or values.get("conversation_column") or values.get("column"):
        foreign.note("dataset", f"{columns}: columns are found by their names; rename others (docs/data.md)")
    subset = values.get("name")
    return source(path or "rows.jsonl", split=values.get("split"), subset=subset)


def _amounts(foreign: Foreign) -> None:
    foreign.put("micro_batch_size", integer(foreign.number("batch_size")) or 1)
    foreign.move({"gradient_accumulation_steps": "gradient_accumulation_steps", "seed": "seed"})
    foreign.put("epochs", integer(foreign.number("epochs")) or 1)
    if foreign.number("max_steps_per_epoch"):
        foreign.note("max_steps_per_epoch", "give train_iters, the steps of the whole run, or a part of the data")
    foreign.put("train_log_iter_interval", integer(foreign.number("log_every_n_steps")))
    foreign.put("max_grad_norm", foreign.number("clip_grad_norm") or 0)


def _optimizer(foreign: Foreign) -> None:
    section, name = mapping(foreign.take("optimizer")), _component(foreign.values.get("optimizer"))
    plain = _STATES.sub("", name)
    kind, keys, rate = _OPTIMIZERS.get(plain, _OPTIMIZERS["AdamW"])
    if plain not in _OPTIMIZERS:
        foreign.note(name, f"there is no such optimizer; {kind} stands for it")
    elif plain != name:
        foreign.note(name, f"{kind} with states of 32 bits stands for it: the same algorithm, with more memory")
    foreign.put("optimizer.type", kind)
    decay = float(str(section.get("weight_decay", 0.01 if kind == "adamw" else 0.0)))
    foreign.put("optimizer.lr", float(str(section.get("lr", rate))))
    foreign.put("optimizer.weight_decay", decay)
    for key in keys:
        foreign.put(f"optimizer.{key}", section.get(key))
    if decay and kind in ("radam", "nadam") and not section.get("decoupled_weight_decay"):
        foreign.note(name, "its weight decay is a part of the gradient, and here it is decoupled")
    known = {"_component_", "lr", "weight_decay", "decoupled_weight_decay", "fused", "foreach", *keys}
    for key in sorted(section.keys() - known) if plain in _OPTIMIZERS else ():
        if section[key]:
            foreign.note("optimizer", f"{key}: {section[key]} is not carried over")
    schedule = mapping(foreign.take("lr_scheduler"))
    words = {"warmup_steps": schedule.get("num_warmup_steps")}
    inner = Foreign(words, recipe=foreign.recipe, notes=foreign.notes)
    migrate_schedule(inner, "cosine" if "cosine" in _component(schedule) else "constant", None)
    if schedule and "cosine" not in _component(schedule):
        foreign.note("lr_scheduler", f"{_component(schedule)}: constant stands for it")


def _objective(foreign: Foreign, kind: str) -> None:
    loss = mapping(foreign.take("loss"))
    if kind == "dpo":
        foreign.put("beta", loss.get("beta") or 0.1)
        foreign.put("label_smoothing", loss.get("label_smoothing") or None)
    elif kind == "distill":
        foreign.put(
            "teacher", {"name_or_path": str(mapping(foreign.take("teacher_checkpointer")).get("checkpoint_dir"))}
        )
        ratio = foreign.number("kd_ratio")
        ratio = 0.5 if ratio is None else ratio
        foreign.put("ce_weight", round((1 - ratio) / ratio, 6) if ratio else 1.0)
        foreign.note(
            "kd_ratio", "ce_weight is the weight of the cross-entropy beside that of the divergence, which is 1"
        )
        foreign.ignore(["teacher_model", "kd_loss"])
    elif kind == "ppo":
        reward = mapping(foreign.take("reward_checkpointer")).get("checkpoint_dir") or "reward_model"
        foreign.put("rewards", [{"type": "model", "name_or_path": str(reward)}])
        foreign.put("critic", {"new_weights": ["score"]})
        foreign.move({"ppo_epochs": "num_iterations", "max_generated_tokens": "max_new_tokens", "gamma": "gamma"})
        foreign.move({"lmbda": "gae_lambda", "temperature": "temperature", "top_k": "top_k", "kl_coeff": "beta"})
        foreign.ignore(["value_checkpointer", "ref_policy_checkpointer", "reward_and_value_model", "policy_model"])
