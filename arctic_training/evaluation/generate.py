"""Let the model answer the evaluation samples, and count how many answers are right."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import Field, SerializeAsAny, field_validator

from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.component import AnyComponent, parse_component
from arctic_training.config.sections.numbers import HumanInt
from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.distributed import collectives, process_group
from arctic_training.distributed.heartbeat import record_heartbeat
from arctic_training.errors.types import InputError, ScoringError
from arctic_training.errors.user_traceback import user_traceback
from arctic_training.evaluation.evaluator import Evaluator
from arctic_training.evaluation.scorer import Scorer
from arctic_training.generation.prompts import (
    Prompt,
    decode_completion,
    end_tokens,
    generator,
    is_encoder_decoder,
    is_zero3,
    left_pad,
    pad_token,
    stop_tokens,
    without_router_logits,
)
from arctic_training.generation.retry import retry
from arctic_training.registry import numbered

_ROW = ("sample", "problem", "generated", "reference")
"""What a kept answer holds beside its scores."""


class GenerateConfig(ComponentConfig):
    scorers: Annotated[list[SerializeAsAny[ComponentConfig]], AnyComponent("scorer")] = Field(
        default_factory=lambda: cast(Any, ["exact_match"])
    )
    """What is asked of every answer: a name, a section with a type, or a list of them."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens after which an answer is cut off."""
    temperature: float = Field(default=0.0, ge=0)
    """0: always the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability; 1: from all."""
    stop: list[str] = []
    """Texts that end an answer, beside the end tokens of the model, the tokenizer and the samples."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts that are answered together, on each rank."""
    max_samples: HumanInt = Field(default=0, ge=0)
    """The first so many samples of each evaluation set; 0: all."""
    seed: int = Field(default=42, ge=0)
    """Of the choice among tokens, where the temperature is above 0."""
    retries: int = Field(default=2, ge=0)
    """How often a scorer is asked again when it raises, after 1, 2, 4, ... seconds. Then the run saves and ends."""
    save: bool = True
    """Keep every answer in ``generations/<evaluation set>`` of the run folder, as JSON lines; those of a second
    evaluator are in ``generations#2``."""

    @field_validator("scorers", mode="before")
    @classmethod
    def _read_scorers(cls, value: Any) -> Any:
        return [parse_component("scorer", one) for one in (value if isinstance(value, list) else [value])]


