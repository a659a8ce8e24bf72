"""Beginnings of sentences, pairs of continuations that a judge compared, and that judge: the rules of VADER."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field

from arctic_training import (
    ComponentConfig,
    DataSource,
    DataSourceConfig,
    HumanFloat,
    HumanInt,
    SamplingParams,
    Scorer,
    generate,
    load_pretrained,
    uniform,
)
from arctic_training.errors.types import MissingDependencyError

SUBJECTS = """
airport apartment bakery band beach bicycle book bridge brother bus cake car cat church city class coffee concert
dentist doctor dog dress exam factory farm film forest friend game garden guest haircut holiday hospital hotel house
interview island job journey kitchen lake laptop lecture letter library lunch market meeting mountain museum
neighbour news office painting park party phone picture play restaurant river road room school shop song soup speech
station storm street team teacher theatre town train trip village waiter weather wedding weekend winter zoo
"""
BEGINNINGS = (
    "The {} was",
    "I have to say that the {} was",
    "We all thought that the {} was",
    "After the {} I felt",
    "What I remember about the {} is that",
    "When I think of the {}, I",
)


class BeginningsConfig(DataSourceConfig):
    """Keys of the source."""

    subjects: HumanInt = Field(default=1000, ge=1)
    """Most subjects."""


class BeginningsSource(DataSource):
    """Beginnings of sentences as prompts; the subjects of one in four, by their hash, are held out.

    A completion in the data, a full stop, is never read.
    """

    name = "beginnings"
    config_type = BeginningsConfig

    def load(self, config: Any, split: str) -> Any:
        from datasets import Dataset

        return Dataset.from_list([{"prompt": text, "completion": "."} for text in beginnings(split, config.subjects)])


def beginnings(split: str, subjects: int) -> list[str]:
    """Returns the prompts of ``split`` with the first ``subjects`` of its subjects."""
    own = [one for one in SUBJECTS.split() if (hashlib.sha256(one.encode()).digest()[0] < 64) == (split != "train")]
    return [beginning.format(one) for one in own[:subjects] for beginning in BEGINNINGS]


class PairsConfig(BeginningsConfig):
    """Keys of the source."""

    policy: str
    """The model whose completions are compared."""
    pairs: HumanInt = Field(default=4, ge=1)
    """Pairs of each prompt."""
    margin: HumanFloat = Field(default=0.2, ge=0)
    """Pairs whose scores differ by less are dropped."""
    max_new_tokens: HumanInt = Field(default=16, ge=1)
    temperature: HumanFloat = Field(default=0.8, gt=0)
    batch_size: HumanInt = Field(default=64, ge=1)


class PairsSource(DataSource):
    """Two completions of a prompt that the policy samples; the judge prefers the more positive one."""

    name = "judged_pairs"
    config_type = PairsConfig

    def load(self, config: Any, split: str) -> Any:
        from datasets import Dataset

        prompts = [one for one in beginnings(split, config.subjects) for _ in range(2 * config.pairs)]
        model, tokenizer = load_policy(config.policy)
        uniforms = uniform(torch.arange(len(prompts)), config.max_new_tokens, seed=0)
        texts = generate(
            model,
            tokenizer(prompts)["input_ids"],
            SamplingParams(config.max_new_tokens, config.temperature),
            tokenizer=tokenizer,
            uniforms=uniforms,
            batch_size=config.batch_size,
        ).texts(tokenizer)
        return Dataset.from_list([*compared(prompts, texts, config.margin)])


@functools.cache
def load_policy(name: str) -> tuple[Any, Any]:
    """Returns the model and its tokenizer, which are loaded once for all splits."""
    return load_pretrained(name, dtype="fp32")


def compared(prompts: Sequence[str], texts: Sequence[str], margin: float) -> Iterator[dict[str, str]]:
    """Yields the pairs of a prompt and two texts, one after the other, that the judge prefers one of by ``margin``."""
    for n in range(0, len(texts), 2):
        rejected, chosen = sorted(texts[n : n + 2], key=sentiment)
        if sentiment(chosen) - sentiment(rejected) >= margin:
            yield {"prompt": prompts[n], "chosen": chosen, "rejected": rejected}


@functools.cache
def judge() -> Any:
    """Returns VADER. Raises `MissingDependencyError` without it."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise MissingDependencyError(
            "the judge is vaderSentiment, which is not installed; make install has it"
        ) from None
    return SentimentIntensityAnalyzer()


def sentiment(text: str) -> float:
    """Returns how positive a text is by the judge, from -1 to 1; 0 is neutral (Hutto and Gilbert 2014)."""
    return float(judge().polarity_scores(text)["compound"])


class PositiveScorer(Scorer[ComponentConfig]):
    """1 for a text that the judge calls positive: from 0.05 on, by its authors' threshold."""

    name = "positive"

    def __call__(self, generated: str, reference: str) -> float:
        return float(sentiment(generated) >= 0.05)


class DistinctScorer(Scorer[ComponentConfig]):
    """The share of distinct pairs of words among all in a row (distinct-2, Li et al. 2016), of many texts together."""

    name = "distinct"

    def __call__(self, generated: str, reference: str) -> float:
        return distinct([generated])

    def corpus_score(self, generated: Sequence[str], references: Sequence[str]) -> float:
        return distinct(generated)


def distinct(texts: Sequence[str]) -> float:
    """Returns the share of distinct pairs among the pairs of successive words of ``texts``; 0 without any."""
    pairs = [pair for text in texts for pair in pairwise(text.lower().split())]
    return len({*pairs}) / max(len(pairs), 1)
