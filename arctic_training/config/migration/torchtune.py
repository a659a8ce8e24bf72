"""Recipes of torchtune's configurations: the YAML file of ``tune run``."""

import re
from collections.abc import Mapping

from arctic_training.config.migration.foreign import Foreign, as_list, integer
from arctic_training.config.migration.sections import (
    Source,
    mapping,
    note_quantization,
    put_lora,
    put_offloading,
    put_sources,
    put_tensor_parallel,
    source,
)
from arctic_training.config.migration.torchtune_objectives import migrate_objective
from arctic_training.config.migration.torchtune_values import component, folder_of, resolved
from arctic_training.config.migration.training_arguments import migrate_schedule, note_resume, zero_section
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
    "device shuffle log_level log_peak_memory_stats profiler "
    "save_adapter_weights_only optimizer_in_bwd custom_sharded_layers collate_fn low_cpu_ram "
    "memory_efficient_fsdp_wrap fsdp enable_kv_cache batch_size_val forward_batch_size "
    "num_output_chunks ac_mode ac_option"
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
    foreign.values, names = resolved(foreign.values)
    foreign.ignore(names)
    kind = trainer or _trainer(foreign)
    foreign.put("type", kind)
    _model(foreign)
    _data(foreign, kind)
    _amounts(foreign)
    _optimizer(foreign)
    migrate_objective(foreign, kind)
    foreign.move({"output_dir": "output_dir"})
    if foreign.flag("fsdp_cpu_offload"):
        foreign.put("deepspeed.zero_optimization", zero_section(3, True))
        foreign.note("fsdp_cpu_offload", "ZeRO stage 3 with offload shards the same")
    put_tensor_parallel(foreign, "tensor_parallel_dim")
    _outside(foreign)
    foreign.ignore(_WITHOUT_EFFECT.split())


def _outside(foreign: Foreign) -> None:
    """Carries over what is saved and where metrics go."""
    steps, epochs = (integer(foreign.number(f"save_every_n_{one}")) for one in ("steps", "epochs"))
    when = {"save_every_n_steps": steps} if steps else {"save_every_n_epochs": epochs or 1}
    kept = {"keep_last": limit} if (limit := integer(foreign.number("keep_last_n_checkpoints"))) else {}
    foreign.put("checkpoint", [{"type": "huggingface", **when, **kept, "save_end_of_training": True}])
    note_resume(foreign)
    if foreign.values.get("shuffle") is False:
        foreign.note("shuffle", "false: rows are read in a random order")
    logger, name = foreign.section("metric_logger"), component(foreign.values.get("metric_logger"))
    logger.ignore(["_component_", "log_dir", "filename"])
    if name == "WandBLogger":
        foreign.put("wandb.enable", True)
        logger.move({"project": "wandb.project", "entity": "wandb.entity", "name": "wandb.name"})
        logger.ignore(["group"])
    elif name == "TensorBoardLogger":
        foreign.put("trackers", ["tensorboard"])
    elif name not in ("", "DiskLogger", "StdoutLogger"):
        foreign.note("metric_logger", f"{name}: there is no such tracker; metrics are in metrics.jsonl")
        logger.ignore(logger.values)


def _trainer(foreign: Foreign) -> str:
    loss, data = component(foreign.values.get("loss")), component(foreign.values.get("dataset"))
    if "teacher_model" in foreign.values or "kd_ratio" in foreign.values:
        return "distill"
    if "grpo_samples" in foreign.values or loss.startswith("GRPO"):
        return "grpo"
    if "ppo_epochs" in foreign.values or "reward_and_value_model" in foreign.values:
        return "ppo"
    if loss in ("DPOLoss", "RSOLoss"):
        return "dpo"
    return "causal" if data in _TEXTS else "sft"


