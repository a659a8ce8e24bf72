"""Adapters of the PEFT library: LoRA and its kin."""

import copy
import dataclasses
import warnings
from typing import Any

import torch
from torch import nn

from arctic_training.config.checks.problems import unknown
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.engine.zero import is_meta_tensor_error
from arctic_training.errors.types import MissingDependencyError, ModelError
from arctic_training.model.checks.declared import declared
from arctic_training.model.transforms.base import ModelTransform
from arctic_training.registry import suggest


class PeftConfig(ComponentConfig):
    config: dict[str, Any]
    """``peft_type``, and the fields of that method's config class in PEFT."""


_UNSUITED = {
    "ADALORA": "parts its ranks anew by a call after every update",
    "MULTITASK_PROMPT_TUNING": "wants the task of every row",
    "POLY": "wants the task of every row",
    "XLORA": "mixes adapters that are trained already",
}
"""Methods that would not be themselves: they need more than a model and its batches."""


_FROM_DATA = ("eva", "corda", "lora_ga")
"""Starts of LoRA that are something else, or nothing, unless functions of PEFT are called beside."""


class PeftTransform(ModelTransform):
    """Put an adapter on the model and freeze the rest."""

    name = "peft"
    config_type = PeftConfig

    def __init__(self, config: PeftConfig) -> None:
        super().__init__(config)
        self.base_changes: set[str] = set()
        """How the model that is adapted differs from what its name loads: vocabulary, weights, ..."""

    def __call__(self, model: nn.Module) -> nn.Module:
        """Raises `ModelError` for an unknown method or field, and for targets that match nothing.

        What ``base_changes`` says then is known of the adapted model too.
        """
        settings = self._settings()
        changes = sorted(self.base_changes) + ["initialisation"] * self._changes_base(settings)
        return _noting(self._adapted(model, settings), changes)

    @property
    def method(self) -> str:
        """The method, by PEFT's name for it."""
        return str(self.config.config.get("peft_type", "")).upper()

    @property
    def adds_tokens(self) -> bool:
        """Whether it puts virtual tokens before the others of a row."""
        return bool(self._settings().is_prompt_learning)

    def dry_run(self, skeleton: nn.Module, *, sharded: bool) -> nn.Module | None:
        """Puts the adapter on a model without weights; None for a method that follows from the weights.

        ``sharded``: the weights are parted over the processes when the adapter is put on. Raises `ModelError`.
        """
        settings = self._settings()
        changed = self._changes_base(settings)
        if changed and sharded:
            raise ModelError(
                f"model.peft_config.init_lora_weights: {settings.init_lora_weights} takes the weights apart, which "
                "ZeRO stage 3 has parted over the processes; use stage 2, or another start"
            )
        copied = [str(name) for name in getattr(settings, "modules_to_save", None) or ()]
        parted = _parted(skeleton, whole=copied) if sharded else None
        if isinstance(getattr(settings, "init_lora_weights", None), str):
            settings.init_lora_weights = True  # of other values, and the same shapes
        try:
            adapted = self._adapted(skeleton, settings)
        except ModelError as error:
            if isinstance(error.__cause__, Exception) and is_meta_tensor_error(error.__cause__):
                return None
            raise
        if parted is not None:
            self._require_equal_shapes(parted, adapted)
        return _noting(adapted, sorted(self.base_changes) + ["initialisation"] * changed)

    def _require_equal_shapes(self, parted: nn.Module, adapted: nn.Module) -> None:
        """Raises `ModelError` when the adapter, put on a model whose weights are ``parted``, is not as it is on one
        whose are not."""
        expected, found, why = _shapes(adapted), dict[str, Any](), ""
        try:
            found = _shapes(self._adapted(parted, self._settings()))
        except ModelError as error:
            if isinstance(error.__cause__, Exception) and is_meta_tensor_error(error.__cause__):
                return
            why = f" ({' '.join(str(error.__cause__ or error).split())[:200]})"
        if why or found != expected:
            raise ModelError(
                f"model.peft_config: this {self.method} is made of weights of the model, which ZeRO stage 3 has parted "
                f"over the processes; use stage 2, or another method{why}"
            )

    def _changes_base(self, settings: Any) -> bool:
        """Whether the start of the adapter assigns weights of the base, found by doing it to one small layer.

        Raises `ModelError` for a start that is not there, or needs what no recipe gives.
        """
        start = getattr(settings, "init_lora_weights", None)
        if not isinstance(start, str):
            return False
        import peft

        if start in _FROM_DATA:
            raise ModelError(
                f"model.peft_config.init_lora_weights: {start} takes the first weights from data that PEFT goes "
                "through before training, which no recipe makes it do; use another start"
            )
        with torch.random.fork_rng(devices=[]):
            layer = nn.Linear(8, 8)
            before = layer.weight.detach().clone()
            one = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
            trial = peft.LoraConfig(
                r=2,
                target_modules=["0"],
                init_lora_weights=start,
                **{name: one[name] for name in ("loftq_config", "corda_config", "eva_config", "lora_ga_config")},
            )
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    peft.inject_adapter_in_model(trial, nn.Sequential(layer))
            except Exception as error:
                raise ModelError(f"model.peft_config.init_lora_weights: {start}: {_sentence(error)}") from error
        return not torch.equal(layer.weight, before)

    def _settings(self) -> Any:
        try:
            import peft
        except ImportError as error:
            raise MissingDependencyError("model.peft_config needs the library peft: pip install peft") from error

        told = dict(self.config.config)
        told.setdefault("task_type", "CAUSAL_LM")
        told.pop("peft_type", None)
        kind = self.method
        if kind in _UNSUITED:
            raise ModelError(f"model.peft_config.peft_type: {kind} {_UNSUITED[kind]}, which no recipe has; use another")
        known = sorted(method.value for method in peft.PeftType)
        if kind not in known:
            raise ModelError(f"model.peft_config.peft_type: {kind or 'missing'}; {suggest(kind, known)}")
        config_type = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        fields = [field.name for field in dataclasses.fields(config_type)]
        for name in told:
            if name not in fields:
                raise ModelError(f"model.peft_config.{name}: {unknown(name, fields)}")
        try:
            return peft.get_peft_config({"peft_type": kind, **declared(config_type, told)})
        except Exception as error:
            raise ModelError(f"model.peft_config: {_sentence(error)}") from error

    def _adapted(self, model: nn.Module, settings: Any) -> nn.Module:
        import peft

        try:
            with warnings.catch_warnings():
                # PEFT asks transformers by names of its that have become older
                warnings.simplefilter("ignore", FutureWarning)
                # in the model's own type: DeepSpeed holds all weights in one, and keeps exact copies itself
                adapted: nn.Module = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
        except Exception as error:
            raise ModelError(f"model.peft_config: {_sentence(error)}") from error
        _require_own_memory(adapted)
        return adapted


