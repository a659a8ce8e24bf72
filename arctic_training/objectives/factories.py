"""The optimizers and schedules of every built-in trainer; the first of each is the default."""

from arctic_training.optimizer.adagrad import AdagradFactory
from arctic_training.optimizer.lamb import LambFactory
from arctic_training.optimizer.schedule_free import ScheduleFreeFactory
from arctic_training.optimizer.torch_factories import (
    AdamFactory,
    AdamWFactory,
    NAdamFactory,
    RAdamFactory,
    RMSpropFactory,
    SGDFactory,
)
from arctic_training.scheduler.huggingface_factory import HFSchedulerFactory
from arctic_training.scheduler.piecewise_factories import CyclicFactory, MultiStepFactory, StepFactory
from arctic_training.scheduler.torch_factories import ConstantFactory, ExponentialFactory, OneCycleFactory, WSDFactory

OPTIMIZERS = (
    AdamWFactory,
    SGDFactory,
    AdamFactory,
    RAdamFactory,
    NAdamFactory,
    RMSpropFactory,
    AdagradFactory,
    LambFactory,
    ScheduleFreeFactory,
)
"""Optimizers that train any model."""
SCHEDULES = (
    HFSchedulerFactory,
    WSDFactory,
    ConstantFactory,
    ExponentialFactory,
    OneCycleFactory,
    StepFactory,
    MultiStepFactory,
    CyclicFactory,
)
