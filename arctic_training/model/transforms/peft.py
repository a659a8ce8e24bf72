"""Adapters of the PEFT library, such as LoRA."""

import copy
import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from arctic_training.config.checks.problems import unknown
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.engine.internals.parameters import empty_as_partitioned, full_shape, is_partitioned_param
from arctic_training.errors.types import MissingDependencyError, ModelError
from arctic_training.model.config_values import coerce_values
from arctic_training.model.transforms.base import ModelTransform
from arctic_training.registry import suggest
from arctic_training.state import needs_numbers

if TYPE_CHECKING:
    import peft


class PeftConfig(ComponentConfig):
    """The keys of `PeftTransform`."""

    config: dict[str, Any]
    """``peft_type``, and the fields of that method's config class in PEFT."""


_UNSUPPORTED = {
    "ADALORA": "reallocates its ranks by a call after every step, which no recipe has",
    "LILY": "weights its experts by the mean over all tokens of a batch, among them padding and later tokens",
    "MULTITASK_PROMPT_TUNING": "needs the task of every row, which no recipe has",
    "POLY": "needs the task of every row, which no recipe has",
    "XLORA": "mixes adapters that are trained already, which no recipe has",
}
"""Methods that need more than a model and its batches, or whose outputs depend on more than the tokens before them."""


_HEADS = ["classifier", "score"]
"""Modules that PEFT adds to ``modules_to_save`` of a classifier."""

_INIT_FROM_DATA = ("eva", "corda", "lora_ga")
"""Values of ``init_lora_weights`` that have an effect only after other functions of PEFT have seen data."""


class PeftTransform(ModelTransform[PeftConfig]):
    """Adds an adapter to the model and freezes the rest."""

    name = "peft"

    def __init__(self, config: PeftConfig) -> None:
        super().__init__(config)
        self.base_changes: set[str] = set()
        """How the base model differs from what its name loads: vocabulary, weights, ..."""
        self.task_type = "CAUSAL_LM"
        """What the model computes, as PEFT names it; a head of labels is trained and saved with the adapter."""

    def __call__(self, model: nn.Module) -> nn.Module:
        """Returns the adapted model, whose attribute ``base_changes`` lists the changes of the base.

        Raises `ModelError` for an unknown method or field, and for targets that match nothing.
        """
        peft_config = self._peft_config()
        changes = self._changes(initialised=self._init_changes_base(peft_config))
        return _with_base_changes(self._adapt(model, peft_config), changes)

    def _changes(self, *, initialised: bool) -> list[str]:
        return [*sorted(self.base_changes), "initialisation"] if initialised else sorted(self.base_changes)

    @property
    def method(self) -> str:
        """The method's name in PEFT, such as LORA."""
        return str(self.config.config.get("peft_type", "")).upper()

    @property
    def begins_in_row(self) -> str:
        """The clause that says where in a row the adapter begins, if not with every token; empty for most."""
        peft_config = self._peft_config()
        if peft_config.is_prompt_learning:
            return f"{self.method} puts its tokens before a row"
        if getattr(peft_config, "alora_invocation_tokens", None):
            return f"{self.method} with alora_invocation_tokens begins once in a row"
        return ""

    def dry_run(self, meta_model: nn.Module, *, sharded: bool) -> nn.Module | None:
        """Adds the adapter to a model on the meta device; returns None for a method that reads the weights.

        ``sharded``: ZeRO stage 3 has partitioned the weights when the adapter is added. Raises `ModelError`.
        """
        peft_config = self._peft_config()
        changes_base = self._init_changes_base(peft_config)
        if changes_base and sharded:
            raise ModelError(
                f"model.peft_config.init_lora_weights: {peft_config.init_lora_weights} decomposes the weights, which "
                "ZeRO stage 3 has partitioned over the processes; use stage 2, or another init_lora_weights"
            )
        copied = [str(name) for name in getattr(peft_config, "modules_to_save", None) or ()]
        copied += _HEADS if self.task_type in ("SEQ_CLS", "TOKEN_CLS") else []
        partitioned = _partitioned_copy(meta_model, gathered=copied) if sharded else None
        if isinstance(getattr(peft_config, "init_lora_weights", None), str):
            peft_config.init_lora_weights = True  # gives other values of the same shapes
        try:
            adapted = self._adapt(meta_model, peft_config)
        except ModelError as error:
            if error.__cause__ is not None and needs_numbers(error.__cause__):
                return None
            raise
        if partitioned is not None:
            self._check_partitioned(partitioned, adapted)
        return _with_base_changes(adapted, self._changes(initialised=changes_base))

    def _check_partitioned(self, partitioned: nn.Module, adapted: nn.Module) -> None:
        """Adds the adapter to a ``partitioned`` model and compares its shapes with those of the ``adapted`` one.

        Raises `ModelError` where they differ.
        """
        shapes, reason = dict[str, Any](), ""
        try:
            shapes = _shapes(self._adapt(partitioned, self._peft_config()))
        except ModelError as error:
            if error.__cause__ is not None and needs_numbers(error.__cause__):
                return
            reason = f" ({' '.join(str(error.__cause__ or error).split())[:200]})"
        if reason or shapes != _shapes(adapted):
            raise ModelError(
                f"model.peft_config: this {self.method} is made of weights of the model, which ZeRO stage 3 has "
                f"partitioned over the processes; use stage 2, or another method{reason}"
            )

    def _init_changes_base(self, peft_config: "peft.PeftConfig") -> bool:
        """Returns whether ``init_lora_weights`` assigns weights of the base, found by applying it to one small layer.

        Raises `ModelError` for a value that PEFT does not have, or that needs more than a recipe can give.
        """
        method = getattr(peft_config, "init_lora_weights", None)
        if not isinstance(method, str):
            return False
        import peft

        if method in _INIT_FROM_DATA:
            raise ModelError(
                f"model.peft_config.init_lora_weights: {method} takes the first weights from data that PEFT goes "
                "through before training, which no recipe makes it do; use another value"
            )
        with torch.random.fork_rng(devices=[]):
            layer = nn.Linear(8, 8)
            before = layer.weight.detach().clone()
            values = {field.name: getattr(peft_config, field.name) for field in dataclasses.fields(peft_config)}
            trial = peft.LoraConfig(
                r=2,
                target_modules=["0"],
                init_lora_weights=method,
                **{name: values[name] for name in ("loftq_config", "corda_config", "eva_config", "lora_ga_config")},
            )
            try:
                with warnings.catch_warnings(action="ignore"):
                    peft.inject_adapter_in_model(trial, nn.Sequential(layer))
            except Exception as error:
                raise ModelError(f"model.peft_config.init_lora_weights: {method}: {_sentence(error)}") from error
        return not torch.equal(layer.weight, before)

    def _peft_config(self) -> "peft.PeftConfig":
        """Returns PEFT's config of the method. Raises `MissingDependencyError` or `ModelError`."""
        try:
            import peft
        except ImportError as error:
            raise MissingDependencyError("model.peft_config: needs the library peft: pip install peft") from error

        values = {"task_type": self.task_type, **self.config.config}
        values.pop("peft_type", None)
        method = self.method
        if method in _UNSUPPORTED:
            raise ModelError(f"model.peft_config.peft_type: {method} {_UNSUPPORTED[method]}; use another")
        known = sorted(one.value for one in peft.PeftType)
        if method not in known:
            raise ModelError(f"model.peft_config.peft_type: {method or 'missing'}; {suggest(method, known)}")
        config_type = peft.PEFT_TYPE_TO_CONFIG_MAPPING[method]
        fields = [field.name for field in dataclasses.fields(config_type)]
        for name in values:
            if name not in fields:
                raise ModelError(f"model.peft_config.{name}: {unknown(name, fields)}")
        try:
            return peft.get_peft_config({"peft_type": method, **coerce_values(config_type, values)})
        except Exception as error:
            raise ModelError(f"model.peft_config: {_sentence(error)}") from error

    def _adapt(self, model: nn.Module, peft_config: "peft.PeftConfig") -> nn.Module:
        """Returns ``model`` with a new adapter. Raises `ModelError`."""
        import peft

        try:
            # PEFT uses deprecated names of transformers
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                # in the model's own type: DeepSpeed holds all weights in one, and keeps exact copies itself
                adapted: nn.Module = peft.get_peft_model(model, peft_config, autocast_adapter_dtype=False)
        except Exception as error:
            raise ModelError(f"model.peft_config: {_sentence(error)}") from error
        _check_no_views(adapted)
        return adapted


