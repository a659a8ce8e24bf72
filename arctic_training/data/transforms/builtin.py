"""The built-in row transforms: lists in another order or without all but their last element, expanded polynomials."""

from collections.abc import Sequence

from pydantic import Field, field_validator

from arctic_training.data.transforms.base import ColumnsConfig, Row, RowTransform, change_texts
from arctic_training.symbolic.polynomials import (
    FieldName,
    Order,
    is_variable,
    polynomial_ring,
    read_polynomial,
    split_list,
    write_expanded,
)


class ListConfig(ColumnsConfig):
    """Keys of the transforms of lists in a text."""

    separator: str = Field(default=" ", min_length=1)
    """Separator of the elements of the list."""

    def elements(self, text: str) -> Sequence[str]:
        """Returns the elements of the list, without white space around them."""
        return [part.strip() for part in text.split(self.separator if self.separator.strip() else None)]


class Reverse(RowTransform[ListConfig]):
    """The elements of a list in reverse order: ``3 8 7`` becomes ``7 8 3``."""

    name = "reverse"

    def __call__(self, row: Row) -> Row:
        join = self.config.separator.join
        return change_texts(row, self.config.columns, lambda text: join(reversed(self.config.elements(text))))


class LastElement(RowTransform[ListConfig]):
    """The last element of a list: ``3 8 7`` becomes ``7``."""

    name = "last_element"

    def __call__(self, row: Row) -> Row:
        return change_texts(row, self.config.columns, self._last)

    def _last(self, text: str) -> str:
        elements = self.config.elements(text)
        return elements[-1] if elements else ""


class ExpandPolynomialsConfig(ColumnsConfig):
    """Keys of the transform `expand_polynomials`."""

    columns: list[str] = Field(default=["problem", "answer"], min_length=1)
    """The columns that are changed; they hold polynomials."""
    variables: list[str] = Field(min_length=1)
    """The variables, in the order of their exponents: ``[x0, x1]``."""
    field: FieldName = "QQ"
    """What coefficients are: ``ZZ``, ``QQ``, ``RR``, or ``GF(p)``, whose residues are written from 0 to p - 1."""
    order: Order = "grevlex"
    """The monomial order, the largest term first."""
    separator: str = Field(default=" | ", min_length=1)
    """Separator of the polynomials of a text."""

    @field_validator("variables")
    @classmethod
    def _check_variables(cls, variables: list[str]) -> list[str]:
        for n, name in enumerate(variables):
            if not is_variable(name) or name in variables[:n]:
                raise ValueError(f"{name!r}: expected different names of letters and digits, such as x0")
        return variables


class ExpandPolynomials(RowTransform[ExpandPolynomialsConfig]):
    """Polynomials in expanded form: ``3*x0^2*x1 + 5`` becomes ``C3 E2 E1 + C5 E0 E0``."""

    name = "expand_polynomials"

    def __call__(self, row: Row) -> Row:
        return change_texts(row, self.config.columns, self._expand)

    def _expand(self, text: str) -> str:
        config = self.config
        ring = polynomial_ring(config.field, tuple(config.variables), config.order)
        parts = split_list(text, config.separator)
        return config.separator.join(write_expanded(read_polynomial(part, ring)) for part in parts)
