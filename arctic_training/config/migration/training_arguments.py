"""The keys of transformers' ``TrainingArguments``, which TRL and LLaMA-Factory have, and in part axolotl."""

import json
import math
from collections.abc import Mapping

from arctic_training.config.migration.evaluations import migrate_monitoring
from arctic_training.config.migration.foreign import Foreign, as_list, integer
from arctic_training.registry import names

_OPTIMIZERS = {
    **dict.fromkeys(["adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"], "adamw"),
    **{name: name for name in ["adafactor", "sgd", "adagrad", "rmsprop", "lion", "muon"]},
}
"""Optimizers with the same algorithm."""
_BITS = ("8bit", "4bit", "32bit", "paged")
_SCHEDULES = (
    "linear cosine cosine_with_restarts polynomial constant constant_with_warmup inverse_sqrt cosine_with_min_lr "
    "warmup_stable_decay"
)
_OWN_KEYS = (
    "optimizer scheduler bf16 fp16 amp train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps "
    "gradient_clipping steps_per_print"
)
"""Keys of a DeepSpeed configuration that the recipe has under other names."""
_WITHOUT_EFFECT = (
    "do_train do_eval overwrite_output_dir ddp_timeout ddp_find_unused_parameters remove_unused_columns tf32 "
    "logging_strategy logging_first_step log_level disable_tqdm gradient_checkpointing_kwargs plot_loss "
    "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataloader_persistent_workers "
    "per_device_eval_batch_size average_tokens_across_devices include_num_input_tokens_seen logging_dir "
    "hub_model_id hub_strategy hub_private_repo local_rank torch_empty_cache_steps"
)


def migrate_training_arguments(
    foreign: Foreign, *, learning_rate: float = 5e-5, patience: str = "early_stopping_patience"
) -> None:
    """Carries over the training arguments; ``learning_rate`` is that of a configuration without one, and ``patience``
    the key of early stopping, which is none of them."""
    _amounts(foreign)
    migrate_optimizer(foreign, foreign.take("optim"), foreign.number("learning_rate") or learning_rate)
    migrate_schedule(foreign, foreign.take("lr_scheduler_type"), foreign.take("lr_scheduler_kwargs"))
    foreign.move({"seed": "seed", "data_seed": "data.seed", "output_dir": "output_dir"})
    foreign.move({"torch_compile": "model.compile", "gradient_checkpointing": "model.activation_checkpointing"})
    foreign.put("train_log_iter_interval", steps_of(foreign, "logging_steps"))
    _evaluation(foreign)
    migrate_monitoring(foreign, patience)
    strategy = str(foreign.take("save_strategy") or "steps").lower()
    migrate_saves(foreign, strategy, steps_of(foreign, "save_steps") or 500)
    _trackers(foreign)
    migrate_sharding(foreign)
    if foreign.flag("push_to_hub"):
        foreign.note("push_to_hub", "a run does not upload its model; export it afterwards")
    foreign.ignore(_WITHOUT_EFFECT.split())


def migrate_optimizer(foreign: Foreign, name: object, learning_rate: float) -> None:
    """Carries over the optimizer ``name``, and the keys that those of the Adam family have."""
    word = str(name or "adamw_torch").lower()
    kind = _OPTIMIZERS.get(word, "")
    if not kind and any(bits in word for bits in _BITS):
        kind = next((ours for ours in ("lion", "rmsprop", "adamw") if ours in word), "adamw")
        foreign.note(word, f"{kind} with states of 32 bits stands for it: the same algorithm, with more memory")
    elif not kind:
        kind = "adamw"
        foreign.note(word, "there is no such optimizer; adamw stands for it")
    foreign.put("optimizer.type", kind)
    foreign.put("optimizer.lr", learning_rate)
    foreign.put("optimizer.weight_decay", foreign.number("weight_decay") or 0.0)
    betas = [foreign.number("adam_beta1"), foreign.number("adam_beta2")]
    if kind == "adamw" and any(betas):
        foreign.put("optimizer.betas", [one or default for one, default in zip(betas, (0.9, 0.999), strict=True)])
    if kind == "adamw":
        foreign.put("optimizer.eps", foreign.number("adam_epsilon"))
    foreign.put("max_grad_norm", foreign.number("max_grad_norm"))


def migrate_schedule(foreign: Foreign, name: object, kwargs: object) -> None:
    """Carries over the schedule ``name``, linear by default, and its warm-up: none by default."""
    word = str(name or "linear")
    if word not in _SCHEDULES.split():
        foreign.note(word, "there is no such schedule; cosine stands for it")
        word = "cosine"
    foreign.put("scheduler.name", word)
    steps, ratio = foreign.number("warmup_steps"), foreign.number("warmup_ratio")
    if steps is not None and 0 < steps < 1:  # of newer versions, a share
        steps, ratio = None, steps
    if word != "constant":
        foreign.put("scheduler.warmup_steps", integer(steps) or None)
        foreign.put("scheduler.warmup_ratio", None if steps else ratio or 0.0)
    if isinstance(kwargs, Mapping) and kwargs and not word.startswith("constant"):
        foreign.put("scheduler.scheduler_specific_kwargs", dict(kwargs))


def dtype_of(foreign: Foreign, default: str = "fp32") -> str:
    """Returns the dtype that the keys for mixed precision ask for."""
    bf16, fp16 = foreign.take("bf16", "pure_bf16"), foreign.take("fp16", "float16")
    if bf16 in (True, "auto", "full"):
        return "bf16"
    return "fp16" if fp16 is True else default


