"""The scorer `polynomial_equal`: whether two texts are the same polynomials, however they are written."""

from pydantic import Field

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.evaluation.scorer import Scorer
from arctic_training.symbolic.polynomials import FieldName, are_equal, check_polynomial, split_list


class PolynomialEqualConfig(ComponentConfig):
    """Keys of the scorer `polynomial_equal`."""

    field: FieldName = "QQ"
    """What coefficients are: ``ZZ``, ``QQ``, ``RR``, or ``GF(p)``, where ``-1`` and ``p - 1`` are one number."""
    separator: str = Field(default=" | ", min_length=1)
    """Separator of the polynomials of a text; all have to be equal, in their order."""
    tolerance: float = Field(default=1e-6, ge=0)
    """In ``RR``, the largest difference of two coefficients, relative to one above 1."""


class PolynomialEqualScorer(Scorer[PolynomialEqualConfig]):
    """Compares polynomials as formulas or in expanded form: ``x0*(x0 + 1)``, ``x0 + x0^2``, ``C1 E2 + C1 E1``."""

    name = "polynomial_equal"

    def __call__(self, generated: str, reference: str) -> float:
        """Returns 0 for a text that is no polynomial. Raises ValueError where the reference is none."""
        config = self.config
        answers, expected = (split_list(text, config.separator) for text in (generated, reference))
        for one in expected:
            check_polynomial(one, config.field)
        if len(answers) != len(expected):
            return 0.0
        pairs = zip(answers, expected, strict=True)
        try:
            return float(all(are_equal(*pair, config.field, config.tolerance) for pair in pairs))
        except ValueError:
            return 0.0
