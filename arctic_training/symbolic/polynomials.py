"""Polynomials as texts: written as formulas or expanded, read from both, and compared.

A formula is ``3*x0^2*x1 + 5*x1``. The expanded form has a coefficient and all exponents in each term:
``C3 E2 E1 + C5 E0 E1``. Polynomials are elements of the rings of `sympy`.
"""

import ast
import keyword
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from math import comb, isqrt
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator

from arctic_training.errors.short_repr import short_repr

if TYPE_CHECKING:
    from sympy.polys.domains.domain import Domain
    from sympy.polys.rings import PolyElement, PolyRing

Order = Literal["lex", "grlex", "grevlex"]
"""A monomial order; the first variable is the largest."""

_PRIME_FIELD = re.compile(r"GF\(([0-9]{1,10})\)")
_MAX_PRIME = 2**31
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_TERM = re.compile(r"C(?P<coefficient>-?\d+(?:/\d+|\.\d+)?)(?P<exponents>(?:E\d+)+)", re.ASCII)
_EXPANDED = re.compile(rf"{_TERM.pattern}(?:\+C-?\d+(?:/\d+|\.\d+)?(?:E\d+)+)*", re.ASCII)
_MAX_CHARACTERS = 20_000
_MAX_TERMS = 5_000
"""Terms that multiplying out may make."""
_MAX_EXPONENT = 1_000
_MAX_BITS = 100_000
"""Bits of a coefficient that is raised to a power."""


def _check_field(field: str) -> str:
    if field in ("ZZ", "QQ", "RR"):
        return field
    match = _PRIME_FIELD.fullmatch(field)
    prime = int(match[1]) if match else 0
    if not match or not 2 <= prime < _MAX_PRIME or not all(prime % n for n in range(2, isqrt(prime) + 1)):
        raise ValueError(f"{field!r}: expected ZZ, QQ, RR, or GF(p) with a prime p below 2^31")
    return field


FieldName = Annotated[str, AfterValidator(_check_field)]
"""What coefficients are: integers ``ZZ``, fractions ``QQ``, decimal numbers ``RR``, or residues ``GF(p)``."""


def domain(field: str) -> "Domain":
    """Returns the domain of `sympy` that ``field``, a `FieldName`, names; residues are from 0 to p - 1."""
    from sympy import GF, QQ, RR, ZZ

    if match := _PRIME_FIELD.fullmatch(field):
        return GF(int(match[1]), symmetric=False)
    return {"ZZ": ZZ, "QQ": QQ, "RR": RR}[field]


@lru_cache(maxsize=64)
def polynomial_ring(field: str, variables: tuple[str, ...], order: Order = "grevlex") -> "PolyRing":
    """Returns the ring of polynomials over ``field`` in ``variables``."""
    from sympy import Symbol
    from sympy.polys.rings import PolyRing

    return PolyRing([Symbol(name) for name in variables], domain(field), order)


def variable_names(count: int) -> tuple[str, ...]:
    """Returns the names of ``count`` variables: ``x0``, ``x1``, ..."""
    return tuple(f"x{number}" for number in range(count))


def write_formula(polynomial: "PolyElement") -> str:
    """Returns ``3*x0^2*x1 - x1 + 5``, the largest monomial first; 0 is ``0``."""
    text = ""
    for monomial, coefficient in _terms(polynomial):
        powers = zip(polynomial.ring.symbols, monomial, strict=True)
        factors = [f"{symbol.name}^{power}" if power > 1 else symbol.name for symbol, power in powers if power]
        size = coefficient.removeprefix("-")
        product = "*".join(factors if factors and size == "1" else [size, *factors])
        sign = "-" if coefficient.startswith("-") else "+"
        text += f" {sign} {product}" if text else product if sign == "+" else f"-{product}"
    return text or "0"


def write_expanded(polynomial: "PolyElement") -> str:
    """Returns ``C3 E2 E1 + C-1 E0 E1 + C5 E0 E0``, the largest monomial first; 0 is ``C0 E0 E0``."""
    terms = _terms(polynomial) or [((0,) * polynomial.ring.ngens, "0")]
    return " + ".join(" ".join([f"C{value}", *(f"E{power}" for power in powers)]) for powers, value in terms)


def _terms(polynomial: "PolyElement") -> list[tuple[tuple[int, ...], str]]:
    """Returns exponents and coefficient of each term, the largest monomial first, without those that round to 0."""
    numbers = polynomial.ring.domain
    write = _decimal if numbers.is_RealField else (lambda value: str(int(value))) if numbers.is_FiniteField else str
    terms = [(tuple(map(int, powers)), write(value)) for powers, value in polynomial.terms()]
    return [(powers, value) for powers, value in terms if value != "0"]


def _decimal(value: object) -> str:
    text = f"{float(value):.9f}".rstrip("0").rstrip(".")  # type: ignore[arg-type]  # a number of mpmath
    return "0" if text == "-0" else text


