"""Outputs of a trainer for a Python program beside metrics: completions of prompts, a folder with the model."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from pydantic import ValidationError

from arctic_training.checkpoint.folder import list_files, reset_permissions
from arctic_training.checkpoint.huggingface import HFCheckpointConfig, HFCheckpointEngine
from arctic_training.component import TrainerView
from arctic_training.config.checks.problems import problems_of
from arctic_training.config.recipe.location import located
from arctic_training.config.recipe.node import Node
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import CheckpointError, InputError
from arctic_training.generation.chat import end_token_ids
from arctic_training.generation.config import GenerationKeys
from arctic_training.generation.generate import generate, require_generate
from arctic_training.generation.prompts import Message, encode_prompt, is_encoder_decoder
from arctic_training.generation.sampling import seeded_uniforms
from arctic_training.state import isolated_eval
from arctic_training.trainer.update import Updates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | list[Message]


class Outputs(Updates):
    """Part of `Trainer`: generates and saves with the weights as they are now, before the training or after it.

    With a callback `ema` these are the averages, as it says for evaluations and for exports. All ranks call a method
    together.
    """

    tokenizer: "PreTrainedTokenizerBase | None"

    def generate(self, prompts: Prompt | Sequence[Prompt], *, batch_size: int = 16, **settings: object) -> list[str]:
        """Returns a completion of each prompt, a text or a chat (a list of messages), or of a single one.

        ``settings`` are the keys of `GenerationKeys`: ``max_new_tokens``, ``temperature``, ``top_p``, ``stop``,
        ``seed``, ...; by default at most 64 tokens, each the most likely one. A completion depends on its prompt, its
        place among the prompts and the seed, and not on ``batch_size``. The state of the run is the same afterwards.
        Raises `InputError` for a wrong setting, a run without text, and a chat that the template refuses.
        """
        self._require_open("generate")
        keys, tokenizer = _read_keys(settings), self.tokenizer
        module = require_generate(cast(TrainerView, self), "generate")
        if tokenizer is None:
            raise InputError("generate: this run has no tokenizer")
        is_single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], dict))
        several = cast(Sequence[Prompt], [prompts] if is_single else prompts)
        keeps_end = is_encoder_decoder(module)
        ids = [encode_prompt(tokenizer, prompt, "generate", keeps_end=keeps_end) for prompt in several]
        if not ids:
            return []
        with self.averaged("model", purpose="evaluate"), isolated_eval([self.model.module]):
            completions = generate(
                self.model,
                ids,
                keys.sampling_params,
                tokenizer=tokenizer,
                eos_token_ids=end_token_ids(tokenizer, module),
                uniforms=seeded_uniforms(range(len(ids)), keys.max_new_tokens, keys.seed),
                batch_size=batch_size,
            )
        return completions.texts(tokenizer)

    def save_model(
        self, folder: str | Path, *, merge_adapter: bool = False, max_shard_size: int = 5_000_000_000
    ) -> Path:
        """Writes the model with its tokenizer into the new or empty ``folder``, and returns its path: as the checkpoint
        engine `huggingface` does at any ZeRO stage, with ``merge_adapter`` and ``max_shard_size`` in bytes as there.

        It appears when it is whole. Raises `InputError` for a folder that holds something, `RecipeError` for a model
        that is not one of transformers, and `CheckpointError` when the disk refuses.
        """
        self._require_open("save_model")
        path, is_main = Path(folder).expanduser().absolute(), process_group.is_main()
        if collectives.broadcast_object(path.exists() and not (path.is_dir() and not any(path.iterdir()))):
            raise InputError(f"save_model: {path} exists and is no empty folder; choose another, or remove it")
        settings = {"merge_adapter": merge_adapter, "max_shard_size": max_shard_size}
        saver = HFCheckpointEngine(cast(TrainerView, self), HFCheckpointConfig(output_dir=path.parent, **settings))
        engines = self.trainable_engines
        saver.dry_run({role: engine.module for role, engine in engines.items()})
        temporary, failure = path.with_name(f".{path.name}.incomplete"), ""
        try:
            if is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            with torch.no_grad():
                saver.export(temporary, engines, path)
            if is_main:
                reset_permissions(temporary, list_files(temporary))
                shutil.rmtree(path, ignore_errors=True)
                temporary.rename(path)
        except OSError as error:
            failure = str(error)
        if failures := [one for one in collectives.all_gather_object(failure) if one]:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(f"save_model: {path} cannot be written: {failures[0]}")
        return path

    def _require_open(self, caller: str) -> None:
        if not self.engines:
            raise InputError(f"{caller}: the trainer is closed; call it before close()")


def _read_keys(settings: Mapping[str, object]) -> GenerationKeys:
    try:
        return GenerationKeys.model_validate(dict(settings))
    except ValidationError as error:
        problems = located(problems_of(error, GenerationKeys), Node({}))
        raise InputError(f"generate: {'; '.join(problems)}") from None
