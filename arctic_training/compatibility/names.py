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

KINDS = [
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


def _names(home: str, *names: str, **renamed: str) -> dict[str, str]:
    """Returns ``home.name`` by former name: of ``names``, which are unchanged, and of ``renamed``."""
    return {former: f"{home}.{now}" for former, now in ({name: name for name in names} | renamed).items()}


MODULES: Mapping[str, Mapping[str, str]] = {
    "callback.mixin": _names("callback.hooks", CallbackMixin="Hooked", callback_wrapper="hook"),
    "checkpoint.ds_engine": _names(
        "checkpoint.deepspeed",
        DSCheckpointConfig="DeepSpeedCheckpointConfig",
        DSCheckpointEngine="DeepSpeedCheckpointEngine",
    ),
    "checkpoint.engine": _names("checkpoint.checkpointer", "CheckpointEngine"),
    "checkpoint.hf_engine": _names("checkpoint.huggingface", "HFCheckpointConfig", "HFCheckpointEngine"),
    "config.base": _names("config.sections.base", "BaseConfig"),
    "config.checkpoint": _names("config.sections.checkpoint", "CheckpointConfig"),
    "config.data": _names("data.factories.config", DataConfig="SourcedDataConfig")
    | _names("config.sections.data", "DataSourceConfig"),
    "config.logger": _names("config.sections.logger", "LoggerConfig"),
    "config.model": _names("model.huggingface_config", ModelConfig="HFModelConfig"),
    "config.optimizer": _names("config.sections.optimizer", "OptimizerConfig"),
    "config.scheduler": _names("config.sections.scheduler", "SchedulerConfig"),
    "config.tokenizer": _names("tokenizer.huggingface_factory", TokenizerConfig="HFTokenizerConfig"),
    "config.trainer": _names("config.sections.trainer", "TrainerConfig") | _names("config.get_config", "get_config"),
    "config.utils": _names("config.sections.types", "HumanFloat", "HumanInt", parse_human_val="number"),
    "config.wandb": _names("config.sections.wandb", WandBConfig="WandbSection"),
    "data.causal_factory": _names("data.factories.causal", "CausalDataConfig", "CausalDataFactory"),
    "data.dpo_factory": _names("data.factories.dpo", "DPODataConfig", "DPODataFactory"),
    "data.factory": _names("data.factories.sourced", DataFactory="SourcedDataFactory"),
    "data.hf_causal_source": _names(
        "data.sources.huggingface", HFDataSourceCausal="HFCausalSource", HFDataSourceConfigCausal="HFCausalConfig"
    ),
    "data.hf_instruct_source": _names(
        "data.sources.instruct", HFDataSourceConfigInstruct="HFInstructConfig", HFDataSourceInstruct="HFInstructSource"
    ),
    "data.hf_source": _names("data.sources.huggingface", "HFDataSource", "HFDataSourceConfig"),
    "data.sft_factory": _names("loss.targets", "IGNORE_INDEX")
    | _names("data.factories.sft", "SFTDataConfig", "SFTDataFactory", RawDataFactory="SFTDataFactory"),
    "data.source": _names("data.sources.base", "DataSource"),
    "exceptions": _names("errors.types", "RegistryError", RegistryValidationError="RegistryError"),
    "model.hf_factory": _names("model.huggingface_factory", "HFModelFactory"),
    "model.target_losses": _names(
        "model.token_losses",
        TargetScores="TokenScores",
        target_losses="token_losses",
        target_predictions="token_predictions",
        target_scores="token_scores",
    ),
    "optimizer.adam_factory": _names(
        "optimizer.deepspeed_factories",
        CPUAdamOptimizerFactory="CPUAdamFactory",
        FusedAdamOptimizerFactory="FusedAdamFactory",
    ),
    "registry": _names("compatibility.names", "register")
    | _names(
        "trainer.former_registry",
        "RegistryMeta",
        "get_registered_class",
        *(f"get_registered_{kind}" for kind in KINDS),
    ),
    "scheduler.hf_factory": _names("scheduler.huggingface_factory", "HFSchedulerConfig", "HFSchedulerFactory"),
    "scheduler.wsd_factory": _names(
        "scheduler.torch_factories", WSDSchedulerConfig="WSDConfig", WSDSchedulerFactory="WSDFactory"
    ),
    "tokenizer.hf_factory": _names("tokenizer.huggingface_factory", "HFTokenizerConfig", "HFTokenizerFactory"),
    "trainer.causal_trainer": _names("objectives.causal", "CausalTrainer"),
    "trainer.dpo_trainer": _names("objectives.dpo", "DPOTrainer", DPOTrainerConfig="DPOConfig"),
    "trainer.sft_trainer": _names("objectives.sft", "SFTTrainer") | _names("trainer.former_batch", "to_device"),
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
