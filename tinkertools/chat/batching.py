"""Which examples make which step: a function of the seed and the number of examples, and of nothing else."""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

from tinkertools.errors import DataError


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """A permutation of `range(count)` for an epoch (from 0).

    Sorted by a hash, so that it is the same under every version of Python and of every library.
    """
    keys = [hashlib.blake2b(f"{seed}/{epoch}/{i}".encode(), digest_size=16).digest() for i in range(count)]
    return tuple(sorted(range(count), key=keys.__getitem__))


@dataclass(frozen=True)
class Batches:
    """The batches of a run. Every example occurs once an epoch; an epoch's last batch may be smaller."""

    count: int
    batch: int
    seed: int
    unit: str = "conversations"

    def __post_init__(self) -> None:
        if self.batch > self.count:
            raise DataError(
                f"the batch of {self.batch} is larger than the data: {self.count} usable {self.unit}",
                hint=f"use --batch {max(1, min(self.count, 8))}, or more data",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps it takes to see every example once."""
        return math.ceil(self.count / self.batch)

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, that step `step` (from 1) belongs to."""
        return (step - 1) // self.steps_per_epoch + 1

    def at(self, step: int) -> tuple[int, ...]:
        """The indices of the examples of step `step`, from 1."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        return epoch_order(self.count, self.seed, epoch)[place * self.batch : (place + 1) * self.batch]
