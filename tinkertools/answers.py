"""Asking models: answers to prompts, and the likelihood of given answers. Shared by `tt test` and `tt compare`."""

import dataclasses
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tinkertools.config import AUTO_RENDERER, PrepareDefaults
from tinkertools.engines import Choice, open_service
from tinkertools.errors import DataError, EngineError, RunError, ServerTimeoutError, UsageError
from tinkertools.evaluation import perplexity
from tinkertools.files import explain_os_errors
from tinkertools.reporting import Notify, ProgressMaker, Report
from tinkertools.runs.directory import Weights
from tinkertools.shipped import GENERAL_PROMPTS, SAMPLE_PROMPTS, is_starter

if TYPE_CHECKING:
    from tinkertools.chat.conversations import Conversation
    from tinkertools.chat.examples import Example
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import SamplingClient, Service

# Requests for samples that are on their way at once: enough to fill an engine's batch, few enough for any server.
_AT_ONCE = 64

_HINT = 'a prompt is "text", [{"role": "user", "content": "text"}] or {"messages": [...]}'


@dataclass(frozen=True)
class Prompt:
    """What to ask, and a regular expression that a good answer matches, where the file gives one."""

    conversation: "Conversation"
    check: str | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said so far."""
        return self.conversation["messages"]

    @property
    def question(self) -> str:
        """The text of the last message."""
        from tinkertools.chat.examples import texts_of

        return "".join(texts_of(self.messages[-1]))


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
    """What a model answered; where it gave no answer, what went wrong."""

    text: str | None
    error: str | None = None

    @property
    def shown(self) -> str:
        """The answer as it stands in a table."""
        return self.text if self.text is not None else f"[no answer: {self.error}]"


@dataclass(frozen=True)
class Score:
    """The likelihood of given answers under a model."""

    nll: float
    trained_tokens: int

    @property
    def perplexity(self) -> float:
        """e to the mean NLL."""
        return perplexity(self.nll)

    def to_json(self) -> dict[str, Any]:
        """The score as JSON values."""
        return {"nll": self.nll, "perplexity": self.perplexity, "trained_tokens": self.trained_tokens}


def load_prompts(path: Path) -> list[Prompt]:
    """Prompts from JSON or JSON Lines: strings, lists of messages, or objects with `messages` (and maybe `check`).

    An assistant turn at the end of a prompt is what the model is asked for, and is left out.

    Raises:
        DataError: the file is not of that form.
    """
    with explain_os_errors(path):
        raw = path.read_bytes()
    if not raw.strip():
        raise DataError(f"{path} is empty", hint='write prompts into it, for example ["Hello!"]')
    try:
        values = orjson.loads(raw)
        places = [f"{path}: prompt {i}" for i in range(1, len(values) + 1)] if isinstance(values, list) else [str(path)]
        values = values if isinstance(values, list) else [values]
    except orjson.JSONDecodeError:
        values, places = _json_lines(path, raw)
    prompts = [_prompt(value, place) for value, place in zip(values, places, strict=True)]
    if not prompts:
        raise DataError(f"{path} holds no prompts", hint='write prompts into it, for example ["Hello!"]')
    return prompts


def prompts_of(conversations: Sequence["Conversation"], count: int) -> list[Prompt]:
    """The first conversations up to their last answer, to be answered anew."""
    found = []
    for conversation in conversations[:count]:
        messages = conversation["messages"]
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        shortened = conversation.copy()
        shortened["messages"] = messages[:last]
        found.append(Prompt(shortened))
    return found


def default_prompts(base_model: str) -> Path:
    """The prompts that ship: the samples' for the starter model, else general ones."""
    return SAMPLE_PROMPTS if is_starter(base_model) else GENERAL_PROMPTS


def _json_lines(path: Path, raw: bytes) -> tuple[list[Any], list[str]]:
    values: list[Any] = []
    places: list[str] = []
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number}: invalid JSON at column {error.colno}: {error.msg}",
                hint="the file must be a JSON list of prompts, or one prompt a line",
            ) from error
        places.append(f"{path}:{number}")
    return values, places


