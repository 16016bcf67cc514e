"""The score of an answer: how much a model rather says Yes than anything else when it is asked whether it is good.

After the answer comes a user's message with a fixed question. With p the probability of the one token by which a Yes
begins to differ from a No, the score is its logit, log p − log(1 − p). Whatever gives logprobs of tokens can compute
it, and it depends on nothing but the conversation.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tinkertools.answers import in_flight
from tinkertools.chat.conversations import FLAGS, Conversation, Message
from tinkertools.chat.examples import Example, RenderError
from tinkertools.config import TrainConfig
from tinkertools.errors import DataError, EngineError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from tinkertools.chat.preferences import Preference
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import Choice, SamplingClient, Service

QUESTION = "Is this a good answer? Say Yes or No."
GOOD, BAD = "Yes", "No"

# What p may be at most, as its logarithm: float32 has nothing between it and 1. Scores end at 24 · log 2 = 16.6.
LARGEST_LOGPROB = math.log1p(-(2.0**-24))


def scored_prompt(renderer: "Renderer", messages: Sequence[Message]) -> Example:
    """An answer and all before it, the question, and the answer to that up to the token that decides.

    Its last token is the one token with a weight, which is 1: its logprob makes the score.

    Args:
        renderer: of the model that scores, one that trains an assistant's last message.
        messages: a conversation that ends with the answer.

    Raises:
        RenderError: it has no such form under this renderer.
    """
    found = next(scored_prompts(renderer, [{"messages": list(messages)}]))
    if isinstance(found, RenderError):
        raise found
    return found


def scored_prompts(renderer: "Renderer", conversations: Sequence[Conversation]) -> Iterator[Example | RenderError]:
    """As `scored_prompt`, of each conversation, in order; or why it has none."""
    marked = renderer.train_on_what == "CUSTOMIZED"
    asked = (_asked(one, word, marked=marked) for one in conversations for word in (GOOD, BAD))
    rendered = renderer.render(asked)
    # The same iterator twice: each Yes with its No.
    for good, bad in zip(rendered, rendered, strict=True):
        if isinstance(good, RenderError):
            yield good
        elif isinstance(bad, RenderError):
            yield bad
        else:
            yield _up_to_verdict(renderer, good, bad)


def _asked(conversation: Conversation, word: str, *, marked: bool) -> Conversation:
    """The conversation with the question and a word for an answer, which alone is trained."""
    messages = [
        {name: value for name, value in message.items() if name not in FLAGS} for message in conversation["messages"]
    ]
    messages += [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": word}]
    if marked:
        messages = [message | {"trainable": i == len(messages) - 1} for i, message in enumerate(messages)]
    asked = conversation.copy()
    asked["messages"] = messages
    return asked


def _up_to_verdict(renderer: "Renderer", good: list[Example], bad: list[Example]) -> Example | RenderError:
    """The example of a Yes up to the token by which it differs from that of a No."""
    if not good or not bad:
        return RenderError(f"{renderer.name} writes no answer to '{QUESTION}'")
    first, second = good[-1], bad[-1]
    shorter = min(len(first.tokens), len(second.tokens))
    different = np.flatnonzero(first.tokens[:shorter] != second.tokens[:shorter])
    same_end = np.flatnonzero(first.tokens[::-1][:shorter] != second.tokens[::-1][:shorter])
    if len(different) and len(same_end):
        at, after = int(different[0]), int(same_end[0])
        words = [renderer.text(one.tokens[at : len(one.tokens) - after].tolist()).strip() for one in (first, second)]
        if words == [GOOD, BAD] and first.weights[at] and second.weights[at]:
            weights = np.zeros(at + 1, np.float32)
            weights[at] = 1
            return Example(first.tokens[: at + 1], weights, first.images)
    return RenderError(
        f"{renderer.name} does not write {GOOD} and {BAD} as answers that differ in their words alone, so no token "
        "decides"
    )


def sides_of(preference: "Preference") -> tuple[Conversation, Conversation]:
    """The two conversations of a preference: with the chosen answer, and with the rejected one."""
    found = []
    for answer in (preference["chosen"], preference["rejected"]):
        conversation: Conversation = {"messages": [*preference["prompt"], *answer]}
        if "tools" in preference:
            conversation["tools"] = preference["tools"]
        found.append(conversation)
    return found[0], found[1]


def scores(
    sampler: "SamplingClient", renderer: "Renderer", conversations: Sequence[Sequence[Message]]
) -> Iterator[float]:  # fmt: skip
    """The score of the last answer of each conversation, in order; as they come.

    Raises:
        DataError: one has no such form under this renderer; none was asked then.
        EngineError: one could not be scored.
    """
    examples = []
    rows: list[Conversation] = [{"messages": list(messages)} for messages in conversations]
    for number, found in enumerate(scored_prompts(renderer, rows), 1):
        if isinstance(found, RenderError):
            raise DataError(f"conversation {number} cannot be scored: {found}", hint="change it, or leave it out")
        examples.append(found)
    yield from scores_of(sampler, examples)


def scores_of(sampler: "SamplingClient", examples: Sequence[Example]) -> Iterator[float]:
    """The score of each of the examples of `scored_prompts`, in order; as they come.

    Raises:
        EngineError: one could not be scored.
    """
    from tinkertools.chat.datums import to_model_input

    inputs = [to_model_input(example.tokens, example.images) for example in examples]
    for number, wait in enumerate(in_flight(inputs, sampler.compute_logprobs), 1):
        try:
            logprob = wait()[-1]
        except EngineError as error:
            raise type(error)(f"conversation {number}: {error.message}", hint=error.hint) from error
        yield score(logprob)


class Answered(Protocol):
    """An answer, and the messages that it came after."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt."""
        ...

    @property
    def answer(self) -> str:
        """The model's text."""
        ...


