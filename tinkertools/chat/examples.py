"""What a training example is, and which messages of a conversation are trained.

The rule: for each trained turn, the tokens before its first trained token are the generation prompt for that history;
its trained tokens are what the model must emit, the end-of-turn token included; every other weight is 0.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinkertools.chat.conversations import FLAGS
from tinkertools.config import TrainOnWhat

Tokens = npt.NDArray[np.int32]
Weights = npt.NDArray[np.float32]

# Stands in `tokens` where an image is; no tokenizer has it, so it cannot be taken for a word.
IMAGE_TOKEN = -1


class RenderError(Exception):
    """Why a conversation has no right mask with this renderer; it names the turn."""


@dataclass(frozen=True)
class Image:
    """An image among the tokens: it takes `length` places from `start`, where `tokens` holds IMAGE_TOKEN."""

    start: int
    length: int
    data: bytes
    format: str


@dataclass(frozen=True)
class Prompt:
    """Tokens (and images) after which the model goes on."""

    tokens: Tokens
    images: tuple[Image, ...] = ()


@dataclass(frozen=True)
class Example:
    """Tokens and their weights in the loss, not shifted: `weights[i]` says how much `tokens[i]` is to be learnt."""

    tokens: Tokens
    weights: Weights
    images: tuple[Image, ...] = ()

    @property
    def trained_tokens(self) -> int:
        """How many tokens are learnt. The first token has nothing before it to be predicted from."""
        return int(np.count_nonzero(self.weights[1:]))

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Start and end of each stretch of trained tokens."""
        trained = np.concatenate(([False], self.weights != 0, [False]))
        borders = np.flatnonzero(trained[1:] != trained[:-1]).tolist()
        return list(zip(borders[::2], borders[1::2], strict=True))

    def head(self, length: int) -> "Example":
        """The first `length` tokens; an image that would be cut goes as a whole, with what follows it."""
        for image in self.images:
            if image.start < length < image.start + image.length:
                length = image.start
        images = tuple(image for image in self.images if image.start < length)
        return Example(self.tokens[:length], self.weights[:length], images)


def message_weights(messages: Sequence[dict[str, Any]], what: TrainOnWhat) -> list[float]:
    """The weight of each message, with the meanings of the Tinker cookbook's `TrainOnWhat` (renderers/base.py).

    `ALL_TOKENS` is not decided by message: there every token counts.

    Raises:
        RenderError: messages are marked and `what` would ignore it, or are not marked where it needs them to be.
    """
    roles = [message["role"] for message in messages]
    if what == "CUSTOMIZED":
        return [_marked_weight(i, message) for i, message in enumerate(messages)]
    for i, message in enumerate(messages):
        if marks := [flag for flag in FLAGS if flag in message]:
            raise RenderError(
                f"messages[{i}]: has '{marks[0]}', which {what} would ignore: add --train-on-what CUSTOMIZED to obey "
                "such marks, or remove them"
            )
    if what in ("ALL_MESSAGES", "ALL_TOKENS"):
        return [1.0] * len(messages)
    if what == "ALL_USER_AND_SYSTEM_MESSAGES":
        return [float(role in ("user", "system", "developer")) for role in roles]
    first = 0
    if what == "LAST_ASSISTANT_MESSAGE":
        first = max((i for i, role in enumerate(roles) if role == "assistant"), default=len(roles))
    elif what == "LAST_ASSISTANT_TURN":
        first = max((i for i, role in enumerate(roles) if role == "user"), default=-1) + 1
    return [float(role == "assistant" and i >= first) for i, role in enumerate(roles)]


def _marked_weight(i: int, message: dict[str, Any]) -> float:
    if not any(flag in message for flag in FLAGS):
        if message["role"] != "assistant":
            return 0.0
        raise RenderError(
            f"messages[{i}]: has no 'trainable', 'weight' or 'loss_weight', one of which CUSTOMIZED needs in every "
            "assistant message"
        )
    if not message.get("trainable", True):
        return 0.0
    return float(message.get("weight", message.get("loss_weight", 1.0)))


def unite(examples: Sequence[Example]) -> list[Example]:
    """The examples of one conversation, less the empty ones and those whose tokens a later one begins with.

    That one takes over their weights: what is trained after which tokens stays the same, and with it the gradient;
    the shared tokens are paid for once.
    """
    kept: list[Example] = []
    for example in examples:
        if not len(example.tokens):
            continue
        if kept and _begins_with(example, kept[-1]):
            weights, shorter = example.weights, kept.pop().weights
            weights = np.concatenate((np.maximum(weights[: len(shorter)], shorter), weights[len(shorter) :]))
            kept.append(Example(example.tokens, weights, example.images))
        else:
            kept.append(example)
    return kept


def _begins_with(longer: Example, shorter: Example) -> bool:
    length = len(shorter.tokens)
    return (
        np.array_equal(longer.tokens[:length], shorter.tokens)
        and longer.images[: len(shorter.images)] == shorter.images
    )


def saved_tokens(example: Example) -> int:
    """Tokens that are not paid for because several trained turns share the example, instead of one example each."""
    return sum(end for _, end in example.runs[:-1])


# Stands in place of a message's text to find out where the text goes: no text begins or ends with it.
STAND_IN = "\uf8ff"


def changed_span(text: str, other: str) -> tuple[int, int]:
    """The span of `text` outside of which it is the same as `other`: where a message stands, if only it was changed."""
    shorter = min(len(text), len(other))
    start = _largest(shorter, lambda length: text[:length] == other[:length])
    kept = _largest(shorter - start, lambda length: text[len(text) - length :] == other[len(other) - length :])
    return start, len(text) - kept


def _largest(limit: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `limit` for which something holds that, once it fails, fails for all larger ones."""
    return bisect_left(range(1, limit + 1), True, key=lambda length: not holds(length))


def with_stand_in(messages: Sequence[dict[str, Any]], i: int) -> list[dict[str, Any]]:
    """The messages with the content of one replaced."""
    return [{**message, "content": STAND_IN} if j == i else message for j, message in enumerate(messages)]


def texts_of(message: dict[str, Any]) -> Iterator[str]:
    """The texts of a message's content, which is a text or a list of parts."""
    content = message["content"]
    if isinstance(content, str):
        yield content
    else:
        yield from (part["text"] for part in content if part["type"] == "text")


def image_parts(messages: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each image of a conversation with the name of its place, such as `messages[0].content[1]`."""
    for i, message in enumerate(messages):
        if isinstance(message["content"], list):
            for j, part in enumerate(message["content"]):
                if part["type"] != "text":
                    yield f"messages[{i}].content[{j}]", part


def trimmed(example: Example) -> Example:
    """The example up to its last trained token: what follows teaches nothing."""
    if len(example.weights) and example.weights[-1]:
        return example
    runs = example.runs
    return example.head(runs[-1][1]) if runs else example.head(0)


def split_reasoning(message: dict[str, Any]) -> tuple[str, str]:
    """The reasoning of an assistant message and the rest of its text, whether it has a field or stands in `<think>`.

    The text after `</think>` loses the newlines that the format puts there, as chat templates do (Qwen3's, GLM's).
    """
    content: str = message["content"]
    if "reasoning_content" in message:
        return message["reasoning_content"], content
    if content.lstrip().startswith("<think>") and "</think>" in content:
        reasoning, rest = content.lstrip().removeprefix("<think>").split("</think>", 1)
        return reasoning.strip("\n"), rest.lstrip("\n")
    return "", content
