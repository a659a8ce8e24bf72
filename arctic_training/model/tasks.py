"""The tasks of models of transformers: the auto class that builds the model, and the labels of its head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from arctic_training.errors.types import ModelError
from arctic_training.model import seq2seq_token_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

TaskName = Literal[
    "causal_lm",
    "seq2seq_lm",
    "sequence_classification",
    "token_classification",
    "seq2seq_token_classification",
    "regression",
    "encoder",
]


@dataclass(frozen=True)
class Task:
    """A task of a model, by the class of transformers that computes it."""

    auto_class: str
    """The auto class of transformers that builds and loads the model, or one of this package."""
    noun: str
    """What such a model is called in messages."""
    peft_type: str
    """The ``task_type`` of PEFT."""
    has_labels: bool = False
    """Whether the head has an output for each label."""
    num_labels: int | None = None
    """How many outputs the head has, where the task decides it."""
    pools: bool = False
    """Whether the head computes one vector for a whole row, so that a row can hold one sample only."""

    def load_auto_class(self) -> type["_BaseAutoModelClass"]:
        """Returns the auto class."""
        import transformers

        if self.auto_class.endswith(seq2seq_token_classifier.SUFFIX):
            return seq2seq_token_classifier.auto_class()
        auto_class: type[_BaseAutoModelClass] = getattr(transformers, self.auto_class)
        return auto_class


TASKS: Mapping[TaskName, Task] = {
    "causal_lm": Task("AutoModelForCausalLM", "causal language model", "CAUSAL_LM"),
    "seq2seq_lm": Task("AutoModelForSeq2SeqLM", "sequence-to-sequence model", "SEQ_2_SEQ_LM"),
    "sequence_classification": Task(
        "AutoModelForSequenceClassification", "sequence classifier", "SEQ_CLS", has_labels=True, pools=True
    ),
    "token_classification": Task("AutoModelForTokenClassification", "token classifier", "TOKEN_CLS", has_labels=True),
    "seq2seq_token_classification": Task(
        "AutoModelForSeq2SeqTokenClassification", "sequence-to-sequence token classifier", "TOKEN_CLS", has_labels=True
    ),
    "regression": Task(
        "AutoModelForSequenceClassification", "regression model", "SEQ_CLS", has_labels=True, num_labels=1, pools=True
    ),
    "encoder": Task("AutoModel", "encoder", "FEATURE_EXTRACTION"),
}


def task_of(auto_class: type["_BaseAutoModelClass"]) -> Task | None:
    """Returns the task of an auto class of transformers, or None for another class."""
    name = getattr(auto_class, "__name__", "")
    return next((task for task in TASKS.values() if task.auto_class == name), None)


def task_of_config(config: "PreTrainedConfig") -> Task:
    """Returns the task of a saved model, by the class that its ``config`` names: that of a language model where it
    names none."""
    name = (config.architectures or [""])[0]
    if name.endswith("ForSequenceClassification"):
        return TASKS["sequence_classification"]
    if name.endswith(seq2seq_token_classifier.SUFFIX):
        return TASKS["seq2seq_token_classification"]
    if name.endswith("ForTokenClassification"):
        return TASKS["token_classification"]
    if name.endswith("Model") and not name.endswith(("LMHeadModel", "MTModel")):
        return TASKS["encoder"]
    return TASKS["seq2seq_lm" if config.is_encoder_decoder else "causal_lm"]


def set_labels(config: "PreTrainedConfig", labels: Sequence[str], num_labels: int | None) -> None:
    """Sets the labels of the head in the ``config`` of a model: by their names, or by their number."""
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    elif num_labels is not None:
        config.num_labels = num_labels


def require_labels(config: "PreTrainedConfig") -> None:
    """Raises `ModelError` for the ``config`` of a model without a classifier: transformers would give it two labels."""
    if label_names(config) or any("Classification" in name for name in config.architectures or ()):
        return
    raise ModelError(
        f"model.labels: give the names of the labels, or model.num_labels; the model is a "
        f"{(config.architectures or [type(config).__name__])[0]}, which has none"
    )


def label_names(config: "PreTrainedConfig") -> list[str]:
    """Returns the names of a model's labels by its ``config``; none where they are transformers' ``LABEL_0``, ..."""
    names = [str(name) for _, name in sorted((config.id2label or {}).items())]
    return [] if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names
