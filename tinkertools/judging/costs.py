"""What asking a judge costs: the tokens that it counts, and dollars where the price of one is known."""

import math
from dataclasses import dataclass

from tinkertools.errors import UsageError

_PER = 1_000_000


@dataclass(frozen=True)
class JudgePrice:
    """Dollars for a million tokens that a judge reads, and that it writes."""

    read: float
    written: float

    def of(self, tokens_in: int, tokens_out: int) -> float:
        """What so many tokens cost, in dollars."""
        return (tokens_in * self.read + tokens_out * self.written) / _PER


def parse_price(text: str) -> JudgePrice:
    """A price as `--judge-price` takes it, `IN,OUT`.

    Raises:
        UsageError: it is none.
    """
    try:
        read, written = (float(part) for part in text.split(","))
    except ValueError:
        read = written = math.nan
    if not (0 <= read < math.inf and 0 <= written < math.inf):
        raise UsageError(
            f"--judge-price {text} is no price",
            hint="dollars for a million tokens read and for a million written, for example --judge-price 2.5,10",
        )
    return JudgePrice(read, written)
