"""Cutting, counting and shifting of examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinker import types

from tinkertools.chat.datums import fit, to_datums, truncate
from tinkertools.chat.examples import IMAGE_TOKEN, Example, Image
from tinkertools.chat.rendering import RenderedData
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


END = 1000


def turns(*sizes: tuple[int, int], first: int = 10) -> Example:
    """Untrained and trained tokens in turn; each trained stretch ends with END."""
    weights = [weight for before, trained in sizes for weight in [0.0] * before + [1.0] * trained]
    one = example(weights, first)
    ends = [end - 1 for _, end in one.runs]
    one.tokens[ends] = END
    return one


def data(*examples: Example) -> RenderedData:
    return RenderedData(list(examples), np.arange(len(examples), dtype=np.int32))


@pytest.mark.parametrize(("length", "kept"), [(12, 12), (11, 8), (8, 8), (7, 4), (4, 4), (3, 0), (1, 0)])
def test_truncation_keeps_whole_turns(length: int, kept: int) -> None:
    whole = turns((2, 2), (2, 2), (2, 2))
    cut = truncate(whole, length, [END])
    assert cut.tokens.tolist() == whole.tokens[:kept].tolist()
    assert cut.weights.tolist() == whole.weights[:kept].tolist()


def test_answers_in_a_row_are_cut_between_them() -> None:
    whole = turns((2, 6))
    whole.tokens[4] = END
    assert truncate(whole, 7, [END]).tokens.tolist() == whole.tokens[:5].tolist()


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4), min_size=1, max_size=8),
    st.integers(2, 24),
)
def test_truncation_trains_whole_turns_only(drawn: list[list[tuple[int, int]]], limit: int) -> None:
    examples = [turns(*sizes) for sizes in drawn]
    try:
        fitted = fit(data(*examples), len(examples), limit, "truncate", [END])
    except DataError:
        assert all(sum(sizes[0]) > limit for sizes in drawn)
        return
    kept = iter(fitted.examples)
    lost = 0
    for sizes, whole in zip(drawn, examples, strict=True):
        ends = np.cumsum([before + trained for before, trained in sizes]).tolist()
        length = max([end for end in ends if end <= limit], default=0)
        if not length:
            continue
        one = next(kept)
        assert one.tokens.tolist() == whole.tokens[:length].tolist()
        assert one.weights.tolist() == whole.weights[:length].tolist()
        assert one.tokens[-1] == END
        lost += len(whole.tokens) - length
    assert next(kept, None) is None
    assert fitted.cut == sum(1 for sizes in drawn if sum(map(sum, sizes)) > limit >= sum(sizes[0]))
    assert fitted.cut_tokens == lost
    assert len(fitted.examples) + fitted.unfinished == len(examples)
    assert fitted.trained_tokens == sum(e.trained_tokens for e in fitted.examples)


def test_too_long_is_an_error_that_names_the_conversation() -> None:
    examples = RenderedData([example([0, 1]), example([0, 0, 1, 1])], np.array([0, 7], np.int32))
    with pytest.raises(DataError, match="conversation 8 has 4 tokens, more than the limit of 3") as caught:
        fit(examples, 8, 3, "error", [END])
    assert "--overlength drop" in str(caught.value.hint)
    dropped = fit(examples, 8, 3, "drop", [END])
    assert (len(dropped.examples), dropped.dropped, dropped.cut, dropped.untrained) == (1, 1, 0, 6)
    assert (dropped.tokens, dropped.trained_tokens) == (2, 1)
    assert len(fit(examples, 8, None, "error", [END]).examples) == 2


def test_nothing_to_train_on_is_an_error() -> None:
    # The first token has nothing before it, so its weight trains nothing.
    with pytest.raises(DataError, match="2 conversations have nothing to train"):
        fit(data(example([0, 0]), example([1, 0])), 2, 10, "error", [END])
    with pytest.raises(DataError, match="1 examples are too long"):
        fit(data(example([0, 1, 1])), 1, 2, "drop", [END])
    with pytest.raises(DataError, match="1 have no whole turn that fits"):
        fit(data(turns((2, 2))), 1, 3, "truncate", [END])


def test_images_stay_in_their_places() -> None:
    tokens = np.array([10, IMAGE_TOKEN, IMAGE_TOKEN, 13, 14, 15], np.int32)
    image = Image(1, 2, b"bytes", "jpeg")
    [datum] = to_datums([Example(tokens, np.array([0, 0, 0, 0, 1, 1], np.float32), (image,))])
    first, picture, last = datum.model_input.chunks
    assert isinstance(first, types.EncodedTextChunk) and first.tokens == [10]
    assert isinstance(picture, types.ImageChunk)
    assert (picture.data, picture.format, picture.expected_tokens) == (b"bytes", "jpeg", 2)
    assert isinstance(last, types.EncodedTextChunk) and last.tokens == [13, 14]
    # As the cookbook's create_rightshifted_model_input_and_leftshifted_targets: a place of an image has target 0.
    assert datum.loss_fn_inputs["target_tokens"].tolist() == [0, 0, 13, 14, 15]
    assert datum.loss_fn_inputs["weights"].tolist() == [0, 0, 0, 0.5, 0.5]
