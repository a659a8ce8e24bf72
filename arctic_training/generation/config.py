"""The keys by which a section of a recipe says how completions are generated."""

from collections.abc import Mapping

from pydantic import Field, ValidationError, model_validator

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.errors.types import InputError
from arctic_training.generation.sampling import SamplingParams
from arctic_training.registry import suggest


class GenerationKeys(ComponentConfig):
    """Keys of every section that generates completions to look at, or to score."""

    max_new_tokens: HumanInt = Field(default=64, ge=1)
    """Maximum length of a completion in tokens."""
    temperature: HumanFloat = Field(default=0.0, ge=0)
    """Divisor of the logits before sampling; 0: greedy decoding."""
    top_k: HumanInt = Field(default=0, ge=0)
    """Sample from the ``top_k`` most likely tokens; 0: from all."""
    top_p: HumanFloat = Field(default=1.0, gt=0, le=1)
    """Sample from the most likely tokens that together have this probability; 1: from all."""
    min_p: HumanFloat = Field(default=0.0, ge=0, lt=1)
    """Sample from tokens at least ``min_p`` times as likely as the most likely one; 0: from all."""
    repetition_penalty: HumanFloat = Field(default=1.0, gt=0)
    """What the scores of tokens that occur in prompt or completion are divided by; 1: nothing."""
    no_repeat_ngram_size: HumanInt = Field(default=0, ge=0)
    """No sequence of so many tokens occurs twice; 0: any may."""
    num_beams: HumanInt = Field(default=1, ge=1)
    """Completions that beam search follows at once, with ``temperature: 0``; 1: no beam search."""
    stop: list[str] = []
    """Texts that end a completion, beside the end tokens of model and tokenizer."""
    seed: int = Field(default=42, ge=0)
    """Seed of the sampling, with a ``temperature`` above 0. A completion depends on it and its prompt, not on what is
    generated beside."""

    @model_validator(mode="after")
    def _check_beams(self) -> "GenerationKeys":
        self.sampling_params  # noqa: B018  raises ValueError
        return self

    @property
    def sampling_params(self) -> SamplingParams:
        """The keys as parameters of `generate`. Raises ValueError for beam search that would sample."""
        return SamplingParams(
            self.max_new_tokens,
            self.temperature,
            self.top_k,
            self.top_p,
            tuple(self.stop),
            self.min_p,
            self.repetition_penalty,
            self.no_repeat_ngram_size,
            self.num_beams,
        )


OPTIONS = tuple(key for key in GenerationKeys.model_fields if key != "type")
"""The keys that are options of commands, in the order of `GenerationKeys`."""


def read_options(options: Mapping[str, object]) -> GenerationKeys:
    """Returns the keys among the ``options`` of a command. Raises `InputError` for a value that cannot be used."""
    return _read({key: options[key] for key in OPTIONS if key in options}, "--{}: ")


def with_option(keys: GenerationKeys, name: str, text: str) -> GenerationKeys:
    """Returns ``keys`` with the option ``name`` as the ``text`` says; for ``stop`` that is the one text that ends a
    completion, and no text for none.

    ``name`` is written as on a command line, ``top-k``, or as in a recipe, ``top_k``. Raises `InputError` for an
    unknown name, or a value that cannot be used.
    """
    key = name.replace("-", "_")
    if key not in OPTIONS:
        raise InputError(f"no option is named {name}; {suggest(key, OPTIONS)}")
    value: object = ([text] if text else []) if key == "stop" else text
    return _read({**keys.model_dump(include={*OPTIONS}), key: value}, "{}: ")


def _read(values: Mapping[str, object], label: str) -> GenerationKeys:
    """Returns keys of these ``values``. Raises `InputError` with the option, written as ``label`` says."""
    try:
        return GenerationKeys.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "".join(label.format(str(key).replace("_", "-")) for key in first["loc"][:1])
        raise InputError(option + first["msg"].removeprefix("Value error, ")) from None
