"""Generates completions of prompts with a model, or with the engine of one at any ZeRO stage."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from arctic_training.component import TrainerView
from arctic_training.display.activity import activity
from arctic_training.distributed import process_group
from arctic_training.distributed.heartbeat import record_heartbeat
from arctic_training.engine.config import zero_stage
from arctic_training.engine.engine import Engine
from arctic_training.engine.internals.parameters import is_partitioned_param
from arctic_training.engine.internals.steps import end_prefetch
from arctic_training.errors.types import InputError
from arctic_training.generation.completions import Completions
from arctic_training.generation.prompts import has_virtual_tokens, is_encoder_decoder, pad_prompts
from arctic_training.generation.sampling import InverseTransformSampler, SamplingParams
from arctic_training.generation.shared_prompts import prefill_shared_prompts
from arctic_training.generation.special_tokens import find_eos_token_ids, get_pad_token_id
from arctic_training.state import eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer


@torch.no_grad()
def generate(
    engine: "Engine | PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    eos_token_ids: Sequence[int] | None = None,
    uniforms: Tensor | None = None,
    batch_size: int = 0,
    model_defaults: bool = False,
    log_probs: bool = False,
    logits: bool = False,
    streamer: "BaseStreamer | None" = None,
) -> Completions:
    """Returns a completion of each prompt, which is a sequence of token ids.

    ``engine`` is an engine or a model of transformers, decoder-only or encoder-decoder, which is in evaluation mode
    meanwhile. At ZeRO stage 3 all ranks must call it with equally many prompts. ``eos_token_ids`` end a completion; if
    they are left out, those of tokenizer and model. ``uniforms`` is ``[prompts, max_new_tokens]`` in [0, 1), a random
    number for each token that may be sampled; if it is left out, they are drawn from torch's default generator.
    ``batch_size`` prompts are completed at once, those of similar length together; 0: all. With ``model_defaults`` the
    settings in the model's generation config, such as a repetition penalty, are used where ``params`` has none.
    ``log_probs`` and ``logits`` fill the fields of these names. A ``streamer`` of transformers receives the tokens of a
    single prompt as they are generated. Raises ValueError for what beam search has not: any of these three.
    """
    if params.num_beams > 1 and (log_probs or logits or streamer is not None):
        raise ValueError("beam search has no log_probs, logits or streamer, since its completions change as they grow")
    module: PreTrainedModel = getattr(engine, "module", engine)
    ends = find_eos_token_ids(tokenizer, module) if eos_token_ids is None else list(eos_token_ids)
    if params.temperature and uniforms is None:
        uniforms = torch.rand(len(prompts), params.max_new_tokens, dtype=torch.float64)
    batches = _batches([len(prompt) for prompt in prompts], batch_size, equal=has_virtual_tokens(module))
    options = _Options(params, tokenizer, ends, model_defaults, log_probs, logits, streamer)
    done: dict[int, _Completion] = {}
    with eval_mode([module]), activity("generating", len(prompts)) as generating:
        for rows in batches:
            generating.done = len(done)
            some = uniforms[rows] if params.temperature and uniforms is not None else None
            done |= zip(rows, _complete(engine, module, [prompts[n] for n in rows], some, options), strict=True)
    if (deepspeed := getattr(engine, "deepspeed", None)) is not None:
        end_prefetch(deepspeed)
    by_prompt = [done[n] for n in range(len(prompts))]
    return Completions(
        [one.token_ids for one in by_prompt],
        [one.finished for one in by_prompt],
        ends,
        params.stop_strings,
        [one.log_probs for one in by_prompt if one.log_probs is not None] if log_probs else None,
        [one.logits for one in by_prompt if one.logits is not None] if logits else None,
    )


def _batches(lengths: Sequence[int], size: int, *, equal: bool) -> list[list[int]]:
    """Returns the numbers of the prompts of each batch, of at most ``size`` (0: any number), and of one length if they
    must be ``equal``."""
    order = list(range(len(lengths)))
    if size or equal:
        order.sort(key=lambda n: lengths[n], reverse=True)  # less padding
    batches: list[list[int]] = []
    for n in order:
        last = batches[-1] if batches else []
        if not last or len(last) == size or (equal and lengths[last[0]] != lengths[n]):
            batches.append(last := [])
        last.append(n)
    return batches


def _is_partitioned(module: torch.nn.Module) -> bool:
    """Checks whether the weights of a model are partitioned over the ranks, as at ZeRO stage 3."""
    return any(map(is_partitioned_param, module.parameters()))


_OFF = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""Settings of transformers that a processor of ``params`` takes the place of, and the values that turn them off."""


def require_generate(trainer: TrainerView, caller: str) -> "PreTrainedModel":
    """Returns the model of ``trainer``. Raises `InputError`, which begins with ``caller``, when it cannot generate."""
    module = trainer.engines["model"].module
    if not hasattr(module, "generate"):
        raise InputError(f"{caller} needs a model that generates; {type(module).__name__} does not")
    if has_virtual_tokens(module) and zero_stage(trainer.config.deepspeed, process_group.world_size()) == 3:
        raise InputError(
            f"{caller}: with an adapter of virtual tokens, prompts of each length are completed by themselves, in "
            "which the ranks of ZeRO stage 3 differ; set deepspeed.zero_optimization.stage: 2"
        )
    return module


