"""Sequence to sequence: the target that belongs to a source, by an encoder-decoder or a decoder-only model."""

from typing import Any, ClassVar

from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.seq2seq import Seq2SeqDataFactory
from arctic_training.errors.types import ModelError
from arctic_training.generation.prompts import is_encoder_decoder
from arctic_training.model.huggingface_factory import HFModelFactory
from arctic_training.objectives.language_model import LanguageModelTrainer
from arctic_training.registry import lookup
from arctic_training.trainer.role import Role


class Seq2SeqTrainer(LanguageModelTrainer):
    """Trains on the target that belongs to a source.

    Minimises the mean cross-entropy of the targets' tokens over the window. An encoder-decoder (Sutskever et al. 2014,
    arXiv 1409.3215) reads the source with its encoder; a decoder-only model reads it before the target, and both
    causally.
    """

    name = "seq2seq"
    shares_sequences = False
    tensor_parallel = True
    data_factory_type: ClassVar[type[DataFactory[Any]]] = Seq2SeqDataFactory
    model_factory_type = (HFModelFactory,)  # type: ignore[assignment]  # Liger's kernels are of decoder-only models
    roles: ClassVar[tuple[Role, ...]] = (Role("model", tasks=("seq2seq_lm", "causal_lm")),)

    def check(self) -> None:
        """Raises `ModelError` for a model whose factory does not return its config, by which data are prepared."""
        super().check()
        module, factory = self.model.module, lookup("data_factory", self.config.data.type)
        expected = is_encoder_decoder(module)
        prepared: Any = factory(self, self.config.data)  # type: ignore[call-arg]
        if getattr(prepared, "encoder_decoder", expected) != expected:
            raise ModelError(
                f"model: {type(module).__name__} {'is an' if expected else 'is no'} encoder-decoder, unlike the config "
                f"that create_config of {self.config.model.type!r} returns, by which the data were prepared"
            )
