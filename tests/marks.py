"""Marks that several files of tests give in the same way."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], quick: int) -> list[Any]:
    """Cases of one kind, of which a few, spread over all, are tried with every change; the others are slow together."""
    found = list(cases)
    return [
        case if i * quick % len(found) < quick else pytest.param(case, marks=pytest.mark.slow)
        for i, case in enumerate(found)
    ]
