"""Marks that several files of tests give in the same way."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], quick: int) -> list[Any]:
    """Cases of one kind, of which the first few are tried with every change; together, the others are slow."""
    return [case if i < quick else pytest.param(case, marks=pytest.mark.slow) for i, case in enumerate(cases)]
