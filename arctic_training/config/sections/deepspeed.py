"""Checks the ``deepspeed`` section: keys that DeepSpeed knows, and that do not contradict the rest of the recipe."""

from collections.abc import Collection, Mapping
from typing import Any

from arctic_training.config.checks.problems import Problem, problems_of_keys, shown
from arctic_training.config.sections.types import number
from arctic_training.registry import did_you_mean

_KNOWN_WORDS = (
    "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping bf16 bfloat16 fp16 "
    "zero_optimization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer data_types communication_data_type "
    "seq_parallel_communication_data_type prescale_gradients gradient_predivide_factor steps_per_print "
    "wall_clock_breakdown memory_breakdown dump_state flops_profiler comms_logger activation_checkpointing aio "
    "disable_allgather vocabulary_size compile timers log_level torch_autocast dataloader_drop_last "
    "use_data_before_expert_parallelism sequence_parallel_size"
)
_KNOWN = frozenset(_KNOWN_WORDS.split())

_NOT_SUPPORTED = (
    "amp autotuning compression_training curriculum_learning data_efficiency dynamic_batching eigenvalue "
    "expert_parallel graph_harvesting hybrid_engine pipeline progressive_layer_drop quantize_training "
    "sparse_attention sparse_gradients weight_quantization random_ltd data_sampling"
)
_REFUSED = {
    "optimizer": "set it in the recipe's `optimizer` section",
    "scheduler": "set it in the recipe's `scheduler` section",
    "managed_gradient_accumulation": "the trainer itself sets the end of every accumulation window",
    "gradient_allreduce_op": "gradients are averaged; the trainer's token count relies on it",
    "checkpoint": "set it in the recipe's `checkpoint` section",
    "nebula": "set it in the recipe's `checkpoint` section",
    "datastates_ckpt": "set it in the recipe's `checkpoint` section",
    "tensorboard": "metrics are in the run folder's metrics.jsonl",
    "wandb": "set it in the recipe's `wandb` section",
    "comet": "metrics are in the run folder's metrics.jsonl",
    "csv_monitor": "metrics are in the run folder's metrics.jsonl",
    "elasticity": "it would change the batch sizes of the recipe",
    "tensor_parallel": "set it in the recipe's `mesh` section, by `model`",
    "disable_python_gc": "garbage collection is kept out of the step without it",
} | dict.fromkeys(_NOT_SUPPORTED.split(), "not supported here")

BATCH_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "sequence_parallel_size",
)
PRECISION_KEYS = ("bf16", "bfloat16", "fp16")
_TRAINED_WORDS = (
    "gradient_clipping prescale_gradients gradient_predivide_factor communication_data_type data_types torch_autocast"
)
TRAINED_KEYS = frozenset([*_TRAINED_WORDS.split(), *PRECISION_KEYS])
"""Keys that change the trained weights; the others change placement and speed."""

_ZERO_WORDS = (
    "stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce allgather_partitions "
    "allgather_bucket_size overlap_comm compute_grad_norm load_from_fp32_weights elastic_checkpoint offload_param "
    "offload_optimizer zenflow sub_group_size cpu_offload_param cpu_offload_use_pin_memory cpu_offload "
    "stage3_prefetch_bucket_size stage3_param_persistence_threshold stage3_model_persistence_threshold "
    "stage3_max_live_parameters stage3_max_reuse_distance stage3_gather_16bit_weights_on_model_save "
    "stage3_module_granularity_threshold stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential "
    "stage3_gather_fp16_weights_on_model_save ignore_unused_parameters legacy_stage1 round_robin_gradients "
    "parameter_alignment zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights "
    "zero_quantized_gradients memory_efficient_linear pipeline_loading_checkpoint override_module_apply "
    "log_trace_cache_warnings enable_sanity_checks save_muon_momentum_buffer_in_memory leaf_module"
)
_ZERO = frozenset(_ZERO_WORDS.split())
_COUNTS = ("_size", "_threshold", "_parameters", "_distance")
"""Ends of the keys whose value is a number of elements."""


