"""Batches: every example once an epoch, in an order that the seed alone decides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.chat.batching import Batches, epoch_order
from tinkertools.errors import DataError


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 3), st.integers(1, 3))
def test_every_example_occurs_once_an_epoch(count: int, batch: int, seed: int, epochs: int) -> None:
    if batch > count:
        with pytest.raises(DataError, match=f"the batch of {batch} is larger than the data: {count} usable"):
            Batches(count, batch, seed)
        return
    batches = Batches(count, batch, seed)
    for epoch in range(epochs):
        steps = range(epoch * batches.steps_per_epoch + 1, (epoch + 1) * batches.steps_per_epoch + 1)
        seen = [batches.at(step) for step in steps]
        assert sorted(i for indices in seen for i in indices) == list(range(count))
        assert all(len(indices) == batch for indices in seen[:-1])
        assert {batches.epoch_of(step) for step in steps} == {epoch + 1}


def test_the_order_is_a_promise() -> None:
    # These numbers must never change: a resumed run relies on them.
    assert epoch_order(10, seed=0, epoch=0) == (7, 0, 9, 1, 5, 3, 4, 8, 2, 6)
    assert epoch_order(10, seed=0, epoch=1) != epoch_order(10, seed=0, epoch=0)
    assert epoch_order(10, seed=1, epoch=0) != epoch_order(10, seed=0, epoch=0)
