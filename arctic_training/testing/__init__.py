"""Checks for the tests of a trainer, a factory or a callback: they run a recipe, and raise AssertionError."""

from arctic_training.testing.cut import check_cut
from arctic_training.testing.resume import check_resume

__all__ = ["check_cut", "check_resume"]