def _model(foreign: Foreign) -> None:
    key = "model" if "model" in foreign.values else "policy_model"
    model, name = foreign.section(key), component(foreign.values.get(key))
    foreign.put("model.name_or_path", folder_of(foreign, "checkpointer") or "model")
    foreign.put("model.dtype", {"fp16": "fp16", "fp32": "fp32"}.get(str(foreign.take("dtype")), "bf16"))
    foreign.move({"compile": "model.compile", "enable_activation_checkpointing": "model.activation_checkpointing"})
    if foreign.flag("enable_activation_offloading"):
        put_offloading(foreign, "enable_activation_offloading")
    if name.startswith(("qlora", "lora", "dora", "qdora")):
        modules = [_MODULES.get(str(one), str(one)) for one in as_list(model.take("lora_attn_modules"))]
        modules += _MLP if model.flag("apply_lora_to_mlp") else []
        modules += ["lm_head"] if model.flag("apply_lora_to_output") else []
        put_lora(
            foreign,
            rank=model.take("lora_rank") or 8,
            alpha=model.take("lora_alpha") or 16,
            dropout=model.take("lora_dropout"),
            targets=modules,
            use_dora=model.flag("use_dora") or "dora" in name,
        )
    if name.startswith(("qlora", "qdora")) or model.flag("quantize_base"):
        note_quantization(Foreign({name: True}, recipe=foreign.recipe, notes=foreign.notes), name)
    model.ignore(["_component_", "use_dora", "quantize_base"])
    if foreign.take("quantizer") is not None:
        foreign.note("quantizer", "training that imitates quantization is not built")


def _data(foreign: Foreign, kind: str) -> None:
    sections = foreign.entries("dataset", "datasets", word="source")
    sources = [_source(one, kind) for one in sections]
    if not sources:
        foreign.note("dataset", "missing: give data.sources")
    put_sources(foreign, sources or [source("rows.jsonl")])
    tests = foreign.entries("dataset_val", word="source")
    put_sources(foreign, [_source(one, kind) for one in tests], "eval_sources")
    if tests:
        foreign.put("evaluate_last", True)
        foreign.put("eval_interval", integer(foreign.number("run_val_every_n_steps")))
    tokenizer = foreign.section("tokenizer")
    tokenizer.move({"max_seq_len": "data.max_length"})
    tokenizer.ignore(["_component_", "path", "merges_file", "special_tokens_path"])
    template = tokenizer.take("prompt_template")
    if template is not None:
        tokenizer.note("prompt_template", f"{template}: the tokenizer's own chat template is used")
    if any(one.flag("packed") for one in [*sections, *tests]) and kind in ("sft", "causal", "distill"):
        foreign.put("data.pack_samples", True)
    # of Alpaca, its builders train on the prompts too unless it is said otherwise
    on_inputs = [one.values.get("train_on_input", "alpaca" in component(one.values)) for one in sections]
    if kind == "sft" and any(on_inputs):
        foreign.put("data.mask_inputs", False)
    foreign.put("data.seed", foreign.values.get("seed"))


def _source(entry: Foreign, kind: str) -> Source:
    name = component(entry.values)
    path = entry.take("source") or _DATA_SETS.get(name)
    files = entry.take("data_files")
    path = files if path in ("json", "csv", "parquet", "text") else path
    if path is None:
        entry.note("_component_", f"{name}: give the data set that it reads in data.sources")
    more: dict[str, object] = {"weight": entry.take("weight")}
    column = entry.take("column")
    if kind == "causal" and column not in (None, "text"):
        more |= {"type": "huggingface_causal", "column": str(column)}
    elif columns := column or entry.take("column_map", "conversation_column"):
        text = f"{columns}: columns are found by their names; rename others (docs/data.md)"
        entry.note("column" if column else "column_map", text)
    entry.ignore(["_component_", "train_on_input", "packed", "conversation_style", "add_eos", "split_across_pack"])
    subset = entry.take("name", "subset")
    return source(path or "rows.jsonl", split=entry.take("split"), subset=subset, **more)


def _amounts(foreign: Foreign) -> None:
    foreign.put("micro_batch_size", integer(foreign.number("batch_size")) or 1)
    foreign.move({"gradient_accumulation_steps": "gradient_accumulation_steps", "seed": "seed"})
    foreign.put("epochs", integer(foreign.number("epochs")) or 1)
    if foreign.number("max_steps_per_epoch"):
        foreign.note(
            "max_steps_per_epoch", "epoch_length is near: each epoch of those steps goes on where the one before ended"
        )
    foreign.put("train_log_iter_interval", integer(foreign.number("log_every_n_steps")))
    foreign.put("max_grad_norm", foreign.number("clip_grad_norm") or 0)


def _optimizer(foreign: Foreign) -> None:
    section, name = mapping(foreign.take("optimizer")), component(foreign.values.get("optimizer"))
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
    migrate_schedule(inner, "cosine" if "cosine" in component(schedule) else "constant", None)
    if schedule and "cosine" not in component(schedule):
        foreign.note("lr_scheduler", f"{component(schedule)}: constant stands for it")