def open_scorer(
    run: str, service: "Service", choice: "Choice", config: TrainConfig
) -> Callable[[Sequence[Answered]], list[float]]:
    """What scores answers by a reward model, on the engine of a run that trains another.

    Args:
        run: the reward model: whatever names an adapter.
        service: the engine.
        choice: which it is, and the base model that it trains.
        config: of the run that trains.

    Raises:
        RunError: there is no such adapter, or it is not where the engine is.
        UsageError: its base model is another one.
    """
    from tinkertools.chat.rendering import load_renderer
    from tinkertools.runs.directory import find_weights

    weights = find_weights(run, config.output_dir)
    if weights.base_model and Path(weights.base_model).resolve() != Path(choice.base_model).resolve():
        raise UsageError(
            f"{weights.name} was trained on {weights.base_model}, and this run trains {choice.base_model}",
            hint="name a reward model of the same base model",
        )
    sampler = service.create_sampling_client(weights.source(choice.engine), choice.base_model)
    renderer = load_renderer(choice.base_model, weights.renderer or config.renderer, "LAST_ASSISTANT_MESSAGE")

    def scorer(answers: Sequence[Answered]) -> list[float]:
        said = [[*one.messages, {"role": "assistant", "content": one.answer}] for one in answers]
        return list(scores(sampler, renderer, said))

    return scorer


def score(logprob: float) -> float:
    """The logit of a probability p, from log p: log p − log(1 − p).

    log(1 − exp x) is computed as in Mächler 2012, "Accurately Computing log(1 − exp(−|a|))".
    """
    x = min(logprob, LARGEST_LOGPROB)
    return x - (math.log(-math.expm1(x)) if x > -math.log(2) else math.log1p(-math.exp(x)))


def score_tensor(logprobs: "Tensor") -> Any:
    """As `score`, of a tensor (N,); its gradient is that at the largest p where p is larger, so that it is finite."""
    import torch

    x = logprobs - (logprobs - LARGEST_LOGPROB).clamp(min=0).detach()
    return x - torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
