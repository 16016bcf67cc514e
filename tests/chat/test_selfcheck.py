"""The self-check lets what is right pass, and stops every way of being wrong that it is for."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tinkertools.chat.conversations import Conversation
from tinkertools.chat.examples import Example
from tinkertools.chat.rendering import RenderedData, load_renderer, render_all
from tinkertools.chat.selfcheck import check
from tinkertools.config import TrainOnWhat
from tinkertools.errors import DataError
from tinkertools.shipped import STARTER_MODEL

CONVERSATIONS: list[Conversation] = [
    {
        "messages": [
            {"role": "user", "content": f"What is {i} plus 1?"},
            {"role": "assistant", "content": f"It is {i + 1}."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes."},
        ]
    }
    for i in range(40)
]
STARTER = load_renderer(str(STARTER_MODEL))


@pytest.mark.parametrize("model", [str(STARTER_MODEL), "Qwen/Qwen3-8B", "openai/gpt-oss-20b", "zai-org/GLM-5.2"])
@pytest.mark.parametrize("what", ["ALL_ASSISTANT_MESSAGES", "LAST_ASSISTANT_TURN", "ALL_MESSAGES", "ALL_TOKENS"])
def test_what_is_right_passes(model: str, what: TrainOnWhat) -> None:
    renderer = load_renderer(model, "auto", what)
    assert check(renderer, CONVERSATIONS, render_all(renderer, CONVERSATIONS, 1), None) == 16
    assert check(renderer, CONVERSATIONS[:3], render_all(renderer, CONVERSATIONS[:3], 1), 300_000) == 3


def reweighted(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Example], Example]:
    return lambda example: replace(example, weights=change(example.weights).astype(np.float32))


def without_ends(weights: np.ndarray) -> np.ndarray:
    return np.where((weights != 0) & (np.append(weights[1:], 0) == 0), 0, weights)


WRONG: dict[str, tuple[Callable[[Example], Example], str]] = {
    "trained one token too early": (
        reweighted(lambda w: np.maximum(w, np.append(w[1:], 0))),
        r"\d+ tokens are trained, but the answers have \d+",
    ),
    "trained one token too late": (
        reweighted(lambda w: w * np.append(0, w[:-1])),
        r"the tokens before the answer in messages\[1\] are not the prompt that it would be sampled with",
    ),
    "the end is not trained": (
        reweighted(without_ends),
        r"the answer in messages\[1\] is not trained up to its end-of-turn token",
    ),
    "nothing is trained": (
        reweighted(np.zeros_like),
        r"the tokens before the answer in messages\[1\] are not the prompt",
    ),
    "everything is trained": (reweighted(np.ones_like), r"\d+ tokens are trained, but the answers have \d+"),
    "another prompt": (
        lambda e: replace(e, tokens=np.append(e.tokens[:1], e.tokens), weights=np.append(np.float32(0), e.weights)),
        r"the tokens before the answer in messages\[1\] are not the prompt",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_stops(name: str) -> None:
    change, words = WRONG[name]
    right = render_all(STARTER, CONVERSATIONS, 1)
    wrong = RenderedData([change(example) for example in right.examples], right.origins)
    with pytest.raises(DataError, match=rf"the self-check failed on conversation 1: {words}") as caught:
        check(STARTER, CONVERSATIONS, wrong, None)
    assert "What is 0 plus 1?" in caught.value.message  # the example is shown
    assert "--renderer" in str(caught.value.hint)


def test_another_text_is_noticed() -> None:
    right = render_all(STARTER, CONVERSATIONS[:1], 1)
    other: Conversation = {"messages": [dict(message) for message in CONVERSATIONS[0]["messages"]]}
    other["messages"][3]["content"] = "No."
    with pytest.raises(DataError, match=r"the trained tokens of messages\[3\] do not give back its text, but 'Yes\."):
        check(STARTER, [other], right, None)


def test_a_lost_conversation_is_noticed() -> None:
    right = render_all(STARTER, CONVERSATIONS[:2], 1)
    with pytest.raises(DataError, match="the self-check failed on conversation 2: the tokens before the answer"):
        check(STARTER, CONVERSATIONS[:2], RenderedData(right.examples[:1], right.origins[:1]), None)


def test_two_beginnings_are_noticed() -> None:
    renderer = load_renderer("deepseek-ai/DeepSeek-V3.1")
    right = render_all(renderer, CONVERSATIONS[:1], 1)
    doubled = replace(
        right.examples[0],
        tokens=np.append(right.examples[0].tokens[:1], right.examples[0].tokens),
        weights=np.append(np.float32(0), right.examples[0].weights),
    )
    with pytest.raises(DataError, match="it begins with two beginning-of-sequence tokens"):
        check(renderer, CONVERSATIONS[:1], RenderedData([doubled], right.origins), None)


def test_tokens_that_the_model_does_not_have() -> None:
    renderer = load_renderer("Qwen/Qwen3-8B")
    data = render_all(renderer, CONVERSATIONS[:1], 1)
    with pytest.raises(
        DataError, match=r"conversation 1 has token 151668, but the model knows only 2,048 tokens: qwen3"
    ):
        check(renderer, CONVERSATIONS[:1], data, 2048)
