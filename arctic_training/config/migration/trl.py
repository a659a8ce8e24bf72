"""Recipes of TRL's configurations: the YAML file of ``trl sft --config`` and its like."""

from arctic_training.config.migration.foreign import Foreign, as_list
from arctic_training.config.migration.policies import migrate_policy
from arctic_training.config.migration.sections import (
    Source,
    mapping,
    note_quantization,
    preference_loss,
    put_held_out,
    put_lora,
    put_offloading,
    put_sources,
    source,
)
from arctic_training.config.migration.training_arguments import dtype_of, migrate_training_arguments

_LEARNING_RATES = {"sft": 2e-5, "reward": 1e-4}
"""Of TRL's trainers; 1e-6 of all others."""
_WITHOUT_EFFECT = (
    "attn_implementation trust_remote_code dataset_num_proc preprocessing_num_workers env num_processes columns "
    "use_liger use_liger_kernel use_flash_attention_2 padding_free eval_packing packing_strategy "
    "torch_dtype dtype use_peft eval_dataset_name wandb_entity project trackio_space_id max_seq_length"
)


def migrate_trl(foreign: Foreign, trainer: str = "") -> None:
    """Carries a configuration of TRL over to a recipe of ``trainer``, which its keys tell if it is not given."""
    kind = trainer or _trainer(foreign)
    foreign.put("type", kind)
    _model(foreign)
    _data(foreign, kind)
    rate = _LEARNING_RATES.get(kind, 1e-6)
    migrate_training_arguments(foreign, learning_rate=rate)
    if foreign.flag("activation_offloading"):
        put_offloading(foreign, "activation_offloading")
    _objective(foreign, kind)
    foreign.ignore(_WITHOUT_EFFECT.split())


def _trainer(foreign: Foreign) -> str:
    """Returns our trainer of the configuration, whose file does not name it."""
    keys = foreign.values.keys()
    if keys & {"reward_funcs", "num_generations", "max_completion_length", "use_vllm"}:
        return "grpo"
    if keys & {"desirable_weight", "undesirable_weight"}:
        return "kto"
    if "center_rewards_coefficient" in keys:
        return "reward"
    if keys & {"beta", "max_prompt_length", "precompute_ref_log_probs"}:
        if not keys & {"loss_type", "precompute_ref_log_probs"}:
            text = "the file does not say which command reads it: for ORPO, whose keys are those of `trl dpo`, write"
            foreign.notes.append(f"{text} loss_type: orpo")
        return "dpo"
    foreign.notes.append("the file does not say which command reads it; for another than `trl sft` give --type")
    return "sft"


def _model(foreign: Foreign) -> None:
    foreign.move({"model_name_or_path": "model.name_or_path", "tokenizer_name_or_path": "tokenizer.name_or_path"})
    if "name_or_path" not in mapping(foreign.recipe.get("model")):
        foreign.put("model.name_or_path", "model")
        foreign.note("model_name_or_path", "missing: give model.name_or_path")
    words = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    stated = words.get(str(foreign.take("dtype", "torch_dtype")), "bf16")
    foreign.put("model.dtype", dtype_of(foreign, stated))
    revision = foreign.take("model_revision")
    if revision not in (None, "main"):
        foreign.note("model_revision", f"{revision}: download this revision, and give its folder")
    foreign.put("model.trust_remote_code", foreign.take("trust_remote_code"))
    if foreign.flag("use_liger_kernel", "use_liger"):
        foreign.put("model.type", "liger")
    arguments = foreign.section("model_init_kwargs")
    arguments.ignore(["torch_dtype", "dtype", "attn_implementation", "use_cache", "device_map", "low_cpu_mem_usage"])
    foreign.put(
        "model.hf_config_kwargs",
        {key: arguments.take(key) for key in arguments.values if key not in arguments.read} or None,
    )
    template = foreign.take("chat_template", "chat_template_path")
    foreign.put("tokenizer.chat_template", template)
    foreign.move({"pad_token": "tokenizer.pad_token"})
    note_quantization(foreign, "load_in_4bit", "load_in_8bit")
    if foreign.flag("use_peft"):
        foreign.ignore(["lora_task_type", "lora_target_parameters"])
        put_lora(
            foreign,
            rank=foreign.take("lora_r") or 16,
            alpha=foreign.take("lora_alpha") or 32,
            dropout=foreign.take("lora_dropout") or (None if "lora_dropout" in foreign.values else 0.05),
            targets=foreign.take("lora_target_modules"),
            modules_to_save=foreign.take("lora_modules_to_save"),
            use_dora=foreign.flag("use_dora"),
            use_rslora=foreign.flag("use_rslora"),
        )


