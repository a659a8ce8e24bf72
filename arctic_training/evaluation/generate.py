"""The evaluator `generate`: the model completes the prompts of the evaluation sets, and scorers judge the result."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, cast

import torch
from pydantic import Field, SerializeAsAny, field_validator

from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.component import AnyComponent, each, parse_component
from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.config.sections.types import HumanInt
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import InputError, ScoringError
from arctic_training.errors.user_traceback import user_traceback
from arctic_training.evaluation.evaluator import Evaluator
from arctic_training.evaluation.scorer import Scorer
from arctic_training.generation.config import GenerationKeys
from arctic_training.generation.generate import generate, require_generate
from arctic_training.generation.prompts import Prompt, is_encoder_decoder
from arctic_training.generation.sampling import seeded_uniforms
from arctic_training.generation.scoring import raise_on_all_ranks, retry
from arctic_training.generation.special_tokens import decode_completion, find_eos_token_ids, find_stop_token_ids
from arctic_training.metrics import parent_set
from arctic_training.registry import numbered
from arctic_training.tracker.samples import TextSamples

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROW = ("sample", "problem", "generated", "reference", "correct")
"""The keys of a saved completion beside its scores."""


class GenerateConfig(GenerationKeys):
    """Keys of the evaluator `generate`. Texts of ``stop`` are added to the end tokens of the samples too."""

    scorers: Annotated[list[SerializeAsAny[ComponentConfig]], AnyComponent("scorer")] = Field(
        default_factory=lambda: cast(Any, ["exact_match"])
    )
    """What scores every completion: a name, a section with a type, or a list of them."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts that each rank completes at once."""
    max_samples: HumanInt = Field(default=0, ge=0)
    """Use the first ``max_samples`` samples of each evaluation set; 0: all."""
    retries: int = Field(default=2, ge=0)
    """How often a scorer that raises is called again, after 1, 2, 4, ... seconds. Then the run saves and ends."""
    save: bool = True
    """Write every completion to ``generations/<evaluation set>`` of the run folder, as JSON lines: ``problem``,
    ``generated``, ``reference``, ``correct``, which says whether the first scorer gives 1, and every score; those of a
    second evaluator to ``generations#2``."""

    @field_validator("scorers", mode="before")
    @classmethod
    def _read_scorers(cls, value: object) -> list[ComponentConfig]:
        return each(value, partial(parse_component, "scorer"))


