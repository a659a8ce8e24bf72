"""The scorer `judge`: a language model behind an OpenAI-compatible endpoint says how good a completion is."""

import json
import re
import urllib.request
from string import Formatter

from pydantic import Field, field_validator, model_validator

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.evaluation.numbers import parse_numbers
from arctic_training.evaluation.scorer import Scorer

_FIELDS = {"problem", "generated", "reference"}
_PROMPT = """\
Question:
{problem}

Reference answer:
{reference}

Answer to be graded:
{generated}

How good is the answer, compared with the reference? Reply with a single number from 0 (wrong) to 10 (right)."""


class JudgeConfig(ComponentConfig):
    """Keys of the scorer `judge`."""

    url: str
    """Address of the endpoint, without ``/chat/completions``: ``http://localhost:8000/v1``."""
    model: str
    """Name of the model there."""
    prompt: str = _PROMPT
    """What the judge is asked, with ``{problem}``, ``{generated}`` and ``{reference}`` where these texts belong."""
    pattern: str = ""
    """Regular expression whose last match in the reply holds the score, in its first group if it has groups; empty:
    the last number of the reply."""
    best: HumanFloat = Field(default=10.0, gt=0)
    """The score of the best answer; scores are divided by it, and must not be above it, nor below 0."""
    max_tokens: HumanInt = Field(default=512, ge=1)
    """Longest reply in tokens."""
    api_key: str = ""
    """The key of the endpoint, as ``${env:NAME}``; empty: none is sent."""
    timeout: HumanFloat = Field(default=60.0, gt=0)
    """Seconds to wait for a reply. After that, or an error, the section's ``retries`` of evaluator or reward apply."""

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not re.match(r"https?://[^/]", url):
            raise ValueError(f"{url!r}: expected an address that begins with http:// or https://")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _check_texts(self) -> "JudgeConfig":
        try:
            fields = {name for _, name, _, _ in Formatter().parse(self.prompt) if name is not None}
            re.compile(self.pattern)
        except ValueError as error:
            raise ValueError(f"prompt: {error}") from None
        except re.error as error:
            raise ValueError(f"pattern: {self.pattern!r} is not a regular expression: {error}") from None
        if unknown := sorted(fields - _FIELDS):
            raise ValueError(f"prompt: there is no {{{unknown[0]}}}; write other braces twice")
        if "generated" not in fields:
            raise ValueError("prompt: {generated}, which is to be judged, is missing")
        return self


class JudgeScorer(Scorer[JudgeConfig]):
    """Asks a model at ``url`` for the score of each completion.

    A reply without a score is one that it does not judge; an endpoint that fails is asked again ``retries`` times.
    """

    name = "judge"
    needs_network = True

    def __call__(self, generated: str, reference: str) -> float | None:
        return self.score("", generated, reference)

    def score(self, problem: str, generated: str, reference: str) -> float | None:
        """Returns what the judge replies, divided by ``best``. Raises OSError or ValueError when the endpoint fails."""
        config = self.config
        question = config.prompt.format(problem=problem, generated=generated, reference=reference)
        reply = self._ask(question)
        if config.pattern:
            matches = [match[1] if match.re.groups else match[0] for match in re.finditer(config.pattern, reply)]
            numbers = parse_numbers(matches[-1] or "") if matches else []
        else:
            numbers = parse_numbers(reply)
        score = numbers[-1] / config.best if numbers else None
        return score if score is not None and 0 <= score <= 1 else None

    def _ask(self, question: str) -> str:
        config = self.config
        body = {
            "model": config.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": config.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
        request = urllib.request.Request(f"{config.url}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=config.timeout) as response:
            reply = json.load(response)
        try:
            return str(reply["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{config.url} replied without a message: {json.dumps(reply)[:200]}") from None