@dataclass(frozen=True)
class _Options:
    """The arguments of `generate` that are the same for every batch of prompts."""

    params: SamplingParams
    tokenizer: "PreTrainedTokenizerBase"
    eos_token_ids: list[int]
    model_defaults: bool
    log_probs: bool
    logits: bool
    streamer: "BaseStreamer | None"


class _Completion(NamedTuple):
    """One completion, with the fields of `Completions`."""

    token_ids: list[int]
    finished: bool
    log_probs: Tensor | None
    logits: Tensor | None


def _complete(
    engine: "Engine | PreTrainedModel",
    module: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor | None,
    options: _Options,
) -> list[_Completion]:
    """Returns a completion of each prompt, all generated at once; the most likely tokens without ``uniforms``."""
    record_heartbeat("generate")
    params, ends, tokenizer = options.params, options.eos_token_ids, options.tokenizer
    device = engine.device if hasattr(engine, "device") else module.device
    pad_token_id = get_pad_token_id(tokenizer)
    rows, mask, start = pad_prompts(prompts, pad_token_id, module)
    by_position: list[Tensor] | None = [] if options.log_probs else None
    # transformers' own sampling would draw from the global generator, in an order that depends on the batch
    arguments: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    padding = [] if is_encoder_decoder(module) else [start - len(prompt) for prompt in prompts]
    processors = params.logits_processors(padding)
    if uniforms is not None or options.log_probs:
        own = None if uniforms is None else uniforms.to(device)
        processors.append(InverseTransformSampler(own, start, by_position))
        arguments["num_beams"] = 1
    arguments["logits_processor"] = processors
    arguments |= {name: off for name, off in _OFF.items() if getattr(params, name) != off}
    if params.num_beams > 1:
        arguments["num_beams"] = params.num_beams
    if options.streamer is not None:
        arguments["streamer"] = options.streamer
    if params.stop_strings:
        arguments |= {"stop_strings": list(params.stop_strings), "tokenizer": tokenizer}
    if options.logits:
        arguments |= {"output_logits": True, "return_dict_in_generate": True}
    # at ZeRO stage 3 every rank must run the model as often as the one with the longest completion
    synced = _is_partitioned(module)
    # transformers would balance the experts over the tokens of one step by the mask of all, and fail
    routed = {"output_router_logits": False} if getattr(module.config, "output_router_logits", False) else {}
    rows, mask = rows.to(device), mask.to(device)
    with _generation_config(module, ends, pad_token_id, options.model_defaults):
        if not synced and params.num_beams == 1 and (cache := prefill_shared_prompts(module, rows, mask, **routed)):
            arguments["past_key_values"] = cache
        out = module.generate(
            input_ids=rows,
            attention_mask=mask,
            max_new_tokens=params.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=pad_token_id,
            synced_gpus=synced,
            **routed,
            **arguments,
        )
    logits = torch.stack(out.logits, 1) if options.logits else None
    chosen = torch.stack(by_position, 1) if by_position else None
    completions = []
    for n, row in enumerate((out.sequences if options.logits else out)[:, start:].tolist()):
        ids, finished = _until_end(row, options)
        parts = [None if values is None else values[n, : len(ids)] for values in (chosen, logits)]
        completions.append(_Completion(ids, finished, *parts))
    return completions


def _until_end(row: list[int], options: _Options) -> tuple[list[int], bool]:
    """Returns a completion without the padding behind its end, and whether it has an end."""
    ids = row[: next((n for n, token in enumerate(row, 1) if token in options.eos_token_ids), len(row))]
    if ids[-1] in options.eos_token_ids or not options.params.stop_strings:
        return ids, ids[-1] in options.eos_token_ids
    padding = get_pad_token_id(options.tokenizer)
    while len(ids) > 1 and ids[-1] == padding:
        ids.pop()
    text = options.tokenizer.decode(ids, skip_special_tokens=True)
    return ids, any(stop in text for stop in options.params.stop_strings)


@contextmanager
def _generation_config(
    module: "PreTrainedModel", ends: list[int], pad_token_id: int, model_defaults: bool
) -> Iterator[None]:
    """Replaces the model's generation config by one without settings, unless ``model_defaults``."""
    from transformers import GenerationConfig

    holders = [] if model_defaults else [part for part in module.modules() if "generation_config" in vars(part)]
    kept = [part.generation_config for part in holders]
    try:
        for part, config in zip(holders, kept, strict=True):
            start = getattr(config, "decoder_start_token_id", None)  # only an encoder-decoder has one
            part.generation_config = GenerationConfig(
                eos_token_id=ends, pad_token_id=pad_token_id, decoder_start_token_id=start
            )
        yield
    finally:
        for part, config in zip(holders, kept, strict=True):
            part.generation_config = config