def _partitioned_copy(meta_model: nn.Module, *, gathered: list[str]) -> nn.Module:
    """Returns a copy of a model as ZeRO stage 3 partitions it: parameters of no elements, which know their shape.

    Not so the modules whose path ends with a name in ``gathered``: PEFT copies them, and they are gathered for that.
    """
    partitioned = copy.deepcopy(meta_model)
    for name, parameter in partitioned.named_parameters(remove_duplicate=False):
        if any(f"{module}." in name for module in gathered) or not parameter.numel():
            continue
        empty_as_partitioned(parameter)
    return partitioned


def _shapes(model: nn.Module) -> dict[str, Any]:
    """Returns the shape of every tensor of a model, by name, and whether it is trained."""
    return {name: (tuple(full_shape(one)), one.requires_grad) for name, one in model.state_dict(keep_vars=True).items()}


def _check_no_views(model: nn.Module) -> None:
    """Raises `ModelError` for weights that are views of others, which DeepSpeed would separate, or cannot send."""
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or is_partitioned_param(parameter):
            continue
        other = owners.setdefault(parameter.untyped_storage()._cdata, name)
        if other != name or not parameter.is_contiguous():
            raise ModelError(
                f"model.peft_config: {name} is a view of the memory of {other}, which DeepSpeed would "
                "separate; adapt one of the two, or train both by modules_to_save"
            )


def _with_base_changes(adapted: "peft.PeftModel", changes: list[str]) -> nn.Module:
    """Sets ``base_changes`` of the model; a row for padding alone is no change where nothing trains it."""
    base = adapted.get_base_model()
    ends = [part for part in (base.get_input_embeddings(), base.get_output_embeddings()) if part is not None]
    trained = any(parameter.requires_grad for part in ends for parameter in part.parameters())
    adapted.base_changes = tuple(name for name in changes if name != "pad token" or trained)
    model: nn.Module = adapted
    return model


def _sentence(error: Exception) -> str:
    """Returns an error of PEFT in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, (TypeError, ValueError)) else f"{type(error).__name__}: {text}"
