"""What asking a model costs: the tokens that it counts, and dollars where the price of one is known."""

import math
from dataclasses import dataclass

from tinkertools.errors import UsageError

_PER = 1_000_000


@dataclass(frozen=True)
class TokenPrice:
    """Dollars for a million tokens that a model reads, and that it writes."""

    read: float
    written: float

    def of(self, tokens_in: int, tokens_out: int) -> float:
        """What so many tokens cost, in dollars."""
        return (tokens_in * self.read + tokens_out * self.written) / _PER


def parse_price(option: str, text: str) -> TokenPrice:
    """A price as an option such as `--judge-price` takes it, `IN,OUT`.

    Args:
        option: the option, which errors name.
        text: what the user typed.

    Raises:
        UsageError: it is none.
    """
    try:
        read, written = (float(part) for part in text.split(","))
    except ValueError:
        read = written = math.nan
    if not (0 <= read < math.inf and 0 <= written < math.inf):
        raise UsageError(
            f"{option} {text} is no price",
            hint=f"dollars for a million tokens read and for a million written, for example {option} 2.5,10",
        )
    return TokenPrice(read, written)
