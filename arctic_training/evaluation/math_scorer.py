"""The scorer `math`: whether two texts have the same mathematical value, however it is written."""

import threading

from pydantic import Field

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.evaluation.scorer import Scorer


class MathConfig(ComponentConfig):
    """Keys of the scorer `math`."""

    libraries = {"math_verify": "math-verify"}

    precision: int = Field(default=6, ge=0)
    """Digits after the point to which numbers have to agree."""


class MathScorer(Scorer[MathConfig]):
    """Compares the last answer in the text with the reference, both read as LaTeX or an expression by math-verify.

    They may be numbers, fractions, roots, sets, intervals and equations.
    """

    name = "math"

    def __call__(self, generated: str, reference: str) -> float:
        import math_verify

        # its time limits are signals, which only the main thread receives
        limit = 5 if threading.current_thread() is threading.main_thread() else None
        expected = math_verify.parse(reference, parsing_timeout=limit)
        expected = expected or math_verify.parse(f"${reference}$", parsing_timeout=limit)
        answer = math_verify.parse(generated, parsing_timeout=limit)
        precision = self.config.precision
        return float(math_verify.verify(expected, answer, float_rounding=precision, timeout_seconds=limit))