def _amounts(foreign: Foreign) -> None:
    foreign.put("micro_batch_size", integer(foreign.number("per_device_train_batch_size")) or 8)
    foreign.move({"gradient_accumulation_steps": "gradient_accumulation_steps"})
    steps, epochs = foreign.number("max_steps"), foreign.number("num_train_epochs")
    if steps is not None and steps > 0:
        foreign.put("train_iters", int(steps))
        return
    epochs = 3.0 if epochs is None else epochs
    if epochs != int(epochs):
        foreign.note("num_train_epochs", f"{epochs:g}: epochs are whole numbers; give train_iters for a part of one")
    foreign.put("epochs", max(1, math.ceil(epochs)))


def _evaluation(foreign: Foreign) -> None:
    strategy = str(foreign.take("eval_strategy", "evaluation_strategy") or "no").lower()
    steps = steps_of(foreign, "eval_steps") or steps_of(foreign, "logging_steps") or 500
    if not has_evaluation(foreign) or strategy in ("no", "false"):
        return
    foreign.put("evaluate_last", True)
    if strategy == "steps":
        foreign.put("eval_interval", steps)
    else:
        foreign.note("eval_strategy", "epoch: the recipe evaluates at the end; for more give eval_interval, in steps")


def has_evaluation(foreign: Foreign) -> bool:
    """Returns whether the recipe has data to evaluate on so far."""
    data = foreign.recipe.get("data")
    return isinstance(data, dict) and bool({"eval_sources", "train_eval_split"} & data.keys())


def note_resume(foreign: Foreign) -> None:
    """Notes that a run does not continue from a checkpoint that the configuration names."""
    if foreign.take("resume_from_checkpoint") not in (None, False, ""):
        foreign.note("resume_from_checkpoint", "a checkpoint of another trainer cannot be resumed from")


def migrate_saves(foreign: Foreign, strategy: str, steps: int) -> None:
    """Carries over when checkpoints are saved: by ``steps``, by ``epoch``, the ``best``, or at the end alone."""
    limit, only_model = integer(foreign.number("save_total_limit")), foreign.flag("save_only_model")
    when: dict[str, object] = {}
    if strategy == "steps":
        when = {"save_every_n_steps": steps}
    elif strategy == "epoch":
        when = {"save_every_n_epochs": 1}
    elif strategy == "best" and "eval_interval" in foreign.recipe:
        when, limit = {"save_every_n_steps": foreign.recipe["eval_interval"], "keep_best": 1}, limit or 1
    elif strategy == "best":
        foreign.note("save_strategy", "best: give eval_interval, and save_every_n_steps with keep_best: 1")
    kept: dict[str, object] = {"keep_last": limit} if limit and when else {}
    model: dict[str, object] = {"type": "huggingface", "save_end_of_training": True}
    if only_model or not when:
        foreign.put("checkpoint", [{**model, **when, **kept}])
    else:
        foreign.put("checkpoint", [{"type": "deepspeed", "auto_resume": True, **when, **kept}, model])
    note_resume(foreign)


def _trackers(foreign: Foreign) -> None:
    run_name = foreign.take("run_name")
    trackers = [str(one) for one in as_list(foreign.take("report_to")) if one not in ("none", "all", "no")]
    if "wandb" in trackers:
        foreign.put("wandb", {"enable": True, **({"name": str(run_name)} if run_name else {})})
        foreign.put("wandb.project", foreign.take("wandb_project"))
    known = [one for one in trackers if one in names("tracker") and one != "wandb"]
    foreign.put("trackers", known or None)
    if missing := [one for one in trackers if one not in (*known, "wandb")]:
        foreign.note("report_to", f"{', '.join(missing)}: there is no such tracker; metrics are in metrics.jsonl")


def migrate_sharding(foreign: Foreign) -> None:
    """Carries over a configuration of DeepSpeed, a mapping or a file, and the stage that stands for FSDP."""
    block = foreign.take("deepspeed")
    if isinstance(block, str):
        file = next((one for one in (foreign.folder / block, foreign.folder.cwd() / block) if one.is_file()), None)
        try:
            block = json.loads(file.read_text(encoding="utf-8")) if file is not None else block
        except (OSError, ValueError):
            foreign.note("deepspeed", f"{block}: cannot be read")
    if isinstance(block, str):
        stage = next((number for number in (3, 2, 1) if f"z{number}" in block or f"zero{number}" in block), None)
        what = f"stage {stage} by its name" if stage else "the default stage"
        foreign.note("deepspeed", f"{block}: not found beside the file; the recipe has {what}")
        block = {"zero_optimization": zero_section(stage, "offload" in block)} if stage else None
    if isinstance(block, Mapping):
        for key, value in block.items():
            if key not in _OWN_KEYS.split():
                foreign.put(f"deepspeed.{key}", value)
    elif foreign.take("fsdp", "fsdp_config"):
        config = foreign.section("fsdp_config")
        offloads = config.flag("fsdp_offload_params", "offload_params") or "offload" in str(foreign.take("fsdp"))
        foreign.put("deepspeed.zero_optimization", zero_section(3, offloads))
        foreign.note("fsdp", "ZeRO stage 3 shards the same")
        config.ignore(config.values)
    foreign.ignore(["fsdp_version", "fsdp_config", "fsdp"])


def zero_section(stage: int, offloads: bool) -> dict[str, object]:
    """Returns the section of a ZeRO stage; it ``offloads`` to the memory of the CPU what the stage can."""
    parts = ("offload_optimizer", "offload_param") if stage == 3 else ("offload_optimizer",)
    return {"stage": stage, **({part: {"device": "cpu"} for part in parts} if offloads else {})}


def steps_of(foreign: Foreign, key: str) -> int | None:
    """Returns a number of steps; None for a share of the run, with a note."""
    value = foreign.number(key)
    if value is not None and 0 < value < 1:
        foreign.note(key, f"{value:g} of the run: give a number of steps")
        return None
    return integer(value) if value else None
