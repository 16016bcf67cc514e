"""Preferences become pairs of examples: two answers to one prompt, as tokens and weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tinkertools.chat.conversations import Conversation, Message
from tinkertools.chat.examples import Example
from tinkertools.chat.preferences import Preference
from tinkertools.chat.rendering import RenderedData, Renderer, explain_failures, render_all
from tinkertools.chat.selfcheck import check
from tinkertools.config import Overlength, TrainOnWhat
from tinkertools.errors import DataError

# What the renderer of pairs is loaded with: which messages are answers is marked in them.
TRAIN_PAIRS_ON: TrainOnWhat = "CUSTOMIZED"


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, rendered.

    Attributes:
        chosen: the prompt and the better answer; weight 1 on each token that the model says in the answer, its
            end-of-turn included, else 0.
        rejected: the same prompt, to the token, and the other answer.
        margin: by how much the first is better; 0 where nothing says so.
        origin: the number, from 0, of the preference.
    """

    chosen: Example
    rejected: Example
    margin: float
    origin: int

    @property
    def tokens(self) -> int:
        """Tokens of both sides."""
        return len(self.chosen.tokens) + len(self.rejected.tokens)

    @property
    def trained_tokens(self) -> int:
        """Tokens of both answers."""
        return self.chosen.trained_tokens + self.rejected.trained_tokens

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        return max(len(self.chosen.tokens), len(self.rejected.tokens))


@dataclass(frozen=True)
class FittedPairs:
    """Pairs that fit the model; `dropped` of them have a side that was too long."""

    pairs: list[Pair]
    dropped: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of all pairs, both sides."""
        return sum(pair.tokens for pair in self.pairs)

    @property
    def trained_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(pair.trained_tokens for pair in self.pairs)


def render_pairs(
    renderer: Renderer,
    preferences: Sequence[Preference],
    errors_shown: int,
    report: Callable[[float], None] = lambda _: None,
) -> list[Pair]:
    """A pair of each preference, all of which must render.

    What is trained are the messages of the assistant's in an answer. Where a tool answers in between, or a user, that
    is no part of what is compared.

    Args:
        renderer: writes them; loaded with TRAIN_PAIRS_ON.
        preferences: what to render.
        errors_shown: how many of those that cannot be rendered are named.
        report: is told how many preferences are done.

    Raises:
        DataError: some cannot be rendered, each side as one example after the same prompt.
    """
    assert renderer.train_on_what == TRAIN_PAIRS_ON
    count = len(preferences)
    name = _side_names(count)
    sides = _sides(preferences)
    data = render_all(renderer, sides, errors_shown, lambda done: report(done / 2), name=name)
    of_side: list[list[Example]] = [[] for _ in sides]
    for origin, example in zip(data.origins.tolist(), data.examples, strict=True):
        of_side[origin].append(example)
    pairs: list[Pair] = []
    failed: list[str] = []
    for i, preference in enumerate(preferences):
        chosen, rejected = of_side[i], of_side[count + i]
        if problem := _problem(chosen, rejected):
            failed.append(f"row {i + 1}: {problem}")
        else:
            pairs.append(Pair(chosen[0], rejected[0], preference.get("margin", 0.0), i))
    if failed:
        raise explain_failures(failed, renderer.name, errors_shown)
    return pairs


def _sides(preferences: Sequence[Preference]) -> list[Conversation]:
    """Each prompt with its chosen answer, then each with its rejected one; what is trained is marked."""
    sides: list[Conversation] = []
    for answers in ([row["chosen"] for row in preferences], [row["rejected"] for row in preferences]):
        for row, answer in zip(preferences, answers, strict=True):
            messages = [_marked(message, trainable=False) for message in row["prompt"]]
            messages += [_marked(message, trainable=message["role"] == "assistant") for message in answer]
            side: Conversation = {"messages": messages}
            if "tools" in row:
                side["tools"] = row["tools"]
            sides.append(side)
    return sides


def _marked(message: Message, *, trainable: bool) -> Message:
    return {**message, "trainable": trainable}


def _side_names(count: int) -> Callable[[int], str]:
    """What the conversations of `_sides` are called: by the number of the row, from 1, and the side."""

    def name(number: int) -> str:
        return f"row {number % count + 1}, {'chosen' if number < count else 'rejected'}"

    return name


def _problem(chosen: Sequence[Example], rejected: Sequence[Example]) -> str | None:
    """Why the examples of two answers are no pair."""
    for side, examples in (("chosen", chosen), ("rejected", rejected)):
        if len(examples) > 1:
            return (
                f"the {side} answer becomes {len(examples)} examples, since the renderer rewrites earlier turns; give "
                "an answer of one turn"
            )
        if not examples or not examples[0].trained_tokens:
            return f"the {side} answer has no token to train"
    (first,), (second,) = chosen, rejected
    if not _same(_prompt_of(first), _prompt_of(second)):
        return "the prompt is written in one way before the chosen answer and in another before the rejected one"
    if _same(first, second):
        return "both answers are written as the same tokens"
    return None


def _prompt_of(example: Example) -> Example:
    """What stands before the first trained token."""
    return example.head(int(np.flatnonzero(example.weights)[0]))


def _same(first: Example, second: Example) -> bool:
    return np.array_equal(first.tokens, second.tokens) and first.images == second.images


def check_pairs(
    renderer: Renderer, preferences: Sequence[Preference], pairs: Sequence[Pair], vocabulary: int | None
) -> int:  # fmt: skip
    """Check a sample of pairs as `selfcheck.check` does conversations, and return how many answers that was.

    Args:
        renderer: rendered the pairs, and writes the prompts that will be sampled from.
        preferences: what was rendered.
        pairs: the pair of each.
        vocabulary: how many tokens the model has, where that is known.

    Raises:
        DataError: a check failed; the message shows the example.
    """
    examples = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    data = RenderedData(examples, np.arange(len(examples), dtype=np.int32))
    return check(renderer, _sides(preferences), data, vocabulary, name=_side_names(len(preferences)))


def fit_pairs(pairs: Sequence[Pair], max_length: int | None, overlength: Overlength) -> FittedPairs:
    """The pairs of which both sides are at most `max_length` tokens long.

    `truncate` leaves longer ones out, as `drop` does: an answer that is cut is another answer, so that what is compared
    would no longer be what was preferred.

    Raises:
        DataError: a side is too long and `overlength` is `error`; or no pair is left.
    """
    if max_length is None:
        return FittedPairs(list(pairs))
    kept: list[Pair] = []
    for pair in pairs:
        if pair.length <= max_length:
            kept.append(pair)
        elif overlength == "error":
            side = "chosen" if len(pair.chosen.tokens) == pair.length else "rejected"
            raise DataError(
                f"row {pair.origin + 1}, {side}: prompt and answer have {pair.length:,} tokens, more than the limit of "
                f"{max_length:,}",
                hint="--overlength drop leaves such pairs out, and so does truncate: no answer is cut",
            )
    if not kept:
        raise DataError(
            f"no pair is left: of all {len(pairs):,}, one side or both are longer than {max_length:,} tokens",
            hint="raise --max-length, or give shorter answers",
        )
    return FittedPairs(kept, len(pairs) - len(kept))
