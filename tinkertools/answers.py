"""Asking a model: answers to prompts, and the likelihood of given answers."""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tinkertools.errors import DataError, EngineError, ServerTimeoutError, UsageError
from tinkertools.prompts import Prompt
from tinkertools.reporting import Report

if TYPE_CHECKING:
    from tinkertools.chat.examples import Example
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import SamplingClient

# Requests for samples that are on their way at once: enough to fill an engine's batch, few enough for any server.
_AT_ONCE = 64


@dataclass(frozen=True)
class Settings:
    """How answers are sampled. Temperature 0 takes the likeliest token each time."""

    max_tokens: int
    temperature: float
    seed: int

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"--max-tokens is {self.max_tokens}, but must be at least 1", hint="--max-tokens 150")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(
                f"--temperature is {self.temperature}, but must be 0 or more", hint="--temperature 0 is repeatable"
            )

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: the answer; None where there is none.
        error: what went wrong then.
        tokens: how many it is.
        stop: whether the model ended its turn, or had said all that it may.
    """

    text: str | None
    error: str | None = None
    tokens: int = 0
    stop: Literal["stop", "length"] | None = None

    @property
    def shown(self) -> str:
        """The answer as it stands in a table."""
        return self.text if self.text is not None else f"[no answer: {self.error}]"

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON values."""
        return dataclasses.asdict(self)


def ask(
    sampler: "SamplingClient",
    renderer: "Renderer",
    prompts: Sequence[Prompt],
    settings: Settings,
    report: Report,
) -> list[Answer]:
    """An answer to each prompt, in order; as `answers`."""
    found = []
    for answer in answers(sampler, renderer, prompts, settings):
        found.append(answer)
        report(len(found))
    return found


def answers(
    sampler: "SamplingClient", renderer: "Renderer", prompts: Sequence[Prompt], settings: Settings
) -> Iterator[Answer]:
    """An answer to each prompt, in order, as they come.

    A prompt that fails is told in its place; the others are asked all the same. After a server gave no answer in time,
    the prompts that are left are not asked.

    Raises:
        DataError: a prompt cannot be rendered; none was asked then.
    """
    from tinker import types

    from tinkertools.chat.datums import to_model_input

    inputs = []
    for number, prompt in enumerate(prompts, 1):
        asked = rendered(prompt, renderer, number)
        inputs.append(to_model_input(asked.tokens, asked.images))
    params = types.SamplingParams(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        stop=renderer.stop_tokens,
    )
    waits = in_flight(inputs, lambda model_input: sampler.sample(model_input, 1, params))
    for done, wait in enumerate(waits):
        try:
            sequence = wait().sequences[0]
        except ServerTimeoutError as error:
            yield from [Answer(None, error.message)] * (len(prompts) - done)
            return
        except EngineError as error:
            yield Answer(None, error.message)
        else:
            stop: Literal["stop", "length"] = "stop" if sequence.stop_reason == "stop" else "length"
            yield Answer(renderer.decode(sequence.tokens), None, len(sequence.tokens), stop)


def rendered(prompt: Prompt, renderer: "Renderer", number: int) -> Any:
    """A prompt as the model gets it.

    Raises:
        DataError: it cannot be rendered.
    """
    from tinkertools.chat.examples import RenderError

    try:
        return renderer.generation_prompt(prompt.conversation)
    except RenderError as error:
        raise DataError(f"prompt {number}: {error}", hint="change it, or leave it out") from error


def in_flight(inputs: Iterable[Any], send: Callable[[Any], Any]) -> Iterator[Callable[[], Any]]:
    """For each input, in order, what waits for its result, with up to `_AT_ONCE` requests on their way."""
    pending: deque[Callable[[], Any]] = deque()

    def sent(value: Any) -> Callable[[], Any]:
        try:
            return send(value).result  # type: ignore[no-any-return]
        except EngineError as error:
            failure = error

            def fail() -> Any:
                raise failure

            return fail

    for value in inputs:
        pending.append(sent(value))
        if len(pending) >= _AT_ONCE:
            yield pending.popleft()
    yield from pending


def score(sampler: "SamplingClient", examples: Sequence["Example"]) -> Iterator[float]:
    """The masked NLL of each example, in order: Σ −logprob · weight over its tokens, natural log; as they come.

    Raises:
        EngineError: an example could not be scored: models can be compared only on all of them.
    """
    from tinkertools.chat.datums import to_model_input

    inputs = [to_model_input(example.tokens, example.images) for example in examples]
    for number, (example, wait) in enumerate(
        zip(examples, in_flight(inputs, sampler.compute_logprobs), strict=True), 1
    ):
        try:
            logprobs = wait()
        except EngineError as error:
            raise type(error)(f"conversation {number}: {error.message}", hint=error.hint) from error
        total = 0.0
        for logprob, weight in zip(logprobs[1:], example.weights[1:].tolist(), strict=True):
            if weight:
                assert logprob is not None
                total -= logprob * weight
        yield total
