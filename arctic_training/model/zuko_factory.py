"""Normalizing flows of the library zuko: densities with an exact likelihood."""

import importlib.util
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from arctic_training.config.sections.model import DType, ModelConfig
from arctic_training.config.sections.only_with import OnlyWith
from arctic_training.errors.types import MissingDependencyError
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.model.factory import NetworkFactory

_CLASSES = {"nsf": "NSF", "maf": "MAF", "realnvp": "RealNVP"}


class ZukoConfig(ModelConfig):
    """The model section for a normalizing flow."""

    dtype: DType = "fp32"
    """Always fp32: a likelihood is a sum of many terms, and an inverse of many steps, which need its precision."""
    flow: Literal["nsf", "maf", "realnvp"] = "nsf"
    """nsf: autoregressive with rational-quadratic splines (Durkan et al. 2019, arXiv 1906.04032); maf: autoregressive
    and affine (Papamakarios et al. 2017, arXiv 1705.07057); realnvp: affine couplings (Dinh et al. 2017, arXiv
    1605.08803)."""
    features: int = Field(ge=1)
    """Numbers in a row."""
    transforms: int = Field(default=8, ge=1)
    """Transformations, one after the other."""
    hidden_sizes: list[Annotated[int, Field(ge=1)]] = Field(default=[64, 64], min_length=1)
    """Widths of the hidden layers of the network of each transformation."""
    bins: Annotated[int, OnlyWith("flow", "nsf")] = Field(default=8, ge=2)
    """Pieces of each spline of nsf. They lie between -5 and 5, so rows should too: beyond, a transformation is the
    identity."""
    num_labels: int = Field(default=0, ge=0)
    """Classes that a row may be conditioned on; 0: none."""

    @field_validator("dtype")
    @classmethod
    def _check_dtype(cls, dtype: str) -> str:
        if dtype != "fp32":
            raise ValueError(f"{dtype}: a normalizing flow needs the precision of fp32")
        return dtype

    @model_validator(mode="after")
    def _check_flow(self) -> "ZukoConfig":
        if self.flow == "realnvp" and self.features < 2:
            raise ValueError("flow: a coupling needs at least 2 features; use maf or nsf")
        return self


class NormalizingFlow(nn.Module):
    """A flow of zuko whose computations all happen in its forward, as engines need it.

    ``num_labels`` says how many classes it can be conditioned on.
    """

    def __init__(self, flow: nn.Module, num_labels: int = 0) -> None:
        """``flow`` is a lazy distribution of zuko, with a context of ``num_labels`` numbers."""
        super().__init__()
        self.flow, self.num_labels = flow, num_labels

    def forward(self, rows: Tensor, *, labels: Tensor | None = None, inverse: bool = False) -> Tensor:
        """Returns the log-probabilities of ``rows``, float32 ``[n, D]``, in nats: ``[n]``.

        With ``inverse`` the rows are standard normal, and the data that they are mapped to are returned: ``[n, D]``.
        ``labels`` are int64 ``[n]`` from 0 to ``num_labels - 1``, or -100 for no label; None: no row has one.
        """
        if not len(rows):  # zuko cannot, and every rank has to run the same layers
            return self.forward(rows.new_zeros(1, rows.shape[1]), inverse=inverse)[:0]
        distribution = self.flow(*([self._context(rows, labels)] if self.num_labels else []))
        mapped: Tensor = distribution.transform.inv(rows) if inverse else distribution.log_prob(rows)
        return mapped

    def _context(self, rows: Tensor, labels: Tensor | None) -> Tensor:
        """Returns a 1 in the column of each label, and zeros for no label: float32 ``[n, num_labels]``."""
        if labels is None:
            labels = torch.full([len(rows)], IGNORE_INDEX, device=rows.device)
        return (labels[:, None] == torch.arange(self.num_labels, device=rows.device)).to(rows.dtype)


class ZukoFactory(NetworkFactory[ZukoConfig]):
    """Makes a normalizing flow of the library zuko."""

    name = "zuko"

    def check(self) -> None:
        """Raises `MissingDependencyError` without the library."""
        if importlib.util.find_spec("zuko") is None:
            raise MissingDependencyError("model.type: zuko needs the library zuko: pip install 'arctic_training[flow]'")
        super().check()

    def create_meta_model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # its masks are computed, which the meta device cannot
            return self.create_model(None).to("meta")

    def create_model(self, config: object) -> nn.Module:
        import zuko

        section = self.config
        more = {"bins": section.bins} if section.flow == "nsf" else {}
        flow: nn.Module = getattr(zuko.flows, _CLASSES[section.flow])(
            section.features,
            context=section.num_labels,
            transforms=section.transforms,
            hidden_features=section.hidden_sizes,
            **more,
        )
        return NormalizingFlow(flow, section.num_labels)
