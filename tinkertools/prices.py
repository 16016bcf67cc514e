"""What training costs on a server: tokens times a model's price, from a table that ships and says how old it is."""

import math
from dataclasses import dataclass
from typing import Any

import orjson

from tinkertools.errors import UsageError
from tinkertools.shipped import PRICES

_PER = 1_000_000


@dataclass(frozen=True)
class Price:
    """What training a model costs.

    Attributes:
        per_million: for a million training tokens, masked ones too: a server computes all of them.
        currency: of that number.
        date: when it was so, as an ISO date; empty where the user gave the number.
        source: who says so, an address or words.
    """

    per_million: float
    currency: str
    date: str
    source: str


def price_of(base_model: str, override: float | None = None) -> Price | None:
    """The price of training a model: the one given, else that of the table; None where neither is known.

    Args:
        base_model: as the server names it; the table knows no other spelling.
        override: the user's own number, for a million training tokens.

    Raises:
        UsageError: the number given is no price.
    """
    table = _table()
    if override is not None:
        if not (math.isfinite(override) and override >= 0):
            raise UsageError(f"a price of {override} for a million tokens", hint="give a number of 0 or more")
        return Price(override, table["currency"], "", "your own number")
    known = table["train"].get(base_model)
    return None if known is None else Price(known, table["currency"], table["date"], table["source"])


def cost(tokens: int, price: Price) -> float:
    """What it costs to train on so many tokens, in the price's currency."""
    return tokens * price.per_million / _PER


def _table() -> dict[str, Any]:
    table: dict[str, Any] = orjson.loads(PRICES.read_bytes())
    return table
