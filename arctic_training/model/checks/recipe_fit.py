"""Compares what the recipe asks of a model with what the architecture in its config can do."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from arctic_training.errors.types import ModelError
from arctic_training.model import attention
from arctic_training.model.huggingface_config import HFModelConfig
from arctic_training.model.tasks import TASKS, Task, require_labels
from arctic_training.model.transformers_internals import model_class_of
from arctic_training.model.transforms.peft import PeftTransform

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def check_task(config: "PreTrainedConfig", section: HFModelConfig, task: Task | None) -> None:
    """Compares the ``task`` of a model with its ``config`` and its ``section`` of the recipe.

    Raises `ModelError` for a classifier without labels, which would have two of transformers, and for the decoder of an
    encoder-decoder that nobody asked for: without the encoder it has learned something else.
    """
    is_named = section.labels or section.num_labels or {"id2label", "num_labels"} & section.hf_config_kwargs.keys()
    if TASKS[section.task].has_labels and not is_named:
        require_labels(config)
    if task is TASKS["causal_lm"] and "task" not in section.model_fields_set and config.is_encoder_decoder:
        name = type(config).__name__
        if model_class_of(task.load_auto_class(), config) is None:
            raise ModelError(f"{name} is of an encoder-decoder, which has no {task.noun}; give model.task: seq2seq_lm")
        raise ModelError(
            f"{name} is of an encoder-decoder, and its decoder alone would be trained; give "
            "model.task: seq2seq_lm, or causal_lm where that is meant"
        )


def check_packing(config: "PreTrainedConfig", adapter: PeftTransform | None, task: Task | None = None) -> None:
    """Compares packed rows with the task of the model, its layers and its adapter.

    Raises `ModelError` where samples in one row could not be kept apart.
    """
    if task is not None and task not in (TASKS["causal_lm"], TASKS["token_classification"]):
        why = "computes one vector for a row" if task.pools else "cannot be given several samples in one row"
        raise ModelError(
            f"data.pack_samples: {type(config).__name__}: a {task.noun} {why}; give pack_samples: false, or let the "
            "data factory's `packs` say that its rows are no packed ones"
        )
    if not attention.supports_packing(config):
        raise ModelError(
            f"data.pack_samples: layers of {type(config).__name__} carry a state from token to token, so that "
            "samples in one row would see each other; give pack_samples: false"
        )
    if adapter is not None and (begins := adapter.begins_in_row):
        raise ModelError(f"data.pack_samples: {begins}, not in every sample of it; give pack_samples: false")


def check_sequence_parallel(
    config: "PreTrainedConfig", implementation: str | None, size: int, adapter: PeftTransform | None
) -> None:
    """Compares sequence parallelism over ``size`` ranks with attention, heads and positions of the model.

    ``implementation`` is that of its attention. Raises `ModelError` where its numbers would be others than on one rank.
    """
    name, text = type(config).__name__, config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = {str(one.get("rope_type")) for one in [rope, *rope.values()] if isinstance(one, dict)}
    problem = ""
    if implementation != attention.NAME:
        problem = f"the attention of {name} is more than causal, or hidden from transformers; remove it"
    elif isinstance(heads, int) and heads % size:
        divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        problem = f"{size} processes cannot share the {heads} heads of {name}; these can: {divisors}"
    elif by_length := sorted(kinds & {"dynamic", "longrope"}):
        problem = f"the positions of {name} ({by_length[0]}) depend on the length of what a process sees; remove it"
    elif adapter is not None and (begins := adapter.begins_in_row):
        problem = f"{begins}, and a process has a part of it; remove it"
    if problem:
        raise ModelError(f"sequence_parallel_size: {problem}")


def check_pad_token(config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase | None") -> None:
    """Compares the pad token in the config of a model that computes one vector for a row with that of the rows.

    Many such models take the vector of the last token that is not padding, which they find by its id. Raises
    `ModelError` where it is another one, or none.
    """
    in_rows = getattr(tokenizer, "pad_token_id", None)
    in_config = getattr(config.get_text_config(), "pad_token_id", None)
    if in_config is None or in_rows != in_config:
        raise ModelError(
            f"the pad token of the model is {in_config}, and that of the tokenizer {in_rows}: padding would be taken "
            "for the end of a text; give tokenizer.pad_token"
        )


def check_new_weights_trained(model: "PeftModel", new: Sequence[str]) -> None:
    """Raises `ModelError` for weights of an adapted ``model`` that are ``new``, thus random, and not trained."""
    base = model.get_base_model()
    for one in new:
        modules = [module for name, module in base.named_modules() if name == one or name.endswith(f".{one}")]
        parameters = [parameter for module in modules for parameter in module.parameters()]
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            raise ModelError(
                f"model.peft_config: {one} is among model.new_weights, and nothing would train it; put it into "
                "modules_to_save"
            )
