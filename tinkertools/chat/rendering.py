"""Conversations become tokens and per-token weights: which renderer, and all of a data set at once."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tinkertools.chat.conversations import Conversation
from tinkertools.chat.examples import Example, Image, Prompt, RenderError, Tokens, Weights, saved_tokens
from tinkertools.chat.templates import CHAT_TEMPLATE, load_template_renderer
from tinkertools.chat.tokenizing import cores
from tinkertools.config import AUTO_RENDERER, TRAIN_ON_WHAT, TrainOnWhat
from tinkertools.errors import DataError, UsageError

# Conversations that a worker process is given at once, and how many such parts each may have waiting.
_PART = 256
_PARTS_AHEAD = 2

# Less text than this is rendered before worker processes have started.
_WORTH_WORKERS = 4_000_000

Found = list[Example] | RenderError


class Renderer(Protocol):
    """Writes conversations as tokens, for one model."""

    name: str
    train_on_what: TrainOnWhat
    stop_tokens: list[int]
    bos_token: int | None

    @property
    def identity(self) -> dict[str, str]:
        """What decides, beside the conversation, the tokens and weights: `renderer`, and others by their names."""

    def generation_prompt(self, conversation: Conversation) -> Prompt:
        """The tokens after which the model answers the last message."""

    def decode(self, tokens: Sequence[int]) -> str:
        """An answer's text."""

    def text(self, tokens: Sequence[int]) -> str:
        """The text of any tokens, control tokens included."""

    def render(self, conversations: Iterable[Conversation]) -> Iterator[Found]:
        """Each conversation's examples, in order, or why it has none."""


@dataclass(frozen=True)
class RenderedData:
    """The examples of all conversations; `origins[i]` is the number, from 0, of the conversation of `examples[i]`."""

    examples: list[Example]
    origins: npt.NDArray[np.int32]

    @property
    def split(self) -> int:
        """Conversations that became several examples."""
        return int((self._counts > 1).sum())

    @property
    def examples_of_split(self) -> int:
        """The examples that those became."""
        return int(self._counts[self._counts > 1].sum())

    @property
    def _counts(self) -> npt.NDArray[np.int64]:
        return np.unique(self.origins, return_counts=True)[1]

    @property
    def saved_tokens(self) -> int:
        """Tokens that turns which share their history do not cost twice."""
        return sum(map(saved_tokens, self.examples))


@dataclass(frozen=True)
class RendererChoice:
    """The renderer in effect, and why, in words."""

    name: str
    reason: str

    def words(self, train_on_what: str) -> str:
        """How conversations are written for the model, why so, and what of them is trained."""
        return f"renderer: {self.name} ({self.reason}), trained on {train_on_what}"


def choose_renderer(base_model: str, named: str = AUTO_RENDERER) -> RendererChoice:
    """The renderer for a base model: the one named, else the vendor's where it has one, else the model's own template.

    Raises:
        UsageError: there is no renderer of that name.
    """
    from tinkertools.chat.vendor import renderer_for, renderer_names

    if named not in (AUTO_RENDERER, CHAT_TEMPLATE):
        if named not in (names := renderer_names()):
            raise UsageError(
                f"--renderer {named}: there is no such renderer",
                hint=f"{AUTO_RENDERER}, {CHAT_TEMPLATE} or one of {', '.join(names)}",
            )
        return RendererChoice(named, "--renderer")
    if named == CHAT_TEMPLATE:
        return RendererChoice(CHAT_TEMPLATE, "--renderer")
    if not Path(base_model).is_dir() and (found := renderer_for(base_model)):
        return RendererChoice(found, "the vendor's, for this model")
    return RendererChoice(CHAT_TEMPLATE, "the model's own")


def load_renderer(base_model: str, named: str = AUTO_RENDERER, train_on_what: TrainOnWhat = TRAIN_ON_WHAT) -> Renderer:
    """The renderer of a base model: a folder, or a name on the Hub.

    Raises:
        UsageError: there is no renderer of that name.
        ModelError: the model has no usable tokenizer or chat template, where those are to be used.
    """
    choice = choose_renderer(base_model, named)
    if choice.name == CHAT_TEMPLATE:
        return load_template_renderer(base_model, train_on_what)
    from tinkertools.chat.vendor import VendorRenderer

    return VendorRenderer(choice.name, train_on_what)


def conversation_name(number: int) -> str:
    """What a conversation is called, by its number from 0, where nothing better is known."""
    return f"conversation {number + 1}"