def without_auto(block: Mapping[str, object]) -> dict[str, Any]:
    """Returns ``block`` with human numbers read, at any depth, and without the keys that are ``auto``."""
    return {key: _read(one) for key, one in block.items() if one != "auto"}


def _read(value: object) -> object:
    if isinstance(value, Mapping):
        return without_auto(value)
    if isinstance(value, list):
        return [_read(one) for one in value]
    if isinstance(value, str) and (read := number(value)) is not None:
        return read
    return value


def deepspeed_problems(
    block: Mapping[str, Any],
    *,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    sequence_parallel_size: int = 1,
    model_parallel_size: int = 1,
    dtype: str,
    data_world: int | None = None,
    highest_stage: int = 3,
    max_grad_norm: float | None = None,
    gradient_clip_value: float | None = None,
) -> list[Problem]:
    """Returns every problem of the section, their paths inside it, given the rest of the recipe.

    ``dtype`` is the recipe's bf16, fp16 or fp32; ``data_world`` the number of data-parallel processes, once it is
    known; ``highest_stage`` the highest ZeRO stage at which the optimizer works; ``max_grad_norm`` the recipe's own key
    of what is ``gradient_clipping`` here, and ``gradient_clip_value`` the one that takes its place;
    ``model_parallel_size`` that of the mesh.
    """
    block = without_auto(block)
    problems: list[Problem] = []
    for key in block:
        if key in _REFUSED:
            problems.append(Problem((key,), f"does not belong here: {_REFUSED[key]}"))
        elif key not in _KNOWN:
            problems.append(Problem((key,), _unknown(key, _KNOWN)))
    sizes = {
        "train_micro_batch_size_per_gpu": ("micro_batch_size", micro_batch_size),
        "gradient_accumulation_steps": ("gradient_accumulation_steps", gradient_accumulation_steps),
        "sequence_parallel_size": ("sequence_parallel_size", sequence_parallel_size),
    }
    problems += _batch_problems(block, sizes, data_world)
    problems += _precision_problems(block, dtype)
    zero = block.get("zero_optimization", {})
    problems += _zero_problems(zero, highest_stage)
    if model_parallel_size > 1 and isinstance(zero, Mapping):
        problems += _divided_problems(zero)
    clipping = block.get("gradient_clipping", 1.0)
    text = ""
    if not _is_number(clipping) or clipping < 0:
        text = f"{shown(clipping)} should be a number of at least 0 (0: no clipping)"
    elif max_grad_norm is not None and "gradient_clipping" in block and clipping != max_grad_norm:
        text = f"{shown(clipping)} contradicts the recipe's max_grad_norm: {max_grad_norm:g}; remove it"
    elif gradient_clip_value is not None and block.get("gradient_clipping"):
        text = f"{shown(clipping)}, and the recipe's gradient_clip_value clips by value; give one of them"
    return problems + problems_of_keys({"gradient_clipping": text})


def _batch_problems(block: Mapping[str, Any], sizes: Mapping[str, tuple[str, int]], world: int | None) -> list[Problem]:
    problems = [
        Problem((key,), f"{block[key]} contradicts the recipe's {name}: {value}; remove it, or write {value}")
        for key, (name, value) in sizes.items()
        if key in block and block[key] != value
    ]
    if "train_batch_size" in block:
        micro, steps = sizes["train_micro_batch_size_per_gpu"][1], sizes["gradient_accumulation_steps"][1]
        total, product = block["train_batch_size"], f"micro_batch_size {micro} x gradient_accumulation_steps {steps}"
        text = ""
        if world is not None and total != micro * steps * world:
            text = f"{total} contradicts {product} x {world} data-parallel processes = {micro * steps * world}"
        elif world is None and (not isinstance(total, int) or total <= 0 or total % (micro * steps)):
            text = f"{total} contradicts {product}: expected a multiple of {micro * steps}"
        problems += [Problem(("train_batch_size",), f"{text}; remove it")] if text else []
    return problems


