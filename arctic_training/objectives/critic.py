"""The critic of a policy: its values of the tokens of completions, and the check that they foresee nothing."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from arctic_training.distributed.sequence_parallel import gather_target_values
from arctic_training.engine.engine import Engine
from arctic_training.errors.types import ModelError
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.model.causal_lm import causal_model, embedding_rows, model_inputs
from arctic_training.model.checks.causality import sees_ahead
from arctic_training.state import eval_mode
from arctic_training.trainer.role import Role
from arctic_training.trainer.window import to_device

CRITIC = Role(
    "critic",
    tasks=("token_classification", "seq2seq_token_classification"),
    num_labels=1,
    default_to="model",
    same_vocabulary=True,
    steps_per_update_key="steps_per_window",
    description="The critic, which has one number for every token.",
)
"""The role of the model that says what a policy's tokens are worth; of an encoder-decoder it is one too."""


def token_values(critic: Engine, inputs: Mapping[str, Any]) -> Tensor:
    """Returns the critic's value of the state in which each token of a completion is chosen: float32 ``[tokens]``.

    ``inputs`` are those of a rollout. Where processes share sequences, the values are those of all of their parts.
    """
    values: Tensor = critic(**model_inputs(critic, inputs)).logits[..., 0]
    next_labels = inputs.get("shift_labels")
    if next_labels is None:
        next_labels = nn.functional.pad(inputs["labels"], (0, 1), value=IGNORE_INDEX)[:, 1:]
    return gather_target_values(values[next_labels != IGNORE_INDEX].float(), inputs)


@torch.no_grad()
def check_critic(trainer: Any) -> None:
    """Raises `ModelError` for a critic whose value of a token depends on that token or a later one.

    So it is in models that attend both ways: their advantages would say what a policy did, not what it should do.
    ``trainer`` is a `RolloutTrainer` with the role `CRITIC`; all ranks must call it.
    """
    critic = trainer.engines["critic"]
    model = causal_model(critic)
    first, second, third = (token % (embedding_rows(model) or 8) for token in (5, 6, 7))

    def values(n: int) -> Tensor:
        row = to_device(trainer.model_inputs([[3]], [[first, second, (second, third)[n]]]), trainer.device)
        return token_values(critic, row).to(next(model.parameters()).dtype)

    with eval_mode([critic.module]):
        foresees = sees_ahead(model, values)
    if foresees:
        raise ModelError(
            f"critic: in {type(model).__name__} the value of a token depends on tokens after it, since it attends both "
            "ways; give a model whose attention is causal"
        )
