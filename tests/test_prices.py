"""What training costs on a server."""

import datetime
import math

import orjson
import pytest

from tinkertools import shipped
from tinkertools.errors import UsageError
from tinkertools.prices import Price, cost, price_of


def test_a_known_model_has_the_price_of_the_table_and_its_date() -> None:
    table = orjson.loads(shipped.PRICES.read_bytes())
    assert price_of("Qwen/Qwen3-8B") == Price(0.44, "USD", table["date"], table["source"])


def test_the_number_given_wins() -> None:
    expected = Price(0.25, "USD", "", "your own number")
    assert price_of("Qwen/Qwen3-8B", 0.25) == price_of("nobody/knows-it", 0.25) == expected
    free = price_of("Qwen/Qwen3-8B", 0.0)
    assert free is not None
    assert cost(10**9, free) == 0


@pytest.mark.parametrize("name", ["nobody/knows-it", "qwen/qwen3-8b", "Qwen3-8B", "/models/Qwen3-8B", ""])
def test_of_no_other_name_a_price_is_known(name: str) -> None:
    assert price_of(name) is None


@pytest.mark.parametrize("number", [-0.1, math.nan, math.inf])
def test_what_is_no_price_is_refused(number: float) -> None:
    with pytest.raises(UsageError, match=r"a price of -?[a-z\d.]+ for a million tokens"):
        price_of("Qwen/Qwen3-8B", number)


def test_the_cost_is_tokens_times_price() -> None:
    assert cost(2_500_000, Price(0.44, "USD", "", "")) == pytest.approx(1.10)
    assert cost(0, Price(0.44, "USD", "", "")) == 0


def test_the_table_says_how_old_it_is_and_what_it_holds() -> None:
    # A wheel takes all of `data/` along.
    assert shipped.PRICES.parent == shipped.DATA
    table = orjson.loads(shipped.PRICES.read_bytes())
    assert table.keys() == {"date", "source", "note", "currency", "unit", "train"}
    assert datetime.date(2026, 7, 17) <= datetime.date.fromisoformat(table["date"]) <= datetime.date.today()
    assert table["source"].startswith("https://")
    assert table["currency"] == "USD"
    assert table["unit"] == "million training tokens"
    assert table["train"]
    for name, price in table["train"].items():
        assert name.count("/") == 1
        assert isinstance(price, float)
        assert 0 < price < 100
