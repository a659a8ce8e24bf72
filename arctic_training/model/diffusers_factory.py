"""Networks of diffusers that denoise images: with random weights, or from a folder."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from arctic_training.checkpoint.saved_model import CONFIG, unloadable
from arctic_training.config.checks.problems import Problem, problems_of_keys
from arctic_training.config.sections.model import NAMES_MODEL, DType, ModelConfig
from arctic_training.errors.types import MissingDependencyError, ModelError
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.model.factory import ModelFactory
from arctic_training.registry import did_you_mean, suggest

if TYPE_CHECKING:
    from diffusers import ModelMixin

T = TypeVar("T")

_LABEL_KEYS = {"num_class_embeds": 1, "num_embeds_ada_norm": 0}
"""The keys of configs of diffusers that count labels, and whether they count the row for no label."""
_ARGUMENTS = {"self", "sample", "hidden_states", "timestep", "class_labels", "return_dict"}
"""The arguments of a forward that a network of images and times may require."""


class DiffusersConfig(ModelConfig):
    """The model section for a network of diffusers."""

    dtype: DType = "fp32"
    class_name: str = "UNet2DModel"
    """The class: UNet2DModel, DiTTransformer2DModel, or another one that maps images and timesteps to images."""
    name_or_path: Annotated[str, NAMES_MODEL] = ""
    """A folder that ``save_pretrained`` of the class or ``export`` wrote; without it the weights are random."""
    config: dict[str, Any] = {}
    """The arguments of the class; with ``name_or_path`` those that replace the saved ones."""
    num_labels: int = Field(default=0, ge=0)
    """Classes that a row may be conditioned on; 0: none. The network embeds each, and no label."""
    timesteps: int = Field(default=1000, ge=1)
    """The timestep that stands for time 1: the number of timesteps that the weights were trained with."""

    def missing_paths(self) -> list[Problem]:
        if not self.name_or_path:
            return []
        problem = unloadable(self.name_or_path, holds=CONFIG)
        if not problem and not Path(self.name_or_path).expanduser().is_dir():
            problem = f"{self.name_or_path}: no such folder"
        return problems_of_keys({"name_or_path": problem})

    @model_validator(mode="after")
    def _one_label_key(self) -> "DiffusersConfig":
        if key := next((key for key in _LABEL_KEYS if key in self.config), None):
            raise ValueError(f"config.{key}: follows from num_labels; give that")
        return self


class DiffusersNetwork(nn.Module):
    """A network of diffusers that is called with a time from 0 to 1, and with labels of which -100 is none.

    ``num_labels`` says how many classes it can be conditioned on, and ``network`` is that of diffusers.
    """

    def __init__(self, network: "ModelMixin", *, num_labels: int, takes_labels: bool, timesteps: int) -> None:
        super().__init__()
        self.network, self.num_labels = network, num_labels
        self.takes_labels, self.timesteps = takes_labels, timesteps

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns a tensor shaped as ``x``, images ``[N, C, H, W]`` or ``[N, H, W]``, unless its size differs.

        ``time`` is float32 ``[N]`` in [0, 1], and ``labels`` int64 ``[N]`` from 0 to ``num_labels - 1``, or -100 for no
        label; None: no row has one.
        """
        more: dict[str, Tensor] = {}
        if self.takes_labels:
            if labels is None:
                labels = torch.full(time.shape, IGNORE_INDEX, device=time.device)
            more["class_labels"] = labels.masked_fill(labels == IGNORE_INDEX, self.num_labels)
        images = x[:, None] if x.dim() == 3 else x
        output: Tensor = self.network(images, timestep=time * self.timesteps, return_dict=False, **more)[0]
        return output.reshape(x.shape) if output.numel() == x.numel() else output

    def save_pretrained(
        self, folder: Path, *, state_dict: Mapping[str, Tensor] | None = None, max_shard_size: int = 10**10
    ) -> None:
        """Writes the network of diffusers into ``folder``, in files of up to ``max_shard_size`` bytes, as its own
        ``save_pretrained`` does: its class loads it. ``state_dict``, by the names in this module, replaces its weights;
        where it is empty, only the config is written."""
        network = self.network
        if state_dict is not None and not state_dict:
            network.save_config(folder)
            return
        if state_dict is not None:
            with torch.device("meta"):
                network = type(network).from_config(network.config)
            network.load_state_dict(
                {name.removeprefix("network."): state_dict[name] for name in state_dict}, assign=True
            )
        network.save_pretrained(folder, max_shard_size=max_shard_size)


