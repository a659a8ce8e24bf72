"""Imports what a run does, for processes that are forked from the one that imports this."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import datasets  # noqa: F401
import deepspeed  # noqa: F401
import peft  # noqa: F401
import transformers.models.llama.modeling_llama
import transformers.optimization  # noqa: F401

import arctic_training.builtin
import arctic_training.trainer.sft_trainer  # noqa: F401