def _data(foreign: Foreign, kind: str) -> None:
    subset = foreign.take("dataset_config", "dataset_config_name") or next(
        iter(as_list(foreign.take("dataset_configs"))), None
    )
    train, test = foreign.take("dataset_train_split"), foreign.take("dataset_test_split")
    name = foreign.take("dataset_name", "dataset_id_or_path")
    if name is not None:
        put_sources(foreign, [source(name, split=train, subset=subset)])
        if foreign.values.get("eval_strategy", "no") not in ("no", False):
            put_sources(foreign, [source(name, split=test or "test", subset=subset)], "eval_sources")
    elif "dataset_mixture" in foreign.values:
        _mixture(foreign, foreign.section("dataset_mixture"))
    elif "datasets" in foreign.values:
        _mixture(foreign, foreign)
    _mixer(foreign, subset)
    if "sources" not in mapping(foreign.recipe.get("data")):
        foreign.put("data.sources", ["rows.jsonl"])
        foreign.note("dataset_name", "missing: give data.sources")
    length = foreign.take("max_length", "max_seq_length")
    if kind == "grpo":  # room for a prompt and its completion
        prompt, completion = foreign.number("max_prompt_length") or 512, foreign.number("max_completion_length") or 512
        length = int(prompt + completion)
    foreign.put("data.max_length", length if length is not None or "max_length" in foreign.values else 1024)
    if kind in ("sft", "causal"):
        foreign.put("data.filter_samples", False)
        foreign.put("data.pack_samples", foreign.flag("packing") or None)
    elif kind in ("dpo", "kto", "reward"):
        foreign.move({"max_prompt_length": "data.max_prompt_length"})
    column = foreign.take("dataset_text_field")
    if column not in (None, "text"):
        foreign.note("dataset_text_field", f"{column}: rename the column to text, and write type: causal")


def _mixture(foreign: Foreign, mixture: Foreign) -> None:
    """Carries over a list of data sets with their weights, which are shares of the rows of each."""
    sources: list[Source] = []
    for entry in mixture.entries("datasets", word="id"):
        weight = entry.take("weight")
        share = weight if weight not in (None, 1, 1.0) else None
        name, subset, files = entry.take("id", "path"), entry.take("config", "name"), entry.take("data_files")
        entry.ignore(["columns"])  # they are found by their names
        split = entry.take("split")
        sources.append(source(name, split=split, subset=subset, data_files=files, sample_ratio=share))
    put_sources(foreign, sources)
    put_held_out(mixture, "test_split_size")
    mixture.ignore(["seed"] if mixture is not foreign else [])


def _mixer(foreign: Foreign, subset: object) -> None:
    """Carries over `dataset_mixer`, names with the shares of their rows, and `dataset_splits`."""
    mixer = mapping(foreign.take("dataset_mixer"))
    splits = [str(one) for one in as_list(foreign.take("dataset_splits"))]
    if not mixer:
        return
    shares = {name: share if share not in (1, 1.0) else None for name, share in mixer.items()}
    put_sources(
        foreign,
        [source(name, split=next(iter(splits), None), subset=subset, sample_ratio=one) for name, one in shares.items()],
    )
    if len(splits) > 1:
        put_sources(foreign, [source(name, split=splits[1], subset=subset) for name in mixer], "eval_sources")


def _losses(foreign: Foreign) -> None:
    """Carries over the losses that are added up, of which the cross-entropy has a key of its own here."""
    words = [str(one) for one in as_list(foreign.take("loss_type"))] or ["sigmoid"]
    stated = [float(one) for one in as_list(foreign.take("loss_weights")) if isinstance(one, (int, float))]
    if len(stated) != len(words):
        stated = [1.0] * len(words)
    weights = dict[str, float]()
    for word, weight in zip(words, stated, strict=True):
        name = "sft" if word == "sft" else preference_loss(foreign, "loss_type", word)
        weights[name] = weights.get(name, 0.0) + weight
    foreign.put("sft_weight", weights.pop("sft", None))
    weights = weights or {"sigmoid": 0.0}  # nothing but the cross-entropy
    foreign.put("loss_type", list(weights) if len(weights) > 1 else next(iter(weights)))
    foreign.put("loss_weights", list(weights.values()) if set(weights.values()) != {1.0} else None)


def _objective(foreign: Foreign, kind: str) -> None:
    if kind == "dpo":
        _losses(foreign)
    if kind in ("dpo", "kto"):
        foreign.move({"beta": "beta", "precompute_ref_log_probs": "precompute_ref_log_probs"})
        foreign.ignore(["model_adapter_name", "ref_adapter_name", "disable_dropout"])
    if kind == "sft":
        if not foreign.flag("assistant_only_loss") and not foreign.flag("completion_only_loss"):
            foreign.put("data.mask_inputs", False)
            foreign.note(
                "assistant_only_loss",
                "of chats every token is trained on, as in TRL; to train on answers alone remove data.mask_inputs, and "
                "for rows of plain text write type: causal",
            )
        foreign.move({"label_smoothing_factor": "label_smoothing"})
    elif kind == "dpo":
        foreign.move({"label_smoothing": "label_smoothing", "rpo_alpha": "sft_weight", "ld_alpha": "ld_alpha"})
        foreign.move({"f_divergence_type": "f_divergence_type"})
        coefficient = foreign.take("f_alpha_divergence_coef")
        if coefficient is not None and foreign.recipe.get("f_divergence_type") == "alpha_divergence":
            foreign.put("f_alpha_divergence_coef", coefficient)
            foreign.note("f_alpha_divergence_coef", "as TRL 1 reads it; former versions read 1 minus it")
    elif kind == "kto":
        foreign.move({f"{one}desirable_weight": f"{one}desirable_weight" for one in ("", "un")})
    elif kind == "reward":
        foreign.move({"center_rewards_coefficient": "center_rewards_coefficient"})
        foreign.put("model.new_weights", ["score"])
    elif kind in ("grpo", "reinforce"):
        completions = foreign.number("per_device_train_batch_size") or 8
        migrate_policy(foreign, completions=completions, steps=foreign.number("gradient_accumulation_steps"))