class DiffusersFactory(ModelFactory[DiffusersConfig]):
    """Makes a network of diffusers by the name of its class, such as UNet2DModel, or loads it from a folder."""

    name = "diffusers"

    def check(self) -> None:
        """Builds the network on the meta device. Raises `MissingDependencyError` or `ModelError`."""
        self.meta_model = self.create_meta_model()

    def create_meta_model(self) -> nn.Module:
        """Returns the network on the meta device. Raises `MissingDependencyError` or `ModelError`."""
        cls = self._class()
        settings = self._settings(cls)
        with torch.device("meta"):
            return self._wrapped(self._call(lambda: cls.from_config(settings)))

    def create_model(self, config: object) -> nn.Module:
        """Returns the network with its weights. Raises `MissingDependencyError` or `ModelError`."""
        section, cls = self.config, self._class()
        settings = self._settings(cls)
        if not section.name_or_path:
            return self._wrapped(self._call(lambda: cls.from_config(settings)))
        options = {"local_files_only": True, "low_cpu_mem_usage": False, **section.config}
        return self._wrapped(self._call(lambda: cls.from_pretrained(_folder(section), **options)))

    def _class(self) -> type["ModelMixin"]:
        name = self.config.class_name
        try:
            import diffusers
        except ImportError as error:
            raise MissingDependencyError(
                "model.type: diffusers needs the library diffusers: pip install diffusers"
            ) from error
        cls: type[ModelMixin] | None = getattr(diffusers, name, None)
        if cls is None or not (inspect.isclass(cls) and issubclass(cls, diffusers.ModelMixin)):
            meant = did_you_mean(name, [one for one in dir(diffusers) if one.endswith("Model")])
            raise ModelError(f"model.class_name: diffusers has no model {name!r}; {meant or 'such is UNet2DModel'}")
        parameters = inspect.signature(getattr(cls, "forward")).parameters  # noqa: B009  its type is not known
        needs = [key for key, one in parameters.items() if one.default is one.empty and key not in _ARGUMENTS]
        if needs or "timestep" not in parameters:
            reason = f"needs {', '.join(needs)}" if needs else "takes no timestep"
            raise ModelError(
                f"model.class_name: {name} {reason}; expected a network of images and timesteps, such as UNet2DModel "
                "or DiTTransformer2DModel"
            )
        return cls

    def _settings(self, cls: type["ModelMixin"]) -> dict[str, Any]:
        """Returns the config of the network."""
        section, known = self.config, inspect.signature(cls.__init__).parameters
        if unknown := next((key for key in section.config if key not in known), None):
            raise ModelError(f"model.config.{unknown}: unknown to {section.class_name}; {suggest(unknown, known)}")
        if section.name_or_path:
            saved = self._call(lambda: cls.load_config(_folder(section), local_files_only=True))
            return {**saved, **section.config}
        key = next((key for key in _LABEL_KEYS if key in known), None)
        if key is None and section.num_labels:
            raise ModelError(f"model.num_labels: {section.class_name} has no embedding of labels; remove it")
        if key is None or not (
            section.num_labels or known[key].default is not None or section.config.get("norm_type") == "ada_norm_zero"
        ):
            return section.config
        return {**section.config, key: section.num_labels + _LABEL_KEYS[key]}

    def _wrapped(self, network: "ModelMixin") -> DiffusersNetwork:
        from diffusers.models.embeddings import LabelEmbedding

        section = self.config
        key = next((key for key in _LABEL_KEYS if network.config.get(key) is not None), None)
        labels = network.config[key] - _LABEL_KEYS[key] if key else 0
        if labels != section.num_labels:
            raise ModelError(
                f"model.num_labels: {section.num_labels}, and the network of {section.name_or_path} has an embedding "
                f"for each of {labels} classes and one for no label; give num_labels: {labels}"
            )
        for module in network.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0  # which labels are left out, the trainer decides
        return DiffusersNetwork(network, num_labels=labels, takes_labels=key is not None, timesteps=section.timesteps)

    def _call(self, build: Callable[[], T]) -> T:
        try:
            return build()
        except Exception as error:
            raise ModelError(f"model: {self.config.class_name} cannot be built: {error}") from error


def _folder(section: DiffusersConfig) -> Path:
    return Path(section.name_or_path).expanduser()