def _prompt(value: Any, place: str) -> Prompt:
    from tinkertools.chat.conversations import Conversation, RowError, normal_tools, validate

    check = None
    conversation: Conversation = {"messages": []}
    if isinstance(value, dict):
        check = value.get("check")
        try:
            if tools := normal_tools(value.get("tools")):
                conversation["tools"] = tools
        except RowError as error:
            raise DataError(f"{place}: {error}", hint=_HINT) from error
        value = value.get("messages")
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: expected a string, a list of messages, or an object with messages", hint=_HINT)
    if isinstance(value[-1], dict) and value[-1].get("role") == "assistant":
        value = value[:-1]
    if not any(isinstance(message, dict) and message.get("role") == "user" for message in value):
        raise DataError(f"{place}: messages: the user says nothing", hint=_HINT)
    try:
        # A prompt is a conversation whose last answer is still to come.
        conversation["messages"] = validate([*value, {"role": "assistant", "content": "…"}])[:-1]
    except RowError as error:
        raise DataError(f"{place}: {error}", hint=_HINT) from error
    if conversation["messages"][-1]["role"] not in ("user", "tool"):
        raise DataError(f"{place}: the last message must be the user's, for the model to answer", hint=_HINT)
    if check is not None:
        try:
            re.compile(check)
        except (re.error, TypeError) as error:
            raise DataError(f"{place}: check is not a regular expression: {error}", hint="mend or remove it") from error
    return Prompt(conversation, check)


def ask(
    sampler: "SamplingClient",
    renderer: "Renderer",
    prompts: Sequence[Prompt],
    settings: Settings,
    report: Report,
) -> list[Answer]:
    """An answer to each prompt, in order. A prompt that fails is told in its place; the others are asked all the same.

    After a server gave no answer in time, the prompts that are left are not asked.

    Args:
        sampler: the model.
        renderer: of the model.
        prompts: what is asked.
        settings: how answers are sampled.
        report: is told how many are there.

    Raises:
        DataError: a prompt cannot be rendered.
    """
    from tinker import types

    from tinkertools.chat.datums import to_model_input
    from tinkertools.chat.examples import RenderError

    inputs = []
    for number, prompt in enumerate(prompts, 1):
        try:
            asked = renderer.generation_prompt(prompt.conversation)
        except RenderError as error:
            raise DataError(f"prompt {number}: {error}", hint="change it, or leave it out") from error
        inputs.append(to_model_input(asked.tokens, asked.images))
    params = types.SamplingParams(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        stop=renderer.stop_tokens,
    )
    answers: list[Answer] = []
    for wait in _in_flight(inputs, lambda model_input: sampler.sample(model_input, 1, params)):
        try:
            answers.append(Answer(renderer.decode(wait().sequences[0].tokens)))
        except ServerTimeoutError as error:
            rest = len(prompts) - len(answers)
            return [*answers, *[Answer(None, error.message)] * rest]
        except EngineError as error:
            answers.append(Answer(None, error.message))
        report(len(answers))
    return answers


def _in_flight(inputs: Iterable[Any], send: Callable[[Any], Any]) -> Iterator[Callable[[], Any]]:
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


def score(sampler: "SamplingClient", examples: Sequence["Example"], report: Report) -> Score:
    """Masked NLL: Σ −logprob · weight / Σ weight over all tokens of the examples, natural log.

    Raises:
        EngineError: an example could not be scored: models can be compared only on all of them.
    """
    from tinkertools.chat.datums import to_model_input

    total = weight = 0.0
    inputs = [to_model_input(example.tokens, example.images) for example in examples]
    waits = _in_flight(inputs, sampler.compute_logprobs)
    for done, (example, wait) in enumerate(zip(examples, waits, strict=True), 1):
        try:
            logprobs = wait()
        except EngineError as error:
            raise type(error)(f"conversation {done}: {error.message}", hint=error.hint) from error
        for logprob, w in zip(logprobs[1:], example.weights[1:].tolist(), strict=True):
            if w:
                assert logprob is not None
                total -= logprob * w
                weight += w
        report(done)
    return Score(total / weight, sum(example.trained_tokens for example in examples))


def passed(prompts: Iterable[Prompt], answers: Iterable[Answer]) -> tuple[int, int]:
    """How many answers match their prompt's check, and how many prompts have one. No answer matches nothing."""
    checked = [
        answer.text is not None and re.search(prompt.check, answer.text, re.DOTALL) is not None
        for prompt, answer in zip(prompts, answers, strict=True)
        if prompt.check is not None
    ]
    return sum(checked), len(checked)


