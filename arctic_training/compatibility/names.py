"""The names and modules of ArcticTraining 0.8, and former ones of this package, and what they are here; importing one
says so."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TypeVar

T = TypeVar("T", bound=type)

_PACKAGE = "arctic_training"

_KINDS = [
    "checkpoint_engine",
    "data_factory",
    "data_source",
    "model_factory",
    "optimizer_factory",
    "scheduler_factory",
    "tokenizer_factory",
    "trainer",
]

ROOT: Mapping[str, str] = {
    "Answer": "reward.reward.Completion",
    "DPOTrainerConfig": "objectives.dpo.DPOConfig",
    "DSCheckpointEngine": "checkpoint.deepspeed.DeepSpeedCheckpointEngine",
    "FusedAdamOptimizerFactory": "optimizer.deepspeed_factories.FusedAdamFactory",
    "HFDataSourceCausal": "data.sources.huggingface.HFCausalSource",
    "HFDataSourceInstruct": "data.sources.instruct.HFInstructSource",
    "HFModelConfig": "model.huggingface_config.HFModelConfig",
    "LoggerConfig": "config.sections.logger.LoggerConfig",
    "TokenizerConfig": "tokenizer.huggingface_factory.HFTokenizerConfig",
    "register": "compatibility.names.register",
    "target_losses": "model.token_losses.token_losses",
    "target_predictions": "model.token_losses.token_predictions",
}
"""Names of the package itself that it does not have any more."""

MODULES: Mapping[str, Mapping[str, str]] = {
    "callback.mixin": {"CallbackMixin": "callback.hooks.Hooked", "callback_wrapper": "callback.hooks.hook"},
    "checkpoint.ds_engine": {
        "DSCheckpointConfig": "checkpoint.deepspeed.DeepSpeedCheckpointConfig",
        "DSCheckpointEngine": "checkpoint.deepspeed.DeepSpeedCheckpointEngine",
    },
    "checkpoint.engine": {"CheckpointEngine": "checkpoint.checkpointer.CheckpointEngine"},
    "checkpoint.hf_engine": {
        "HFCheckpointConfig": "checkpoint.huggingface.HFCheckpointConfig",
        "HFCheckpointEngine": "checkpoint.huggingface.HFCheckpointEngine",
    },
    "config.base": {"BaseConfig": "config.sections.base.BaseConfig"},
    "config.checkpoint": {"CheckpointConfig": "config.sections.checkpoint.CheckpointConfig"},
    "config.data": {
        "DataConfig": "data.factories.config.SourcedDataConfig",
        "DataSourceConfig": "config.sections.data.DataSourceConfig",
    },
    "config.logger": {"LoggerConfig": "config.sections.logger.LoggerConfig"},
    "config.model": {"ModelConfig": "model.huggingface_config.HFModelConfig"},
    "config.optimizer": {"OptimizerConfig": "config.sections.optimizer.OptimizerConfig"},
    "config.scheduler": {"SchedulerConfig": "config.sections.scheduler.SchedulerConfig"},
    "config.tokenizer": {"TokenizerConfig": "tokenizer.huggingface_factory.HFTokenizerConfig"},
    "config.trainer": {
        "TrainerConfig": "config.sections.trainer.TrainerConfig",
        "get_config": "config.get_config.get_config",
    },
    "config.utils": {
        "HumanFloat": "config.sections.types.HumanFloat",
        "HumanInt": "config.sections.types.HumanInt",
        "parse_human_val": "config.sections.types.number",
    },
    "config.wandb": {"WandBConfig": "config.sections.wandb.WandbSection"},
    "data.causal_factory": {
        "CausalDataConfig": "data.factories.causal.CausalDataConfig",
        "CausalDataFactory": "data.factories.causal.CausalDataFactory",
    },
    "data.dpo_factory": {
        "DPODataConfig": "data.factories.dpo.DPODataConfig",
        "DPODataFactory": "data.factories.dpo.DPODataFactory",
    },
    "data.factory": {"DataFactory": "data.factories.sourced.SourcedDataFactory"},
    "data.hf_causal_source": {
        "HFDataSourceCausal": "data.sources.huggingface.HFCausalSource",
        "HFDataSourceConfigCausal": "data.sources.huggingface.HFCausalConfig",
    },
    "data.hf_instruct_source": {
        "HFDataSourceConfigInstruct": "data.sources.instruct.HFInstructConfig",
        "HFDataSourceInstruct": "data.sources.instruct.HFInstructSource",
    },
    "data.hf_source": {
        "HFDataSource": "data.sources.huggingface.HFDataSource",
        "HFDataSourceConfig": "data.sources.huggingface.HFDataSourceConfig",
    },
    "data.sft_factory": {
        "IGNORE_INDEX": "loss.targets.IGNORE_INDEX",
        "RawDataFactory": "data.factories.sft.SFTDataFactory",
        "SFTDataConfig": "data.factories.sft.SFTDataConfig",
        "SFTDataFactory": "data.factories.sft.SFTDataFactory",
    },
    "data.source": {"DataSource": "data.sources.base.DataSource"},
    "exceptions": {
        "RegistryError": "errors.types.RegistryError",
        "RegistryValidationError": "errors.types.RegistryError",
    },
    "model.hf_factory": {"HFModelFactory": "model.huggingface_factory.HFModelFactory"},
    "model.target_losses": {
        "TargetScores": "model.token_losses.TokenScores",
        "target_losses": "model.token_losses.token_losses",
        "target_predictions": "model.token_losses.token_predictions",
        "target_scores": "model.token_losses.token_scores",
    },
    "optimizer.adam_factory": {
        "CPUAdamOptimizerFactory": "optimizer.deepspeed_factories.CPUAdamFactory",
        "FusedAdamOptimizerFactory": "optimizer.deepspeed_factories.FusedAdamFactory",
    },
    "registry": {
        "register": "compatibility.names.register",
        "RegistryMeta": "trainer.former_registry.RegistryMeta",
        "get_registered_class": "trainer.former_registry.get_registered_class",
        **{f"get_registered_{kind}": f"trainer.former_registry.get_registered_{kind}" for kind in _KINDS},
    },
    "scheduler.hf_factory": {
        "HFSchedulerConfig": "scheduler.huggingface_factory.HFSchedulerConfig",
        "HFSchedulerFactory": "scheduler.huggingface_factory.HFSchedulerFactory",
    },
    "scheduler.wsd_factory": {
        "WSDSchedulerConfig": "scheduler.torch_factories.WSDConfig",
        "WSDSchedulerFactory": "scheduler.torch_factories.WSDFactory",
    },
    "tokenizer.hf_factory": {
        "HFTokenizerConfig": "tokenizer.huggingface_factory.HFTokenizerConfig",
        "HFTokenizerFactory": "tokenizer.huggingface_factory.HFTokenizerFactory",
    },
    "trainer.causal_trainer": {"CausalTrainer": "objectives.causal.CausalTrainer"},
    "trainer.dpo_trainer": {
        "DPOTrainer": "objectives.dpo.DPOTrainer",
        "DPOTrainerConfig": "objectives.dpo.DPOConfig",
    },
    "trainer.sft_trainer": {"SFTTrainer": "objectives.sft.SFTTrainer", "to_device": "trainer.former_batch.to_device"},
}
"""The modules, and the names in them that code of its users imports."""

EVENTS: Mapping[str, str] = {"answer": "generate_rollouts"}
"""Former names of events."""

_GONE = "has no counterpart here: see docs/migration.md"

GONE: Mapping[str, str] = {
    "MemoryProfilerConfig": "is the callback memory_profiler here, or mem_profiler: see docs/guides/callbacks.md",
    "ProfilerConfig": "is the callback profiler here, with options of its own: see docs/guides/callbacks.md",
    "SnowflakeDataSource": _GONE,
    "data.hf_instruct_source.KNOWN_HF_INSTRUCT_DATASETS": _GONE,
    "testing_utils": _GONE,
    "utils": _GONE,
}
"""Names and modules for which there is nothing of the same options, and what there is instead."""


def former_name(name: str, module: str = "") -> object:
    """Returns what ``name`` of ``module``, or of the package itself, is here, with a warning that says where it is.

    Raises AttributeError for an unknown name, ImportError for one of `GONE`.
    """
    old = ".".join(filter(None, (_PACKAGE, module, name)))
    if (reason := GONE.get(old.removeprefix(f"{_PACKAGE}."))) is not None:
        raise ImportError(f"{old} {reason}")
    path = (MODULES[module] if module else ROOT).get(name)
    if path is None:
        raise AttributeError(f"module {_PACKAGE + (module and f'.{module}')!r} has no attribute {name!r}")
    home, _, own_name = path.rpartition(".")
    warnings.warn(f"{old} is {_PACKAGE}.{path} here; its former name will be removed", FutureWarning, stacklevel=3)
    return getattr(import_module(f"{_PACKAGE}.{home}"), own_name)


def register(cls: T | None = None, force: bool = False) -> object:
    """Returns ``cls``, or a decorator that does: a class with a name registers itself when it is defined."""
    return register if cls is None else cls


def rename_method(cls: type, former: str, now: str) -> None:
    """Makes a method ``former`` that ``cls`` defines its method ``now``, with a warning that says so; of a class that
    defines ``now``, ``former`` is the same method, for ``super()``."""
    own = vars(cls)
    if now in own:
        setattr(cls, former, own[now])
    elif former in own:
        warnings.warn(f"{cls.__qualname__}.{former} is {now} here", FutureWarning, stacklevel=4)
        setattr(cls, now, own[former])


class _FormerModules:
    """Makes the modules of the table above, where no file has their name.

    It is finder and loader without their base classes, whose module imports some twenty others.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package == _PACKAGE and name in GONE:
            raise ModuleNotFoundError(f"{fullname} {GONE[name]}", name=fullname)
        is_former = package == _PACKAGE and name in MODULES
        return ModuleSpec(fullname, self) if is_former else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Returns None: the import system makes the module."""

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.partition(".")[2]

        def read(attribute: str) -> object:
            if attribute.startswith("__"):  # what the import system looks for
                raise AttributeError(attribute)
            return former_name(attribute, name)

        module.__getattr__ = read  # type: ignore[method-assign]


if not any(isinstance(finder, _FormerModules) for finder in sys.meta_path):
    sys.meta_path.append(_FormerModules())
