"""Recipes of axolotl's configurations: the YAML file of ``axolotl train``."""

from arctic_training.config.migration.axolotl_sources import sources_of
from arctic_training.config.migration.evaluations import migrate_monitoring
from arctic_training.config.migration.foreign import Foreign, as_list, integer
from arctic_training.config.migration.policies import migrate_policy
from arctic_training.config.migration.sections import (
    mapping,
    note_quantization,
    put_held_out,
    put_lora,
    put_offloading,
    put_sources,
    put_tensor_parallel,
)
from arctic_training.config.migration.training_arguments import (
    dtype_of,
    has_evaluation,
    migrate_optimizer,
    migrate_saves,
    migrate_schedule,
    migrate_sharding,
    steps_of,
    zero_section,
)
from arctic_training.registry import names

_LOSSES = {"dpo": "sigmoid", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo"}
"""Our losses of pairs by the words of ``rl``."""
_TEXTS = ("completion", "pretrain")
_WITHOUT_EFFECT = (
    "adapter lora_model_dir strict debug tf32 dataset_prepared_path dataset_processes wandb_watch wandb_log_model "
    "wandb_run_id wandb_entity load_in_8bit group_by_length pad_to_sequence_len eval_sample_packing attention "
    "gradient_checkpointing_kwargs attn_implementation flash_attention xformers_attention sdp_attention "
    "tokenizer_type model_type processor_type is_llama_derived_model is_mistral_derived_model "
    "local_rank plugins liger_rope liger_rms_norm liger_glu_activation liger_layer_norm liger_rms_norm_gated "
    "liger_fused_linear_cross_entropy lora_mlp_kernel lora_qkv_kernel lora_o_kernel ddp_find_unused_parameters "
    "eval_batch_size eval_table_size eval_max_new_tokens remove_unused_columns skip_prepare_dataset "
    "lora_fan_in_fan_out save_safetensors chat_template_jinja base_model_config "
    "tokenizer_config flash_attn_cross_entropy cut_cross_entropy auto_resume_from_checkpoints "
    "wandb_mode dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor "
    "dataset_num_proc torchdistx_path"
)


def migrate_axolotl(foreign: Foreign, trainer: str = "") -> None:
    """Carries a configuration of axolotl over to a recipe of ``trainer``, which its keys tell if it is not given."""
    kind = trainer or _trainer(foreign)
    foreign.put("type", kind)
    _model(foreign)
    _data(foreign, kind)
    _objective(foreign, kind)
    foreign.put("micro_batch_size", integer(foreign.number("micro_batch_size")) or 1)
    if kind == "grpo":
        completions = foreign.number("micro_batch_size") or 1
        steps = foreign.number("gradient_accumulation_steps")
        migrate_policy(foreign.section("trl"), completions=completions, steps=steps)
    else:
        foreign.move({"gradient_accumulation_steps": "gradient_accumulation_steps"})
    _length(foreign)
    migrate_optimizer(
        foreign, foreign.take("optimizer") or "adamw_torch_fused", foreign.number("learning_rate") or 1e-4
    )
    _schedule(foreign)
    foreign.move({"seed": "seed", "output_dir": "output_dir", "torch_compile": "model.compile"})
    foreign.put("train_log_iter_interval", steps_of(foreign, "logging_steps"))
    _checkpoints(foreign)
    _sharding(foreign)
    trackers = [one for one in ("tensorboard", "mlflow", "trackio", "swanlab") if foreign.take(f"use_{one}")]
    foreign.put("trackers", [one for one in trackers if one in names("tracker")] or None)
    if foreign.take("wandb_project"):
        foreign.put("wandb", {"enable": True, "project": foreign.take("wandb_project")})
        foreign.put("wandb.name", foreign.take("wandb_name", "wandb_run_id"))
        foreign.put("wandb.entity", foreign.take("wandb_entity"))
    if foreign.values.get("shuffle_merged_datasets") is False:
        foreign.note("shuffle_merged_datasets", "false: rows are read in a random order")
    foreign.ignore(["wandb_name", *_WITHOUT_EFFECT.split()])


def _trainer(foreign: Foreign) -> str:
    rl = str(foreign.take("rl") or "")
    if rl:
        if rl not in (*_LOSSES, "kto", "grpo"):
            foreign.note("rl", f"{rl}: there is no such trainer; dpo stands for it")
        return rl if rl in ("kto", "grpo") else "dpo"
    if foreign.flag("process_reward_model"):
        foreign.note("process_reward_model", "rewards of steps are not built; reward learns from pairs of completions")
        return "reward"
    if foreign.flag("reward_model"):
        return "reward"
    kinds = [str(mapping(one).get("type") or "") for one in as_list(foreign.values.get("datasets"))]
    is_text = foreign.values.get("pretraining_dataset") or (kinds and all(one in _TEXTS for one in kinds))
    return "causal" if is_text else "sft"


def _model(foreign: Foreign) -> None:
    foreign.move({"base_model": "model.name_or_path", "trust_remote_code": "model.trust_remote_code"})
    foreign.move({"gradient_checkpointing": "model.activation_checkpointing"})
    if mapping(foreign.recipe["model"]).get("activation_checkpointing") not in (None, True, False):
        foreign.put("model.activation_checkpointing", True)
        put_offloading(foreign, "gradient_checkpointing")
    if foreign.take("activation_offloading") not in (None, False):
        put_offloading(foreign, "activation_offloading")
    foreign.put("tiled_mlp_compute", foreign.flag("tiled_mlp") or None)
    foreign.put("model.dtype", dtype_of(foreign, "bf16"))
    if any("liger" in str(one).lower() for one in as_list(foreign.values.get("plugins"))):
        foreign.put("model.type", "liger")
    note_quantization(foreign, "load_in_4bit", "load_in_8bit", "gptq")
    _adapter(foreign)
    template = foreign.take("chat_template_jinja")
    foreign.put("tokenizer.chat_template", template)
    name = foreign.take("chat_template")
    if name not in (None, "tokenizer_default") and template is None:
        foreign.note("chat_template", f"{name}: the tokenizer's own is used; else give tokenizer.chat_template")
    if tokens := {key: one for key, one in mapping(foreign.take("special_tokens")).items() if key != "pad_token"}:
        foreign.note("special_tokens", f"{', '.join(tokens)}: those of the tokenizer's files are used")
    foreign.put("tokenizer.pad_token", mapping(foreign.take("special_tokens")).get("pad_token"))


def _adapter(foreign: Foreign) -> None:
    adapter = foreign.take("adapter")
    if adapter in (None, ""):
        return
    if adapter not in ("lora", "qlora"):
        foreign.note("adapter", f"{adapter}: give model.peft_config in the words of PEFT")
        return
    modules = None if foreign.flag("lora_target_linear") else foreign.take("lora_target_modules")
    put_lora(
        foreign,
        rank=foreign.take("lora_r") or 8,
        alpha=foreign.take("lora_alpha") or 16,
        dropout=foreign.take("lora_dropout"),
        targets=[modules] if isinstance(modules, str) else modules,  # a text is a regular expression
        modules_to_save=foreign.take("lora_modules_to_save"),
        use_dora=foreign.flag("peft_use_dora"),
        use_rslora=foreign.flag("peft_use_rslora"),
    )
    if foreign.take("lora_model_dir"):
        foreign.note("lora_model_dir", "give its folder as model.name_or_path: it is merged into its base")


def _data(foreign: Foreign, kind: str) -> None:
    texts = kind == "causal"
    sources = [one for entry in foreign.entries("datasets", word="path") for one in sources_of(entry, texts)]
    for entry in foreign.entries("pretraining_dataset", word="path"):
        sources += [{"type": "huggingface", **one, "streaming": True} for one in sources_of(entry, texts)]
    put_sources(foreign, sources)
    tests = foreign.entries("test_datasets", word="path")
    put_sources(foreign, [one for entry in tests for one in sources_of(entry, texts)], "eval_sources")
    if not foreign.flag("pretraining_dataset") and not any("streaming" in one for one in sources):
        put_held_out(foreign, "val_set_size")
    foreign.ignore(["val_set_size"])
    foreign.put("data.max_length", foreign.take("sequence_len"))
    if texts or kind == "sft":
        foreign.put("data.pack_samples", foreign.flag("sample_packing") or None)
    foreign.ignore(["sample_packing"])
    if foreign.flag("train_on_inputs") and kind == "sft":
        foreign.put("data.mask_inputs", False)


def _objective(foreign: Foreign, kind: str) -> None:
    trl = foreign.section("trl")
    if kind == "dpo":
        loss = _LOSSES.get(str(foreign.take("rl")), "sigmoid")
        foreign.put("loss_type", loss)
        foreign.put("beta", foreign.number("rl_beta", "dpo_beta", "orpo_alpha") or trl.number("beta") or 0.1)
        foreign.move({"simpo_gamma": "simpo_gamma"} if loss == "simpo" else {})
        foreign.move({"dpo_label_smoothing": "label_smoothing", "rpo_alpha": "sft_weight"})
    elif kind == "kto":
        foreign.put("beta", foreign.number("rl_beta") or trl.number("beta") or 0.1)
        foreign.move({f"kto_{one}desirable_weight": f"{one}desirable_weight" for one in ("", "un")})
    elif kind == "reward":
        foreign.put("model.new_weights", ["score"])
        foreign.move({"center_rewards_coefficient": "center_rewards_coefficient"})
        foreign.ignore(["num_labels", "reward_model"])


def _length(foreign: Foreign) -> None:
    steps = foreign.number("max_steps")
    if steps is not None and steps > 0:
        foreign.put("train_iters", int(steps))
        foreign.ignore(["num_epochs"])
        return
    epochs = foreign.number("num_epochs") or 1.0
    if epochs != int(epochs):
        foreign.note("num_epochs", f"{epochs:g}: epochs are whole numbers; give train_iters for a part of one")
    foreign.put("epochs", max(1, round(epochs)))
    sources = as_list(mapping(foreign.recipe["data"]).get("sources"))
    if any(mapping(one).get("streaming") for one in sources):
        foreign.put("train_iters", 1000)
        foreign.note("pretraining_dataset", "a stream has no end: give train_iters; 1000 stands for it")


def _schedule(foreign: Foreign) -> None:
    name, kwargs = foreign.take("lr_scheduler") or "cosine", foreign.take("lr_scheduler_kwargs")
    least = foreign.number("cosine_min_lr_ratio")
    if name == "cosine" and least:
        name, kwargs = "cosine_with_min_lr", {"min_lr_rate": least}
    migrate_schedule(foreign, name, kwargs)


def _checkpoints(foreign: Foreign) -> None:
    _evaluation(foreign)
    migrate_monitoring(foreign, "early_stopping_patience")
    steps, strategy = steps_of(foreign, "save_steps"), str(foreign.take("save_strategy") or "").lower()
    per_epoch = foreign.number("saves_per_epoch")
    strategy = strategy or ("steps" if steps else "epoch" if per_epoch != 0 else "no")
    if per_epoch and per_epoch != 1:
        foreign.note(
            "saves_per_epoch", f"{per_epoch:g}: the recipe saves once an epoch; for more give save_every_n_steps"
        )
    migrate_saves(foreign, strategy, steps or 500)


def _evaluation(foreign: Foreign) -> None:
    interval, evals = steps_of(foreign, "eval_steps"), foreign.number("evals_per_epoch")
    strategy = str(foreign.take("eval_strategy", "evaluation_strategy") or "")
    if not has_evaluation(foreign) or strategy == "no":
        return
    foreign.put("evaluate_last", True)
    foreign.put("eval_interval", interval)
    if evals and not interval:
        foreign.note(
            "evals_per_epoch", f"{evals:g}: the recipe evaluates at the end; for more give eval_interval, in steps"
        )


def _sharding(foreign: Foreign) -> None:
    block = foreign.values.get("deepspeed")
    stage = next((number for number in (3, 2, 1) if f"zero{number}" in str(block)), None)
    if isinstance(block, str) and stage is not None:  # those that axolotl comes with
        section = zero_section(stage, "offload" in block)
        if "offload_params" in block:
            section.pop("offload_optimizer")
        foreign.put("deepspeed.zero_optimization", section)
        foreign.ignore(["deepspeed", "fsdp", "fsdp_config", "fsdp_version"])
    else:
        migrate_sharding(foreign)
    foreign.put("sequence_parallel_size", foreign.take("context_parallel_size", "sequence_parallel_degree"))
    put_tensor_parallel(foreign, "tensor_parallel_size")
