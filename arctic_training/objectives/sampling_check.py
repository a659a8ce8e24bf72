"""The check that the tokens which a policy samples have the probabilities that it is trained on."""

from typing import Any

import torch

from arctic_training.data.batching.noise import uniform
from arctic_training.errors.types import ModelError
from arctic_training.generation.generate import generate
from arctic_training.generation.sampling import SamplingParams
from arctic_training.state import eval_mode
from arctic_training.trainer.window import to_device

_NUM_TOKENS = 3


@torch.no_grad()
def check_sampled_log_probs(trainer: Any, prompts: list[list[int]]) -> None:
    """Raises `ModelError` where the log-probability of a sampled token is not the one that is trained on.

    So it is in models that count padding among the positions, or take it into a state. ``trainer`` is a
    `PolicyTrainer`, and ``prompts`` are token ids; all ranks must call it.
    """
    config, module = trainer.config, trainer.model.module
    if config.sequence_parallel_size > 1 or not trainer.has_weights:
        return  # only models for which padding makes no difference have shared attention
    shortest_and_longest = [min(prompts, key=len), max(prompts, key=len)]
    with eval_mode([module]):
        completions = generate(
            trainer.model,
            shortest_and_longest,
            SamplingParams(_NUM_TOKENS, config.temperature),
            tokenizer=trainer.tokenizer,
            eos_token_ids=trainer.eos_token_ids,
            uniforms=uniform(torch.arange(2, device=trainer.device), _NUM_TOKENS, seed=config.seed),
            log_probs=True,
        )
        inputs = to_device(trainer.model_inputs(shortest_and_longest, completions.token_ids), trainer.device)
        trained = trainer.log_probs(trainer.model, inputs).float()
    sampled = torch.cat(completions.log_probs or []).float()
    # in 16 bits both are rounded
    differs = (sampled - trained).abs() > (0.02 if config.model.dtype == "fp32" else 0.5)
    if differs.any():
        first = int(differs.nonzero()[0])
        raise ModelError(
            f"model: {type(module).__name__} samples a token of log-probability {trained[first]:.3f} with one of "
            f"{sampled[first]:.3f} where prompts are padded: it would not learn from its own completions"
        )