def _parted(skeleton: nn.Module, *, whole: list[str]) -> nn.Module:
    """A copy of a model without weights as DeepSpeed parts it at ZeRO stage 3: of no elements, the shape kept aside.

    Modules that PEFT copies are gathered for that, and so are those whose path ends with a name in ``whole``.
    """
    parted = copy.deepcopy(skeleton)
    for name, parameter in parted.named_parameters(remove_duplicate=False):
        if any(f"{module}." in name for module in whole) or not parameter.numel():
            continue
        shape: Any = parameter.shape
        parameter.data = torch.empty(0, dtype=parameter.dtype, device="meta")
        parameter.ds_shape, parameter.ds_numel = shape, shape.numel()  # type: ignore[attr-defined]
    return parted


def _shapes(model: nn.Module) -> dict[str, Any]:
    """Of everything in a model by name, and whether it is trained."""
    return {
        name: (tuple(getattr(one, "ds_shape", one.shape)), one.requires_grad)
        for name, one in model.state_dict(keep_vars=True).items()
    }


def _require_own_memory(model: nn.Module) -> None:
    """Raises `ModelError` for weights that are views of others, which DeepSpeed would move apart, or cannot send."""
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or hasattr(parameter, "ds_id"):
            continue
        other = owners.setdefault(parameter.untyped_storage()._cdata, name)
        if other != name or not parameter.is_contiguous():
            raise ModelError(
                f"model.peft_config: {name} is a view of the memory of {other}, which DeepSpeed would part; adapt one "
                "of the two, or train both whole by modules_to_save"
            )


def _noting(adapted: Any, changes: list[str]) -> nn.Module:
    """The model, with the ``changes`` of its base; a row for padding alone is none where nothing trains it."""
    base = adapted.get_base_model()
    ends = [part for part in (base.get_input_embeddings(), base.get_output_embeddings()) if part is not None]
    trained = any(parameter.requires_grad for part in ends for parameter in part.parameters())
    adapted.base_changes = tuple(name for name in changes if name != "pad token" or trained)
    model: nn.Module = adapted
    return model


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, (TypeError, ValueError)) else f"{type(error).__name__}: {text}"
