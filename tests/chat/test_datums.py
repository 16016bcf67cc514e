"""Cutting, counting and shifting of examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.chat.datums import fit, to_datums, truncate
from tinkertools.chat.rendering import Example
from tinkertools.errors import DataError


def example(weights: list[float], first: int = 10) -> Example:
    return Example(np.arange(first, first + len(weights), dtype=np.int32), np.array(weights, np.float32))


def test_one_shift_and_weights_that_sum_to_one() -> None:
    datums = to_datums([example([0, 0, 1, 1]), example([0, 1, 0, 0, 1], 50)])
    assert datums[0].model_input.to_ints() == [10, 11, 12]
    assert datums[0].loss_fn_inputs["target_tokens"].tolist() == [11, 12, 13]
    assert datums[0].loss_fn_inputs["weights"].tolist() == [0, 0.25, 0.25]
    assert datums[1].model_input.to_ints() == [50, 51, 52, 53]
    assert datums[1].loss_fn_inputs["weights"].tolist() == [0.25, 0, 0, 0.25]
    assert datums[1].loss_fn_inputs["target_tokens"].dtype == "int64"
    assert datums[1].loss_fn_inputs["weights"].dtype == "float32"


@pytest.mark.parametrize(
    ("length", "kept"),
    [
        (8, [0, 0, 1, 1, 0, 0, 1, 1]),  # the whole second turn fits
        (7, [0, 0, 1, 1, 0, 0, 0]),  # its end does not: it is not trained
        (4, [0, 0, 1, 1]),
        (3, [0, 0, 0]),
    ],
)
def test_truncation_never_parts_a_turn_from_its_end(length: int, kept: list[float]) -> None:
    cut = truncate(example([0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1]), length)
    assert cut.weights.tolist() == kept
    assert cut.tokens.tolist() == list(range(10, 10 + length))


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=12), min_size=1, max_size=8), st.integers(2, 12)
)
def test_truncation_trains_whole_turns_only(drawn: list[list[float]], limit: int) -> None:
    examples = [example(weights) for weights in drawn]
    try:
        fitted = fit(examples, limit, "truncate")
    except DataError:
        assert not any(
            truncate(e, limit).trained_tokens if len(e.tokens) > limit else e.trained_tokens for e in examples
        )
        return
    assert len(fitted.examples) + fitted.untrained == len(examples)
    assert fitted.trained_tokens == sum(e.trained_tokens for e in fitted.examples)
    for one in fitted.examples:
        whole = example(next(w for w in drawn if len(w) >= len(one.weights) and _is_prefix(one, w, limit)))
        ends = np.flatnonzero(one.weights)
        assert one.trained_tokens > 0
        last = int(ends[-1])
        # Where the turn's last trained token stands, the whole example's turn ends as well.
        assert last + 1 == len(whole.weights) or not whole.weights[last + 1]


def _is_prefix(one: Example, weights: list[float], limit: int) -> bool:
    whole = example(weights)
    candidate = truncate(whole, limit) if len(weights) > limit else whole
    return bool(candidate.weights.tolist() == one.weights.tolist())


def test_too_long_is_an_error_that_names_the_conversation() -> None:
    examples = [example([0, 1]), example([0, 0, 1, 1])]
    with pytest.raises(DataError, match="conversation 2 has 4 tokens, more than the limit of 3") as caught:
        fit(examples, 3, "error")
    assert "--overlength drop" in str(caught.value.hint)
    dropped = fit(examples, 3, "drop")
    assert (len(dropped.examples), dropped.dropped, dropped.cut) == (1, 1, 0)
    assert (dropped.tokens, dropped.trained_tokens) == (2, 1)


def test_nothing_to_train_on_is_an_error() -> None:
    # The first token has nothing before it, so its weight trains nothing.
    with pytest.raises(DataError, match="no trained token in the data"):
        fit([example([0, 0]), example([1, 0])], 10, "error")
    with pytest.raises(DataError, match="1 conversations are too long"):
        fit([example([0, 1, 1])], 2, "drop")