def read_polynomial(text: str, ring: "PolyRing") -> "PolyElement":
    """Returns the polynomial that ``text`` is: a formula of ``+ - * / ^`` and brackets, or the expanded form.

    White space means nothing: groups of digits are one number. Raises ValueError for any other text, one with other
    variables than those of ``ring``, and one that is too large when it is multiplied out.
    """
    from sympy.polys.polyerrors import BasePolynomialError

    dense = "".join(text.split())
    try:
        if _EXPANDED.fullmatch(dense):
            return _read_expanded(dense, ring)
        if not dense or len(dense) > _MAX_CHARACTERS or "**" in dense:
            raise ValueError("it is empty, too long, or has **")
        return _value(ast.parse(dense.replace("^", "**"), mode="eval").body, ring)
    except (ValueError, SyntaxError, ArithmeticError, RecursionError, MemoryError, BasePolynomialError) as error:
        raise ValueError(f"{short_repr(text)} is no polynomial over {ring.domain}: {error}") from None


def variables_in(texts: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of the variables in polynomials, sorted; at least one."""
    names: set[str] = set()
    for text in texts:
        dense = "".join(text.split())
        if _EXPANDED.fullmatch(dense):
            names.update(*(variable_names(len(_powers(term))) for term in _TERM.finditer(dense)))
        else:
            names.update(_NAME.findall(dense))
    return tuple(sorted(names)) or variable_names(1)


def check_polynomial(text: str, field: str) -> None:
    """Raises ValueError for a text that `read_polynomial` does not read as a polynomial over ``field``."""
    read_polynomial(text, polynomial_ring(field, variables_in([text])))


def are_equal(first: str, second: str, field: str, tolerance: float) -> bool:
    """Returns whether two texts are one polynomial over ``field``; see `read_polynomial`.

    Over ``RR``, coefficients may differ by ``tolerance``, relative to those of ``second`` above 1. Raises ValueError.
    """
    ring = polynomial_ring(field, variables_in([first, second]))
    one, other = read_polynomial(first, ring), read_polynomial(second, ring)
    if field != "RR":
        return bool(one == other)
    return all(abs(value) <= tolerance * max(1, abs(other.get(powers, 0))) for powers, value in (one - other).items())


def _read_expanded(text: str, ring: "PolyRing") -> "PolyElement":
    total = ring.zero
    for term in _TERM.finditer(text):
        powers = _powers(term)
        if len(powers) != ring.ngens:
            raise ValueError(f"a term has {len(powers)} exponents, and there are {ring.ngens} variables")
        total += ring.term_new(powers, _constant(Fraction(term["coefficient"]), ring))
    return total


def _powers(term: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(power) for power in term["exponents"].split("E")[1:])


def _value(node: ast.expr, ring: "PolyRing") -> "PolyElement":
    """Returns the polynomial of a formula's syntax tree. Long sums, which are deep trees, are gone through in a loop.

    Raises ValueError for what is no part of a polynomial, and the errors of `sympy` and of arithmetic.
    """
    total = ring.zero
    while isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
        right = _value(node.right, ring)
        total += right if isinstance(node.op, ast.Add) else -right
        node = node.left
    return total + _product(node, ring)


def _product(node: ast.expr, ring: "PolyRing") -> "PolyElement":
    match node:
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            one, other = _value(left, ring), _value(right, ring)
            if len(one) * len(other) > _MAX_TERMS:
                raise ValueError("it is too large")
            return one * other
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            divisor = _value(right, ring)
            if not divisor.is_ground:
                raise ValueError("it divides by a polynomial")
            return _divided(_value(left, ring), divisor, ring)
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
            return _power(_value(left, ring), power)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, ring)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, ring)
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return ring.ground_new(_constant(Fraction(str(value)), ring))
        case ast.Name(id=name) if name in (names := [symbol.name for symbol in ring.symbols]):
            return ring.gens[names.index(name)]
    raise ValueError(f"{ast.unparse(node)[:50]} is no part of one")


def _divided(polynomial: "PolyElement", divisor: "PolyElement", ring: "PolyRing") -> "PolyElement":
    value = divisor.coeff(1)
    if not value:
        raise ValueError("it divides by 0")
    return ring.from_dict({powers: ring.domain.exquo(one, value) for powers, one in polynomial.items()})


def _power(base: "PolyElement", power: int) -> "PolyElement":
    bits = max((len(str(value)) * 4 for value in base.values()), default=0)
    if power > _MAX_EXPONENT or power * bits > _MAX_BITS or comb(power + len(base) - 1, power) > _MAX_TERMS:
        raise ValueError("it is too large")
    return base**power


def _constant(value: Fraction, ring: "PolyRing") -> object:
    """Returns a number of the domain. Raises an error of `sympy` for a fraction that is not in it."""
    numbers = ring.domain
    if numbers.is_RealField:
        return numbers.convert(float(value))
    return numbers.exquo(numbers.convert(value.numerator), numbers.convert(value.denominator))


def is_variable(name: str) -> bool:
    """Returns whether a variable can have that name."""
    return _NAME.fullmatch(name) is not None and not keyword.iskeyword(name)


def split_list(text: str, separator: str) -> Sequence[str]:
    """Returns the polynomials of a text that ``separator`` parts, without white space around them."""
    return [part.strip() for part in text.split(separator.strip())]
