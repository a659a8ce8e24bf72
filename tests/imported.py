"""Imports what a run does, for processes that are forked from the one that imports this."""

import gc
import math
import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as a rank sets it before it imports torch

import datasets  # noqa: F401
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401, with it torch's compiler, which takes seconds
import peft  # noqa: F401
import transformers.models.llama.modeling_llama
import transformers.optimization  # noqa: F401

from arctic_training.display import watch
from arctic_training.registry import kinds, lookup, names
from tests import lookups

lookups.remember()
for kind in kinds():
    for name in names(kind):
        lookup(kind, name)
watch._SILENCE = math.inf  # on a busy machine anything may take long enough to be announced

# else each of them looks through all of it for garbage when it ends
gc.collect()
gc.freeze()