@dataclass(frozen=True)
class Evaluation:
    """What each model answered and how likely it finds given answers, by the model's label."""

    base_model: str
    prompts: list[Prompt]
    answers: dict[str, list[Answer]]
    scores: dict[str, dict[str, Any]]

    @property
    def unanswered(self) -> list[str]:
        """What went wrong with the prompts that got no answer."""
        return [answer.error or "" for answers in self.answers.values() for answer in answers if answer.text is None]

    def responses(self, number: int, keys: Mapping[str, str]) -> dict[str, Any]:
        """The answers to a prompt for a results file, each under the key of its label; errors beside them."""
        found = {keys[label]: answers[number] for label, answers in self.answers.items()}
        errors = {key: answer.error for key, answer in found.items() if answer.error}
        return {key: answer.text for key, answer in found.items()} | ({"errors": errors} if errors else {})

    def refuse_gaps(self, output: Path) -> None:
        """Say at the end that prompts got no answer.

        Raises:
            EngineError: some got none.
        """
        if failed := self.unanswered:
            count = sum(len(answers) for answers in self.answers.values())
            raise EngineError(
                f"{len(failed)} of {count} prompts got no answer, the first: {failed[0]}",
                hint=f"{output} has all the others; run the command again for those",
            )


def evaluate(
    choice: Choice,
    models: Mapping[str, Weights | None],
    prompts_file: Path | None,
    data: str | None,
    settings: Settings,
    renderer_name: str,
    progress: ProgressMaker,
    notify: Notify,
    timeout: float,
) -> Evaluation:
    """Ask and score several models that share a base, of which one copy is in memory.

    Args:
        choice: the engine and the base model.
        models: adapters by label; None is the base alone.
        prompts_file: None means the prompts that ship.
        data: conversations to score, or None.
        settings: how answers are sampled.
        renderer_name: the renderer of the base model.
        progress: makes the display of each part of the work.
        notify: is told what a server is waited for.
        timeout: seconds that a request to a server may take.

    Raises:
        DataError: the prompts or the data cannot be used.
        RunError: an adapter is not where the engine is, or nobody says what it was trained on.
    """
    from tinkertools.chat.datums import fit
    from tinkertools.chat.records import read_all
    from tinkertools.chat.rendering import load_renderer, render_all
    from tinkertools.chat.sources import find_source

    prompts = load_prompts(prompts_file or default_prompts(choice.base_model))
    sources = {label: weights.source(choice.engine) if weights else None for label, weights in models.items()}
    conversations = read_all(find_source(data), PrepareDefaults.errors_shown)[0] if data is not None else []
    answers: dict[str, list[Answer]] = {}
    scores: dict[str, dict[str, Any]] = {}
    with open_service(choice, None, notify, timeout=timeout) as service:
        base_model = choice.base_model or _ask_for_base(service, next(filter(None, sources.values())))
        renderer = load_renderer(base_model, renderer_name)
        fitted = None
        if conversations:
            with progress("render", len(conversations), "conversations") as report:
                rendered = render_all(renderer, conversations, PrepareDefaults.errors_shown, report)
            limit = service.max_length(base_model)
            fitted = fit(rendered, len(conversations), limit, "drop", renderer.stop_tokens)
        for label, source in sources.items():
            sampler = service.create_sampling_client(source, base_model)
            with progress(f"{label}: answer", len(prompts), "prompts") as report:
                answers[label] = ask(sampler, renderer, prompts, settings, report)
            right, checked = passed(prompts, answers[label])
            scores[label] = {"check": {"passed": right, "of": checked}} if checked else {}
            if fitted:
                with progress(f"{label}: score", len(fitted.examples), "conversations") as report:
                    scores[label] |= score(sampler, fitted.examples, report).to_json()
                if fitted.dropped:
                    scores[label]["too_long"] = fitted.dropped
    return Evaluation(base_model, prompts, answers, scores)


def _ask_for_base(service: "Service", path: str) -> str:
    """The base model of weights on a server.

    Raises:
        RunError: it does not say.
    """
    from tinkertools import remote

    assert isinstance(service, remote.ServiceClient)
    found = service.base_model_of(path)
    if found is None:
        raise RunError(f"the server does not say what {path} was trained on", hint="add --base-model MODEL")
    return found


def renderer_of(named: str, adapters: Sequence[Weights]) -> str:
    """The renderer to ask with: the one named on the command line, else the one that the adapters were trained with.

    Raises:
        RunError: they were trained with different ones.
    """
    found = sorted({weights.renderer for weights in adapters if weights.renderer})
    if named != AUTO_RENDERER or not found:
        return named
    if len(found) > 1:
        raise RunError(
            f"these adapters were trained with different renderers: {', '.join(found)}",
            hint=f"say which to ask with: --renderer {found[0]}",
        )
    return found[0]


def base_of(named: str | None, weights: Weights) -> str | None:
    """The base model of an adapter: the one named on the command line wins over the one it records.

    None where only the server can say.

    Raises:
        RunError: neither is there, and no server has it.
    """
    base_model = named or weights.base_model
    if base_model is None and weights.directory is not None:
        raise RunError(
            f"{weights.directory} does not say which base model it was trained on", hint="add --base-model MODEL"
        )
    return base_model
