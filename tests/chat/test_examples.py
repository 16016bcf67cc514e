"""Which messages are trained, and how examples of one conversation become fewer."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.chat.examples import (
    IMAGE_TOKEN,
    Example,
    Image,
    RenderError,
    changed_span,
    message_weights,
    saved_tokens,
    split_reasoning,
    trimmed,
    unite,
)
from tinkertools.config import TrainOnWhat
from tinkertools.errors import UsageError
from tinkertools.settings.reading import from_options


def example(tokens: list[int], weights: list[float], *images: Image) -> Example:
    return Example(np.asarray(tokens, np.int32), np.asarray(weights, np.float32), tuple(images))


CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "", "tool_calls": [{}]},
    {"role": "tool", "content": "d"},
    {"role": "assistant", "content": "e"},
]


@pytest.mark.parametrize(
    ("what", "weights"),
    [
        ("ALL_ASSISTANT_MESSAGES", [0, 0, 1, 0, 1, 0, 1]),
        ("LAST_ASSISTANT_MESSAGE", [0, 0, 0, 0, 0, 0, 1]),
        ("LAST_ASSISTANT_TURN", [0, 0, 0, 0, 1, 0, 1]),
        ("ALL_MESSAGES", [1, 1, 1, 1, 1, 1, 1]),
        ("ALL_USER_AND_SYSTEM_MESSAGES", [1, 1, 0, 1, 0, 0, 0]),
    ],
)
def test_which_messages_are_trained(what: TrainOnWhat, weights: list[float]) -> None:
    assert message_weights(CONVERSATION, what) == weights


def marked(**marks: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**message, **marks.get(f"m{i}", {})} for i, message in enumerate(CONVERSATION)]


def test_marks_decide_where_they_are_asked_for() -> None:
    marks: dict[str, dict[str, Any]] = {
        "m1": {"trainable": True},
        "m2": {"weight": 0.5},
        "m4": {"trainable": False, "weight": 3},
    }
    messages = marked(**marks, m6={"loss_weight": 2})
    assert message_weights(messages, "CUSTOMIZED") == [0, 1, 0.5, 0, 0, 0, 2]


def test_marks_are_neither_missed_nor_ignored() -> None:
    with pytest.raises(RenderError, match=r"messages\[4\]: has no 'trainable', 'weight' or 'loss_weight'"):
        message_weights(marked(m2={"weight": 1}), "CUSTOMIZED")
    with pytest.raises(RenderError, match=r"messages\[2\]: has 'weight', which ALL_MESSAGES would ignore"):
        message_weights(marked(m2={"weight": 0}), "ALL_MESSAGES")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("all_assistant_messages", "ALL_ASSISTANT_MESSAGES"),
        ("Last-Assistant-Turn", "LAST_ASSISTANT_TURN"),
        ("ALL_TEXT", "ALL_TOKENS"),
        ("all_tokens", "ALL_TOKENS"),
    ],
)
def test_any_letter_case(text: str, what: TrainOnWhat) -> None:
    assert from_options({"train_on_what": text}).values == {"train_on_what": what}


def test_an_unknown_one_is_refused() -> None:
    with pytest.raises(UsageError, match="--train-on-what is 'everything'") as caught:
        from_options({"train_on_what": "everything"})
    assert "LAST_ASSISTANT_MESSAGE" in caught.value.message


def test_examples_that_begin_alike_are_united() -> None:
    first = example([1, 2, 3], [0, 0, 1])
    second = example([1, 2, 3, 4, 5], [0, 0, 0, 0, 1])
    [united] = unite([first, second])
    assert united.tokens.tolist() == [1, 2, 3, 4, 5]
    assert united.weights.tolist() == [0, 0, 1, 0, 1]
    assert saved_tokens(united) == 3
    other = example([1, 2, 9, 4, 5], [0, 0, 0, 0, 1])
    assert [len(e.tokens) for e in unite([first, other, example([], [])])] == [3, 5]


def test_images_are_part_of_how_examples_begin() -> None:
    red, blue = Image(1, 2, b"red", "png"), Image(1, 2, b"blue", "png")
    first = example([1, IMAGE_TOKEN, IMAGE_TOKEN, 4], [0, 0, 0, 1], red)
    for image, count in ((red, 1), (blue, 2)):
        later = example([1, IMAGE_TOKEN, IMAGE_TOKEN, 4, 5, 6], [0, 0, 0, 0, 0, 1], image)
        assert len(unite([first, later])) == count


prefixes = st.lists(
    st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=4), min_size=1, max_size=5
)


@given(prefixes)
def test_uniting_keeps_what_is_trained_after_what(pieces: list[list[tuple[int, bool]]]) -> None:
    """The pairs of (everything before, token) that are trained are the same, each at least once."""
    tokens: list[int] = []
    examples = []
    for piece in pieces:
        history = len(tokens)
        tokens += [token for token, _ in piece]
        weights = [0.0] * history + [float(on) for _, on in piece]
        examples.append(example(list(tokens), weights))

    def trained(found: list[Example]) -> set[tuple[int, ...]]:
        return {tuple(e.tokens[: i + 1].tolist()) for e in found for i in np.flatnonzero(e.weights).tolist()}

    united = unite(examples)
    assert trained(united) == trained(examples)
    assert len(united) == 1


def test_what_follows_the_last_trained_token_is_cut_off() -> None:
    assert trimmed(example([1, 2, 3, 4], [0, 1, 0, 0])).tokens.tolist() == [1, 2]
    assert trimmed(example([1, 2], [0, 0])).tokens.tolist() == []


def test_an_image_is_never_cut_in_two() -> None:
    image = Image(1, 2, b"", "png")
    whole = example([1, IMAGE_TOKEN, IMAGE_TOKEN, 4], [0, 0, 0, 1], image)
    assert (whole.head(3).tokens.tolist(), whole.head(3).images) == ([1, IMAGE_TOKEN, IMAGE_TOKEN], (image,))
    assert (whole.head(2).tokens.tolist(), whole.head(2).images) == ([1], ())


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ({"content": "x"}, ("", "x")),
        ({"content": "x", "reasoning_content": "r"}, ("r", "x")),
        ({"content": "<think>\nr\n</think>\n\nx"}, ("r", "x")),
        ({"content": "<think></think>x"}, ("", "x")),
        ({"content": "<think>not closed"}, ("", "<think>not closed")),
        ({"content": "x <think>r</think>"}, ("", "x <think>r</think>")),
    ],
)
def test_reasoning_is_found(message: dict[str, Any], parts: tuple[str, str]) -> None:
    assert split_reasoning(message) == parts


@given(st.text(max_size=8), st.text(max_size=8), st.text(min_size=1, max_size=8))
def test_a_changed_span_is_where_the_change_is(before: str, after: str, inside: str) -> None:
    text, other = before + inside + after, before + "\uf8ff" + after
    assert changed_span(text, other) == (len(before), len(before) + len(inside))
