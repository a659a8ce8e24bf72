"""Generates completions of prompts with a model, or with the engine of one at any ZeRO stage."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from arctic_training.distributed.heartbeat import record_heartbeat
from arctic_training.errors.types import InputError
from arctic_training.generation.prompts import pad_prompts
from arctic_training.generation.sampling import InverseTransformSampler, SamplingParams
from arctic_training.generation.special_tokens import find_eos_token_ids, get_pad_token_id


@torch.no_grad()
def generate(
    engine: Any,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    tokenizer: Any,
    eos_token_ids: Sequence[int] | None = None,
    uniforms: Tensor | None = None,
    model_defaults: bool = False,
    log_probs: list[Tensor] | None = None,
) -> list[list[int]]:
    """Returns the token ids of a completion of each prompt, with the end token if it has one.

    ``engine`` is an engine or a model; the model stays in the mode that it is in. At ZeRO stage 3 all ranks must call
    it. ``eos_token_ids`` end a completion; if they are left out, those of tokenizer and model. ``uniforms`` is
    ``[prompts, max_new_tokens]`` in [0, 1), a random number for each token that may be sampled; if it is left out, they
    are drawn from torch's default generator. With ``model_defaults`` the settings in the model's generation config,
    such as a repetition penalty, are used. The log-probabilities of the sampled tokens, ``[prompts]`` for each
    position, are appended to ``log_probs``.
    """
    record_heartbeat("generate")
    module = getattr(engine, "module", engine)
    device = engine.device if hasattr(engine, "device") else module.device
    ends = find_eos_token_ids(tokenizer, module) if eos_token_ids is None else list(eos_token_ids)
    pad_token_id = get_pad_token_id(tokenizer)
    rows, mask, start = pad_prompts(prompts, pad_token_id, module)
    # transformers' own sampling would draw from the global generator, in an order that depends on the batch
    arguments: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if params.temperature:
        if uniforms is None:
            uniforms = torch.rand(len(prompts), params.max_new_tokens, dtype=torch.float64)
        sampler = InverseTransformSampler(uniforms.to(device), start, log_probs)
        arguments |= {"logits_processor": [*params.logits_processors(), sampler], "num_beams": 1}
    if params.stop_strings:
        arguments |= {"stop_strings": list(params.stop_strings), "tokenizer": tokenizer}
    if getattr(module.config, "output_router_logits", False):
        # transformers would balance the experts over the tokens of one step by the mask of all, and fail
        arguments["output_router_logits"] = False
    with _generation_config(module, ends, pad_token_id, model_defaults):
        out = module.generate(
            input_ids=rows.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=params.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=pad_token_id,
            # at ZeRO stage 3 every rank must run the model as often as the one with the longest completion
            synced_gpus=bool(getattr(engine, "zero_optimization_partition_weights", bool)()),
            **arguments,
        )
    return [_until_end(completion, frozenset(ends)) for completion in out[:, start:].tolist()]


def require_generate(engine: Any, caller: str) -> Any:
    """Returns the model of ``engine``. Raises `InputError`, which begins with ``caller``, when it cannot generate."""
    if not hasattr(engine.module, "generate"):
        raise InputError(f"{caller} needs a model that generates; {type(engine.module).__name__} does not")
    return engine.module


def _until_end(completion: list[int], eos_token_ids: frozenset[int]) -> list[int]:
    length = next((n for n, token in enumerate(completion, 1) if token in eos_token_ids), len(completion))
    return completion[:length]


@contextmanager
def _generation_config(module: Any, ends: list[int], pad_token_id: int, model_defaults: bool) -> Iterator[None]:
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
