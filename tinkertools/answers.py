"""Asking models: answers to prompts, and the likelihood of given answers. Shared by `tt test` and `tt compare`."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tinkertools.config import AUTO_RENDERER, PrepareDefaults
from tinkertools.engines import Choice, open_service
from tinkertools.errors import DataError, EngineError, RunError, UsageError
from tinkertools.files import explain_os_errors
from tinkertools.runs.directory import Weights
from tinkertools.shipped import GENERAL_PROMPTS, SAMPLE_PROMPTS, is_starter

if TYPE_CHECKING:
    from tinkertools.chat.conversations import Conversation
    from tinkertools.chat.examples import Example
    from tinkertools.chat.rendering import Renderer
    from tinkertools.local.sampling import SamplingClient

_HINT = 'a prompt is "text", [{"role": "user", "content": "text"}] or {"messages": [...]}'

Report = Callable[[float], None]
ProgressMaker = Callable[[str, float, str], AbstractContextManager[Report]]


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
class Score:
    """The likelihood of given answers under a model."""

    nll: float
    trained_tokens: int

    @property
    def perplexity(self) -> float:
        """e to the mean NLL."""
        return math.exp(self.nll) if self.nll < 700 else math.inf

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
) -> list[str]:
    """One answer to each prompt, as text. `report` is told how many are there.

    Raises:
        DataError: a prompt cannot be rendered.
        EngineError: a prompt is too long for the model.
    """
    from tinker import types

    from tinkertools.chat.datums import to_model_input
    from tinkertools.chat.examples import RenderError

    futures = []
    for number, prompt in enumerate(prompts, 1):
        try:
            asked = renderer.generation_prompt(prompt.conversation)
        except RenderError as error:
            raise DataError(f"prompt {number}: {error}", hint="change it, or leave it out") from error
        params = types.SamplingParams(
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            seed=settings.seed,
            stop=renderer.stop_tokens,
        )
        futures.append(sampler.sample(to_model_input(asked.tokens, asked.images), 1, params))
    answers: list[str] = []
    for done, future in enumerate(futures, 1):
        try:
            answers.append(renderer.decode(future.result().sequences[0].tokens))
        except EngineError as error:
            hint = error.hint or "shorten it, or leave it out"
            raise EngineError(f"prompt {done}: {error.message}", hint=hint) from error
        report(done)
    return answers


def score(sampler: "SamplingClient", examples: Sequence["Example"], report: Report) -> Score:
    """Masked NLL: Σ −logprob · weight / Σ weight over all tokens of the examples, natural log."""
    from tinkertools.chat.datums import to_model_input

    futures = [sampler.compute_logprobs(to_model_input(e.tokens, e.images)) for e in examples]
    total = weight = 0.0
    for done, (example, future) in enumerate(zip(examples, futures, strict=True), 1):
        for logprob, w in zip(future.result()[1:], example.weights[1:].tolist(), strict=True):
            if w:
                assert logprob is not None
                total -= logprob * w
                weight += w
        report(done)
    return Score(total / weight, sum(example.trained_tokens for example in examples))


def passed(prompts: Iterable[Prompt], answers: Iterable[str]) -> tuple[int, int]:
    """How many answers match their prompt's check, and how many prompts have one."""
    checked = [
        re.search(prompt.check, answer, re.DOTALL) is not None
        for prompt, answer in zip(prompts, answers, strict=True)
        if prompt.check is not None
    ]
    return sum(checked), len(checked)


@dataclass(frozen=True)
class Evaluation:
    """What each model answered and how likely it finds given answers, by the model's label."""

    prompts: list[Prompt]
    answers: dict[str, list[str]]
    scores: dict[str, dict[str, Any]]


def evaluate(
    choice: Choice,
    models: Mapping[str, Path | None],
    prompts_file: Path | None,
    data: str | None,
    settings: Settings,
    renderer_name: str,
    progress: ProgressMaker,
) -> Evaluation:
    """Ask and score several models that share a base, of which one copy is in memory.

    Args:
        choice: the engine and the base model.
        models: an adapter's folder by label; None is the base alone.
        prompts_file: None means the prompts that ship: the samples' for the starter model, else general ones.
        data: conversations to score, or None.
        settings: how answers are sampled.
        renderer_name: the renderer of the base model.
        progress: makes the display of each part of the work.

    Raises:
        DataError: the prompts or the data cannot be used.
    """
    from tinkertools.chat.datums import fit
    from tinkertools.chat.records import read_all
    from tinkertools.chat.rendering import load_renderer, render_all
    from tinkertools.chat.sources import find_source

    base_model = choice.base_model
    prompts = load_prompts(prompts_file or (SAMPLE_PROMPTS if is_starter(base_model) else GENERAL_PROMPTS))
    conversations = read_all(find_source(data), PrepareDefaults.errors_shown)[0] if data is not None else []
    answers: dict[str, list[str]] = {}
    scores: dict[str, dict[str, Any]] = {}
    with open_service(choice) as service:
        renderer = load_renderer(base_model, renderer_name)
        fitted = None
        if conversations:
            with progress("render", len(conversations), "conversations") as report:
                rendered = render_all(renderer, conversations, PrepareDefaults.errors_shown, report)
            limit = service.max_length(base_model)
            fitted = fit(rendered, len(conversations), limit, "drop", renderer.stop_tokens)
        for label, folder in models.items():
            sampler = service.create_sampling_client(str(folder) if folder else None, base_model)
            with progress(f"{label}: answer", len(prompts), "prompts") as report:
                answers[label] = ask(sampler, renderer, prompts, settings, report)
            right, checked = passed(prompts, answers[label])
            scores[label] = {"check": {"passed": right, "of": checked}} if checked else {}
            if fitted:
                with progress(f"{label}: score", len(fitted.examples), "conversations") as report:
                    scores[label] |= score(sampler, fitted.examples, report).to_json()
                if fitted.dropped:
                    scores[label]["too_long"] = fitted.dropped
    return Evaluation(prompts, answers, scores)


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


def base_of(named: str | None, weights: Weights) -> str:
    """The base model of an adapter: the one named on the command line wins over the one it records.

    Raises:
        RunError: neither is there.
    """
    if base_model := named or weights.base_model:
        return base_model
    raise RunError(
        f"{weights.directory} does not say which base model it was trained on", hint="add --base-model MODEL"
    )
