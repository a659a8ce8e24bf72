"""The batches of a window with completions of the model's own in place of those of the data."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from arctic_training.data.batching.collate import pad
from arctic_training.data.batching.noise import uniform
from arctic_training.data.factories.model_facts import context_length
from arctic_training.distributed import collectives, process_group
from arctic_training.generation.generate import generate
from arctic_training.generation.prompts import Prompt
from arctic_training.generation.sampling import SamplingParams
from arctic_training.generation.special_tokens import get_pad_token_id
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.trainer.trainer import Trainer
from arctic_training.trainer.window import set_num_items_in_batch, to_device

Tokens = npt.NDArray[np.int32]
"""Token ids, or labels, of a row."""

_CHOICE, _COMPLETIONS = range(2)
"""Streams of random numbers: for the choice of windows, and for the tokens of completions."""


def window_is_chosen(trainer: Trainer, share: float) -> bool:
    """Returns whether the current window is one of a ``share`` (0 to 1) of all, by its position in the data."""
    key = torch.tensor([_key(trainer, trainer.progress.sample_index)])
    return float(uniform(key, 1, seed=trainer.config.seed, stream=_CHOICE)) < share


def use_own_completions(trainer: Trainer, eos_token_ids: Sequence[int], max_new_tokens: int) -> None:
    """Replaces the batches of the current window: the last answer of each row by a completion that the model samples.

    The batches are padded rows, ``[B, T]``; ``num_items_in_batch`` counts their labels anew. A row whose prompt leaves
    no room for ``max_new_tokens`` within ``data.max_length`` stays as it is. A completion is a function of weights,
    seed and position of its row, whatever the split of the global batch, except where rounding decides between two
    tokens. All ranks call it together.
    """
    window, loader, data = trainer.window, trainer.train_loader, trainer.config.data
    longest = data.max_length or context_length(trainer)
    assert loader is not None
    samples: list[dict[str, Tokens]] = []
    prompts: dict[int, list[int]] = {}
    keys: list[int] = []
    for index, batch in enumerate(window.batches):
        positions = loader.rank_indices(trainer.progress.sample_index + index * loader.stride)
        for row, sample in enumerate(_samples(batch)):
            if (sample["labels"] != IGNORE_INDEX).any():  # else it only fills the batch
                prompt = Prompt.from_sample(sample, "on_policy_share").prompt_ids
                if longest is None or len(prompt) + max_new_tokens <= longest:
                    prompts[len(samples)] = prompt
                    keys.append(_key(trainer, positions.start + row))
            samples.append(sample)
    # at ZeRO stage 3 all ranks must generate
    numbers = torch.tensor(keys or [0], device=trainer.device)
    completions = generate(
        trainer.model,
        list(prompts.values()) or [samples[0]["input_ids"][:1].tolist()],
        SamplingParams(max_new_tokens),
        tokenizer=trainer.tokenizer,
        eos_token_ids=eos_token_ids,
        uniforms=uniform(numbers, max_new_tokens, seed=trainer.config.seed, stream=_COMPLETIONS),
    ).token_ids
    for n, (prompt, completion) in zip(prompts, zip(prompts.values(), completions, strict=False), strict=True):
        ids = np.array([*prompt, *completion], np.int32)
        samples[n] = {"input_ids": ids, "labels": np.where(np.arange(len(ids)) < len(prompt), IGNORE_INDEX, ids)}
    targets = torch.tensor([sum(int((one["labels"][1:] != IGNORE_INDEX).sum()) for one in samples)])
    total = int(collectives.all_reduce(targets))
    window.targets = total // trainer.config.mesh.model  # ranks that divide a model have the same samples
    share = max(total, 1) / (window.size * process_group.world_size())
    first, pad_token = 0, get_pad_token_id(trainer.tokenizer)
    for index, batch in enumerate(window.batches):
        rows = samples[first : first + len(batch["labels"])]
        first += len(rows)
        own = pad(rows, pad_token=pad_token, multiple=data.div_length or 8, positions=longest)
        window.batches[index] = set_num_items_in_batch(to_device(own, trainer.device), share)


def _samples(batch: Mapping[str, Tensor]) -> list[dict[str, Tokens]]:
    """Returns the ids and labels of each row, without padding."""
    lengths = batch["attention_mask"].sum(1).tolist()
    ids, labels = (batch[name].cpu().to(torch.int32).numpy() for name in ("input_ids", "labels"))
    return [{"input_ids": ids[n, :length], "labels": labels[n, :length]} for n, length in enumerate(lengths)]


def _key(trainer: Trainer, row: int) -> int:
    return (trainer.progress.epoch << 40) + row