class GenerateEvaluator(Evaluator[GenerateConfig]):
    """Generates completions for the evaluation sets and scores them.

    Measures ``<scorer>/<evaluation set>``, the mean score of the completions that the scorer judges, or its score of
    all of them together, and under ``abstained/`` the share of those that it does not. The second scorer of a type is
    called ``<scorer>#2``.
    """

    name = "generate"
    tensor_parallel = True
    checks_without_data = True

    def __init__(self, config: GenerateConfig) -> None:
        super().__init__(config)
        scorers = [Scorer[ComponentConfig].registered(one.type)(one) for one in config.scorers]
        labels = numbered((one.label for one in scorers), taken=_ROW)
        self.scorers = dict(zip(labels, scorers, strict=True))

    def metrics(self, sets: Sequence[str]) -> list[str]:
        return [f"{kind}{scorer}/{name}" for name in sets for scorer in self.scorers for kind in ("", "abstained/")]

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `InputError` for arguments of scorers that cannot be used."""
        for scorer in self.scorers.values():
            scorer.check()

    def check(self, trainer: TrainerView) -> None:
        """Raises `InputError` for a model that cannot generate, a stop token that does not exist, or a scorer that
        fails on the first reference, and `DataError` for a first sample without prompt or reference."""
        module = self._module(trainer)
        if is_lexer(trainer.tokenizer):
            find_stop_token_ids(trainer.tokenizer, self.config.stop, "evaluators: 'generate': stop")
        for name, loader in trainer.eval_loaders.items():
            if not len(loader.dataset):
                continue
            where = f"{name}, sample 1"
            prompt = Prompt.from_sample(
                loader.dataset[0], f"evaluators: 'generate': {where}", encoder_decoder=is_encoder_decoder(module)
            )
            reference = _decode_reference(trainer.tokenizer, prompt)
            problem = _decode_problem(trainer.tokenizer, prompt)
            for label, scorer in self.scorers.items():
                if scorer.needs_network and not trainer.has_weights:
                    continue
                try:
                    _score(scorer, problem, reference, reference)
                except Exception as error:
                    what = f"the scorer {label} fails on the reference of {where}"
                    raise InputError(f"evaluators: 'generate': {what}{_cause(error)}") from error

    def _module(self, trainer: TrainerView) -> "PreTrainedModel":
        if trainer.tokenizer is None:
            raise InputError("evaluators: 'generate' needs a tokenizer, and this run has none")
        return require_generate(trainer, "evaluators: 'generate'")

    def __call__(self, trainer: TrainerView) -> dict[str, float]:
        """Raises `ScoringError`, on all ranks, when a scorer still fails after its retries."""
        module = self._module(trainer)
        sets, parents = dict[str, list[dict[str, Any]]](), dict[str, list[dict[str, Any]]]()
        folders = numbered(name.replace("/", "_") for name in trainer.eval_loaders)
        for folder, (name, loader) in zip(folders, trainer.eval_loaders.items(), strict=True):
            rows = sets[name] = self._scored_completions(trainer, module, name, loader.dataset)
            if parent := parent_set(name):
                parents.setdefault(parent, []).extend(rows)
            if self.config.save:
                self._save(rows, trainer, folder)
        metrics: dict[str, float] = {}
        for name, rows in {**parents, **sets}.items():
            metrics |= self._mean_scores(rows, name) | self._corpus_scores(rows, name, trainer.config.mesh.model)
        return metrics

    def _scored_completions(
        self, trainer: TrainerView, module: "PreTrainedModel", name: str, samples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Returns this rank's share of the completions with their scores. All ranks generate equally often, as ZeRO
        stage 3 requires. Raises `ScoringError` on all ranks."""
        copies = trainer.config.mesh.model  # ranks that divide a model generate together
        count, rank, world = len(samples), process_group.rank() // copies, process_group.world_size() // copies
        count = min(count, self.config.max_samples or count)
        if not count:
            return []

        def read(n: int) -> Prompt:
            where = f"{name}, sample {n + 1}"
            return Prompt.from_sample(samples[n], where, encoder_decoder=is_encoder_decoder(module))

        numbers = list(range(rank, count, world))
        filled = numbers + [0] * (-(-count // world) - len(numbers))
        prompts = [read(n) for n in filled]
        texts = self._complete(trainer, module, prompts, filled)[: len(numbers)]
        with raise_on_all_ranks():
            return [
                {"sample": n + 1} | self._row(trainer.tokenizer, prompt, text, f"{name}, sample {n + 1}")
                for n, prompt, text in zip(numbers, prompts, texts, strict=False)
            ]

    def _complete(
        self, trainer: TrainerView, module: "PreTrainedModel", prompts: Sequence[Prompt], numbers: Sequence[int]
    ) -> list[str]:
        """Returns the text of a completion of each prompt. ``numbers`` are those of the samples, from which the random
        numbers are made."""
        tokenizer, config = trainer.tokenizer, self.config
        ends = find_eos_token_ids(tokenizer, module, [prompt.reference_ids for prompt in prompts])
        if is_lexer(tokenizer):
            ends += find_stop_token_ids(tokenizer, config.stop, "evaluators: 'generate': stop")
        stop_strings = () if is_lexer(tokenizer) else tuple(config.stop)
        completions = generate(
            trainer.engines["model"],
            [prompt.prompt_ids for prompt in prompts],
            replace(config.sampling_params, stop_strings=stop_strings),
            tokenizer=tokenizer,
            eos_token_ids=ends,
            uniforms=seeded_uniforms(numbers, config.max_new_tokens, config.seed),
            batch_size=config.batch_size,
            model_defaults=True,
        )
        return completions.texts(tokenizer)

    def _row(self, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, text: str, where: str) -> dict[str, Any]:
        reference, scores = _decode_reference(tokenizer, prompt), dict[str, float | None]()
        problem = _decode_problem(tokenizer, prompt)
        for label, scorer in self.scorers.items():
            what = f"evaluators: 'generate': the scorer {label}"
            try:
                scores[label] = retry(partial(_score, scorer, problem, text, reference), self.config.retries, what)
            except Exception as error:
                what = f"{what} fails for the completion {short_repr(text)} of {where}"
                raise ScoringError(f"{what}{_cause(error)}") from error
        first = next(iter(scores.values()), None)
        correct = None if first is None else first >= 1
        return {"problem": problem, "generated": text, "reference": reference, "correct": correct, **scores}

    def _mean_scores(self, rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
        judged = [[row[scorer] for row in rows if row[scorer] is not None] for scorer in self.scorers]
        counts = torch.tensor([[sum(scores), len(scores), len(rows)] for scores in judged]).double()
        metrics: dict[str, float] = {}
        for scorer, sums in zip(self.scorers, collectives.all_reduce(counts).tolist(), strict=True):
            total, count, all_rows = sums
            if count:
                metrics[f"{scorer}/{name}"] = total / count
            if count < all_rows:
                metrics[f"abstained/{scorer}/{name}"] = 1 - count / all_rows
        return metrics

    def _corpus_scores(self, rows: Sequence[Mapping[str, Any]], name: str, copies: int) -> dict[str, float]:
        """Returns the scores of whole sets, of scorers that have such; as many ranks as ``copies`` have the same rows.
        Raises `ScoringError` on all ranks."""
        base = Scorer.corpus_score
        scorers = {label: one for label, one in self.scorers.items() if type(one).corpus_score is not base}
        metrics: dict[str, float] = {}
        for label, scorer in scorers.items():
            judged = [(row["sample"], row["generated"], row["reference"]) for row in rows if row[label] is not None]
            every = sorted(one for of_rank in collectives.all_gather_object(judged)[::copies] for one in of_rank)
            with raise_on_all_ranks():
                try:
                    value = scorer.corpus_score([one[1] for one in every], [one[2] for one in every]) if every else None
                except Exception as error:
                    what = f"evaluators: 'generate': the scorer {label} fails for the completions of {name}"
                    raise ScoringError(f"{what}{_cause(error)}") from error
                if value is not None:
                    metrics[f"{label}/{name}"] = value
        return metrics

    def _save(self, rows: list[dict[str, Any]], trainer: TrainerView, name: str) -> None:
        gathered = collectives.all_gather_object(rows)[:: trainer.config.mesh.model]
        if process_group.is_main():
            ordered = sorted((row for of_rank in gathered for row in of_rank), key=lambda row: row["sample"])
            TextSamples(ordered).write(trainer.run_dir / self.folder / name, trainer.progress.step)


def _decode_reference(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> str:
    return decode_completion(tokenizer, prompt.reference_ids, [tokenizer.eos_token_id])


def _decode_problem(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> str:
    return str(tokenizer.decode(prompt.prompt_ids, skip_special_tokens=False))


def _cause(error: Exception) -> str:
    """Returns the end of a message that names its cause: that of an `InputError`, of another error the traceback."""
    return f": {error}" if isinstance(error, InputError) else f":\n{user_traceback(error) or repr(error)}"


def _score(scorer: Scorer[ComponentConfig], problem: str, text: str, reference: str) -> float | None:
    score = scorer.score(problem, text, reference)
    if score is not None and not math.isfinite(score):
        raise ValueError(f"{score} is not a score; expected a number, or None for a completion that it does not judge")
    return None if score is None else float(score)