def _precision_problems(block: Mapping[str, Any], dtype: str) -> list[Problem]:
    problems: list[Problem] = []
    enabled = {}
    for key in PRECISION_KEYS:
        section = block.get(key, {})
        if not isinstance(section, Mapping):
            problems.append(Problem((key,), f"{shown(section)} should be a mapping, such as {{enabled: true}}"))
            continue
        enabled[key] = section.get("enabled")
    if (enabled.get("bf16") or enabled.get("bfloat16")) and enabled.get("fp16"):
        return [*problems, Problem(("fp16", "enabled"), "bf16 and fp16 cannot both be enabled")]
    for key, value in enabled.items():
        means = "bf16" if key == "bfloat16" else key
        if (value is True and means != dtype) or (value is False and means == dtype):
            text = f"contradicts model.dtype {dtype}; write model.dtype: {means if value else 'fp32'}"
            problems.append(Problem((key, "enabled"), text))
    return problems


def _zero_problems(zero: object, highest: int) -> list[Problem]:
    def problem(text: str, *keys: str) -> Problem:
        return Problem(("zero_optimization", *keys), text)

    if not isinstance(zero, Mapping):
        return [problem(f"{shown(zero)} should be a mapping, such as {{stage: 2}}")]
    problems: list[Problem] = []
    for key in zero:
        if key not in _ZERO:
            problems.append(problem(_unknown(key, _ZERO), key))
        elif key.endswith(_COUNTS) and not (_is_number(zero[key]) and zero[key] >= 0):
            problems.append(problem(f"{shown(zero[key])} should be a number of at least 0", key))
    stage = zero.get("stage")
    if stage is not None and (isinstance(stage, bool) or stage not in (0, 1, 2, 3)):
        return [*problems, problem(f"{shown(stage)} should be 0, 1, 2 or 3", "stage")]
    if stage is not None and stage > highest:
        text = f"{stage}, and the recipe's optimizer works up to ZeRO stage {highest} with its model.dtype"
        problems.append(problem(text, "stage"))
    gathers, bucket = stage not in (0, 3), zero.get("allgather_bucket_size", 0)
    if gathers and isinstance(bucket, int) and bucket % 2:
        text = f"{bucket} should be even, since what is gathered begins at every second element"
        problems.append(problem(text, "allgather_bucket_size"))
    for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
        section = zero.get(key, {})
        if not isinstance(section, Mapping):
            problems.append(problem(f"{shown(section)} should be a mapping, such as {{device: cpu}}", key))
            continue
        device = section.get("device", "none")
        if device not in ("none", "cpu", "nvme"):
            problems.append(problem(f"{shown(device)} should be none, cpu or nvme", key, "device"))
        elif device == "nvme" and not section.get("nvme_path"):
            problems.append(problem("missing: offloading to nvme needs the folder to use", key, "nvme_path"))
        if device not in ("none", None) and stage is not None and stage < least:
            problems.append(problem(f"needs ZeRO stage {least} or above, and stage is {stage}", key))
    return problems


def _divided_problems(zero: Mapping[str, Any]) -> list[Problem]:
    """Returns the problems of ``zero_optimization`` where processes divide the weights of a model (``mesh.model``)."""
    problems: list[Problem] = []
    if (stage := zero.get("stage", 1)) in (0, 3):
        text = f"{stage}, and processes divide the weights of the model (mesh.model); write 1 or 2"
        problems.append(Problem(("zero_optimization", "stage"), text))
    for key in ("offload_param", "offload_optimizer", "zenflow"):
        section = zero.get(key)
        if section and not (isinstance(section, Mapping) and section.get("device") == "none"):
            text = "does not go with weights that processes divide (mesh.model); remove it"
            problems.append(Problem(("zero_optimization", key), text))
    return problems


def _unknown(key: str, known: Collection[str]) -> str:
    guess = did_you_mean(key, known)
    return f"unknown to DeepSpeed; {guess}" if guess else "unknown to DeepSpeed"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