def render_all(
    renderer: Renderer,
    conversations: Sequence[Conversation],
    errors_shown: int,
    report: Callable[[float], None] = lambda _: None,
    workers: int | None = None,
    name: Callable[[int], str] = conversation_name,
) -> RenderedData:
    """The examples of each conversation, all of which must render. `report` is told how many are done.

    Args:
        renderer: writes them.
        conversations: what to render.
        errors_shown: how many of those that cannot be rendered are named.
        report: is told how many are done.
        workers: processes for a renderer of the vendor's, which computes on one core only; the result does not depend
            on it. None means as many as there are cores, where there is enough to do.
        name: what a conversation is called where it cannot be rendered, by its number from 0.

    Raises:
        DataError: some cannot be rendered, or a worker process died.
    """
    examples: list[Example] = []
    origins: list[int] = []
    failed: list[str] = []
    for number, item in enumerate(render_each(renderer, conversations, workers)):
        if isinstance(item, RenderError):
            failed.append(f"{name(number)}: {item}")
        else:
            examples += item
            origins += [number] * len(item)
        if (number + 1) % _PART == 0 or number + 1 == len(conversations):
            report(number + 1)
    if failed:
        raise explain_failures(failed, renderer.name, errors_shown)
    return RenderedData(examples, np.asarray(origins, np.int32))


def render_each(
    renderer: Renderer, conversations: Sequence[Conversation], workers: int | None = None
) -> Iterator[Found]:  # fmt: skip
    """Each conversation's examples, in order, or why it has none; the arguments are those of `render_all`.

    Raises:
        DataError: a worker process died.
    """
    from tinkertools.chat.vendor import VendorRenderer

    if workers is None:
        workers = _useful_workers(conversations)
    if isinstance(renderer, VendorRenderer) and workers > 1:
        return _render_in_workers(renderer, conversations, workers)
    return renderer.render(conversations)


def explain_failures(failed: Sequence[str], renderer: str, errors_shown: int) -> DataError:
    """The error for conversations that cannot be rendered: the first ones, and how many in all."""
    more = [f"… and {len(failed) - errors_shown:,} more"] if len(failed) > errors_shown else []
    count = "1 conversation" if len(failed) == 1 else f"{len(failed):,} conversations"
    return DataError(
        "\n  ".join([f"{count} cannot be rendered with {renderer}:", *failed[:errors_shown], *more]),
        hint="mend or leave out these conversations, or choose another --renderer or --base-model",
    )


def _useful_workers(conversations: Sequence[Conversation]) -> int:
    characters = 0
    for conversation in conversations:
        characters += sum(len(str(message["content"])) for message in conversation["messages"])
        if characters > _WORTH_WORKERS:
            return cores()
    return 1


def _render_in_workers(
    renderer: Renderer, conversations: Iterable[Conversation], workers: int
) -> Iterator[Found]:  # fmt: skip
    """As `renderer.render`, in processes; only a few parts are ever on their way."""
    import multiprocessing

    # Processes that are forked from this one, whose threads hold locks, could hang.
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload(["tml_renderers", "tinkertools.chat.vendor"])
    remaining = iter(conversations)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(renderer,))
    try:
        waiting = deque(
            pool.submit(_render_part, part)
            for part in (list(islice(remaining, _PART)) for _ in range(workers * _PARTS_AHEAD))
            if part
        )
        while waiting:
            done = _unpacked(*waiting.popleft().result())
            if part := list(islice(remaining, _PART)):
                waiting.append(pool.submit(_render_part, part))
            yield from done
    except BrokenProcessPool as error:
        raise DataError(
            "a process that renders conversations died, which is what happens when memory runs out",
            hint="close other programs, or train on less data at once (tt prepare --max-examples)",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker_renderer: Renderer


def _start_worker(renderer: Renderer) -> None:
    global _worker_renderer  # noqa: PLW0603  a worker process has one renderer for its whole life
    _worker_renderer = renderer


# How many examples each conversation has, or why none; the examples as one array each of tokens and weights, with
# their lengths and images. To send many small arrays takes longer.
Packed = tuple[list[int | RenderError], Tokens, Weights, list[int], list[tuple[Image, ...]]]


def _render_part(conversations: list[Conversation]) -> Packed:
    found = list(_worker_renderer.render(conversations))
    examples = [example for item in found if isinstance(item, list) for example in item]
    return (
        [len(item) if isinstance(item, list) else item for item in found],
        np.concatenate([np.zeros(0, np.int32), *(example.tokens for example in examples)]),
        np.concatenate([np.zeros(0, np.float32), *(example.weights for example in examples)]),
        [len(example.tokens) for example in examples],
        [example.images for example in examples],
    )


def _unpacked(
    counts: list[int | RenderError], tokens: Tokens, weights: Weights, lengths: list[int],
    images: list[tuple[Image, ...]],
) -> Iterator[Found]:  # fmt: skip
    ends = accumulate(lengths)
    examples = (
        Example(tokens[end - length : end], weights[end - length : end], seen)
        for end, length, seen in zip(ends, lengths, images, strict=True)
    )
    for count in counts:
        yield count if isinstance(count, RenderError) else list(islice(examples, count))