class GenerateEvaluator(Evaluator):
    """Measures ``<scorer>/<evaluation set>``: the mean score of the answers that the scorer judges, and under
    ``abstained/`` the share of those that it does not. The second scorer of a type is called ``<scorer>#2``."""

    name = "generate"
    config_type = GenerateConfig

    def __init__(self, config: GenerateConfig) -> None:
        super().__init__(config)
        labels = numbered((one.type for one in config.scorers), taken=_ROW)
        self.scorers = {
            label: Scorer.registered(one.type)(one) for label, one in zip(labels, config.scorers, strict=True)
        }

    def check(self, trainer: TrainerView) -> None:
        module = self._module(trainer)
        if is_lexer(trainer.tokenizer):
            stop_tokens(trainer.tokenizer, self.config.stop, "evaluators: 'generate': stop")
        for name, loader in trainer.eval_loaders.items():
            if not len(loader.dataset):
                continue
            first = Prompt.of(loader.dataset[0], f"{name}, sample 1", encoded=is_encoder_decoder(module))
            reference = decode_completion(trainer.tokenizer, first.target, [trainer.tokenizer.eos_token_id])
            for label, scorer in self.scorers.items():
                try:
                    _score(scorer, reference, reference)
                except Exception as error:
                    told = f"evaluators: 'generate': the scorer {label} fails on the reference of {name}, sample 1"
                    raise InputError(f"{told}:\n{user_traceback(error) or repr(error)}") from error

    def _module(self, trainer: TrainerView) -> Any:
        if trainer.tokenizer is None:
            raise InputError("evaluators: 'generate' needs a tokenizer, and this run has none")
        return generator(trainer.engines["model"], "evaluators: 'generate'")

    def __call__(self, trainer: TrainerView) -> dict[str, float]:
        module = self._module(trainer)
        measured: dict[str, float] = {}
        folders = numbered(name.replace("/", "_") for name in trainer.eval_loaders)
        for folder, (name, loader) in zip(folders, trainer.eval_loaders.items(), strict=True):
            answers = self._answer(trainer, module, name, loader.dataset)
            measured |= self._mean(answers, name)
            if self.config.save:
                self._save(answers, trainer, folder)
        return measured

    def _answer(self, trainer: TrainerView, module: Any, name: str, samples: Any) -> list[dict[str, Any]]:
        """This rank's share of the answers, scored. Every rank generates equally often, as ZeRO-3 requires."""
        count, rank, world = len(samples), process_group.rank(), process_group.world_size()
        count = min(count, self.config.max_samples or count)
        if not count:
            return []
        encoded = is_encoder_decoder(module)

        def question(n: int) -> Prompt:
            return Prompt.of(samples[n], f"{name}, sample {n + 1}", encoded=encoded)

        asked = {n: question(n) for n in range(rank, count, world)}
        order = sorted(asked, key=lambda n: len(asked[n].prompt), reverse=True)  # like lengths together: less padding
        texts, size = dict[int, str](), self.config.batch_size
        for start in range(0, -(-count // world), size):
            batch = order[start : start + size]
            questions = [asked[n] for n in batch] or [question(0)]
            texts |= zip(batch, self._generate(trainer, module, questions, start), strict=False)
        answers, failure = [], ""
        try:
            answers = [self._judge(trainer.tokenizer, asked[n], texts[n], f"{name}, sample {n + 1}") for n in texts]
        except ScoringError as error:
            failure = str(error)
        if failures := list(filter(None, collectives.all_gather_object(failure))):
            raise ScoringError(failures[0])
        return [{"sample": n + 1} | answer for n, answer in zip(texts, answers, strict=True)]

    def _generate(self, trainer: TrainerView, module: Any, questions: Sequence[Prompt], salt: int) -> list[str]:
        record_heartbeat("generate")
        tokenizer, config, device = trainer.tokenizer, self.config, trainer.device
        pad = pad_token(tokenizer)
        prompts, mask, start = left_pad([question.prompt for question in questions], pad, module)
        choice: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if config.temperature:
            torch.manual_seed(config.seed + 1_000_003 * process_group.rank() + salt)
            choice = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
        ends = end_tokens(tokenizer, module, [question.target for question in questions])
        if is_lexer(tokenizer):
            ends += stop_tokens(tokenizer, config.stop, "evaluators: 'generate': stop")
        elif config.stop:
            choice |= {"stop_strings": config.stop, "tokenizer": tokenizer}
        out = module.generate(
            input_ids=prompts.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=config.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=pad,
            synced_gpus=is_zero3(trainer.engines["model"]),
            **choice,
            **without_router_logits(module),
        )
        texts = [decode_completion(tokenizer, answer, ends) for answer in out[:, start:].tolist()]
        return texts if is_lexer(tokenizer) else [self._cut(text) for text in texts]

    def _cut(self, text: str) -> str:
        ends = [text.find(stop) for stop in self.config.stop if stop in text]
        return text[: min(ends)] if ends else text

    def _judge(self, tokenizer: Any, question: Prompt, text: str, where: str) -> dict[str, Any]:
        reference, scores = (
            decode_completion(tokenizer, question.target, [tokenizer.eos_token_id]),
            dict[str, float | None](),
        )
        for label, scorer in self.scorers.items():
            what = f"evaluators: 'generate': the scorer {label}"
            try:
                scores[label] = retry(partial(_score, scorer, text, reference), self.config.retries, what)
            except Exception as error:
                told = f"{what} fails for the answer {text[:80]!r} to {where}"
                raise ScoringError(f"{told}:\n{user_traceback(error) or repr(error)}") from error
        problem = tokenizer.decode(question.prompt, skip_special_tokens=False)
        return {"problem": problem, "generated": text, "reference": reference, **scores}

    def _mean(self, answers: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
        judged = [[answer[scorer] for answer in answers if answer[scorer] is not None] for scorer in self.scorers]
        counts = [[sum(scores), len(scores), len(answers)] for scores in judged]
        means: dict[str, float] = {}
        for scorer, told in zip(self.scorers, collectives.all_reduce(torch.tensor(counts).double()), strict=True):
            total, count, every = told.tolist()
            if count:
                means[f"{scorer}/{name}"] = total / count
            if count < every:
                means[f"abstained/{scorer}/{name}"] = 1 - count / every
        return means

    def _save(self, answers: list[dict[str, Any]], trainer: TrainerView, name: str) -> None:
        shares = collectives.all_gather_object(answers)
        if not process_group.is_main():
            return
        folder: Path = trainer.run_dir / self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = sorted((answer for share in shares for answer in share), key=lambda answer: answer["sample"])
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"update_{trainer.progress.step}.jsonl").write_text(text, encoding="utf-8")


def _score(scorer: Scorer, text: str, reference: str) -> float | None:
    score = scorer(text, reference)
    if score is not None and not math.isfinite(score):
        raise ValueError(f"{score} is no score; a number, or None where it does not judge, is wanted")
    return None if score is None else float(score)
