"""Who may be asked, and how: services with OpenAI's or Anthropic's API, and models of our engines."""

import asyncio
import importlib.util
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from tinkertools.config import AUTO_RENDERER, OUTPUT_DIR, ServerSettings, without_password
from tinkertools.engines import Choice, choose, open_service
from tinkertools.errors import EngineError, RunError, UsageError, without_secrets
from tinkertools.reporting import Notify

if TYPE_CHECKING:
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import SamplingClient, Service
    from tinkertools.runs.directory import Weights

Provider = Literal["openai", "anthropic", "tinker", "local"]

# Enough for much thinking and an answer, on services that count thinking as answer.
MAX_TOKENS = 4096
# On our own engines, whose models think little and are slow here; enough for a short answer.
MAX_TOKENS_OF_ENGINES = 512
TEMPERATURE = 0
# How often the clients ask again, with pauses that grow or that the server names.
_RETRIES = 3
# Longer words of a server are cut.
_LONGEST = 300

_HOSTED: dict[Provider, tuple[str, str]] = {
    "openai": ("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
}
_FAMILIES: tuple[tuple[re.Pattern[str], Provider], ...] = (
    (re.compile(r"claude"), "anthropic"),
    (re.compile(r"gpt|chatgpt|o\d"), "openai"),
)
_FORMS = "openai:MODEL, anthropic:MODEL, tinker:MODEL, tinker://PATH or local:FOLDER"


@dataclass(frozen=True)
class AskedModel:
    """A model that is asked.

    Attributes:
        provider: what answers.
        model: its name there: a folder for the embedded engine, a name or `tinker://` path on a Tinker server.
        address: of the server, without any password; None is the provider's own.
        url: of a Tinker server, as it was given.
        option: the option that named it, for errors: it is no part of who it is.
        max_tokens: most tokens of an answer.
    """

    provider: Provider
    model: str
    address: str | None = None
    url: str | None = field(default=None, repr=False)
    option: str = field(kw_only=True, compare=False)
    max_tokens: int = field(kw_only=True)

    @property
    def name(self) -> str:
        """The model as options take it, for people and for files."""
        return self.model if self.model.startswith("tinker://") else f"{self.provider}:{self.model}"

    @property
    def hosted(self) -> bool:
        """Whether a service that is no engine of ours answers."""
        return self.provider in _HOSTED

    def identity(self) -> dict[str, Any]:
        """All that decides what this model answers, as JSON values; of models in folders, what is in them."""
        found: dict[str, Any] = {"provider": self.provider, "model": self.model, "address": self.address}
        found |= {"temperature": TEMPERATURE, "max_tokens": self.max_tokens}
        if self.provider == "local":
            from tinkertools.fingerprints import of_base_model, of_weights

            weights, base_model = _in_folder(self.option, self.model)
            found["model"] = [of_base_model(base_model, "local"), of_weights(weights) if weights else None]
        return found


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    Attributes:
        system: its task.
        text: what it is about.
    """

    system: str
    text: str


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        text: its words.
        cut: whether it was broken off before its end.
        tokens_in: what it read; None where it does not say.
        tokens_out: what it wrote.
    """

    text: str
    cut: bool
    tokens_in: int | None
    tokens_out: int | None


class Failed(Exception):
    """No reply to one question; another may get one."""


class Endpoint(Protocol):
    """Answers questions, several at once."""

    async def reply(self, question: Question) -> Reply:
        """The answer to a question.

        Raises:
            Failed: there was none, after what retries make sense.
            EngineError: there will be none to any question.
        """


class Nobody:
    """Stands where nothing is asked."""

    async def reply(self, question: Question) -> Reply:
        """See `Endpoint`."""
        raise Failed("it was not to be asked")


def parse_model(
    option: str, name: str, base_url: str | None = None, engine_tokens: int = MAX_TOKENS_OF_ENGINES
) -> AskedModel:
    """The model that an option names, once it is clear that it can be asked; nothing is sent.

    Args:
        option: such as `--judge`; errors name it.
        name: what the user typed.
        base_url: of a Tinker server, where an option names it.
        engine_tokens: most tokens of an answer by a model on one of our engines.

    Raises:
        UsageError: nobody is named by that, or a key, a library or a folder is missing.
    """
    provider, model = _split(option, name)
    if not model:
        raise UsageError(f"{option} {name} names no model", hint=f"{option} takes {_FORMS}")
    if provider == "local":
        if not Path(model).is_dir():
            raise UsageError(f"{option} {name}: there is no folder {model}", hint=f"{option} takes {_FORMS}")
        _in_folder(option, model)
        return AskedModel(provider, str(Path(model).resolve()), option=option, max_tokens=engine_tokens)
    if provider == "tinker":
        server = ServerSettings.from_environment(base_url)
        if not (server.has_key or server.base_url or os.environ.get("TINKER_CREDENTIAL_CMD")):
            raise UsageError(
                f"{option} {name} is on a Tinker server, and there is no key for one",
                hint="export TINKER_API_KEY=… or write it into .env, or name a server of your own: --base-url URL",
            )
        url = server.base_url
        address = without_password(url) if url else None
        return AskedModel(provider, model, address, url, option=option, max_tokens=engine_tokens)
    return _hosted_model(option, name, provider, model)


def _split(option: str, name: str) -> tuple[Provider, str]:
    """Who answers to a name, and what the model is called there."""
    if name.startswith("tinker://"):
        return "tinker", name
    prefix, colon, model = name.partition(":")
    for provider in (*_HOSTED, "tinker", "local"):
        if colon and prefix == provider:
            return provider, model
    if Path(name).is_dir():
        return "local", name
    for pattern, provider in _FAMILIES:
        if pattern.match(name):
            return provider, name
    raise UsageError(
        f"{option} {name}: it is not clear who that is",
        hint=f"{option} takes {_FORMS}; openai: stands for any server with an OpenAI API, at OPENAI_BASE_URL",
    )


def _hosted_model(option: str, name: str, provider: Provider, model: str) -> AskedModel:
    key, url = _HOSTED[provider]
    address = os.environ.get(url)
    if address and (urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname):
        raise UsageError(f"{url} is no address of a server", hint=f"for example {url}=http://localhost:8000/v1")
    # A server of one's own often wants no key.
    if not os.environ.get(key) and not (provider == "openai" and address):
        also = ", or OPENAI_BASE_URL=… for a server of your own" if provider == "openai" else ""
        raise UsageError(
            f"{option} {name} needs a key, and {key} is not set", hint=f"export {key}=… or write it into .env{also}"
        )
    if importlib.util.find_spec(provider) is None:
        raise UsageError(
            f"{option} {name}: the library {provider} is not installed",
            hint="python -m pip install 'tinkertools[judge]'",
        )
    address = without_password(address) if address else None
    return AskedModel(provider, model, address, option=option, max_tokens=MAX_TOKENS)


@asynccontextmanager
async def open_endpoint(model: AskedModel, notify: Notify, timeout: float) -> AsyncIterator[Endpoint]:
    """A model, ready to be asked; for a `with` block.

    Args:
        model: who is asked.
        notify: is told what is waited for, and what the model does not take.
        timeout: seconds that an answer may take, with all that is asked again for it.
    """
    async with AsyncExitStack() as stack:
        if model.hosted:
            make = _OpenAI if model.provider == "openai" else _Anthropic
            hosted = make(model, notify, timeout)
            stack.push_async_callback(hosted.close)
            yield hosted
        else:
            choice, weights = _choose(model)
            service = open_service(choice, None, notify, timeout=timeout)
            stack.enter_context(service)
            yield _engine(service, choice, weights, model)


class _Hosted:
    """A service, asked by its vendor's client: that one sends again what was refused for the moment or was lost."""

    _client: Any

    def __init__(self, model: AskedModel, notify: Notify, timeout: float) -> None:
        self._model = model
        self._notify = notify
        self._timeout = timeout
        # Parameters that models refuse are left out from then on: the newest know no temperature.
        self._temperature = True

    async def reply(self, question: Question) -> Reply:
        """See `Endpoint`."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._asked(question)
        except TimeoutError:
            raise Failed(f"no answer in {self._timeout:.0f} s") from None

    async def _asked(self, question: Question) -> Reply:
        while True:
            try:
                return await self._ask(question)
            except Failed:
                raise
            except Exception as error:  # clients raise their own, and what their libraries do
                if not self._adapted(error):
                    raise self._explained(error) from error

    async def _ask(self, question: Question) -> Reply:
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.close()

    def _adapted(self, error: Exception) -> bool:
        """Whether the same question without what the model refuses may be answered."""
        said = _said(error).lower()
        if _status(error) != 400 or "temperature" not in said or not self._temperature:
            return False
        self._temperature = False
        self._notify(f"{self._model.name} takes no temperature: asking without, so its answers may vary")
        return True

    def _explained(self, error: Exception) -> Exception:
        """An error of the client in the user's words."""
        key, url = _HOSTED[self._model.provider]
        status, said, model = _status(error), _said(error), self._model
        where = model.address or model.provider
        if status in (401, 403):
            return EngineError(
                f"{where} refuses the key in {key} (HTTP {status}): {said}",
                hint=f"export {key}=… with a key that may use {model.model}",
            )
        if status == 404:
            return EngineError(
                f"{where} does not have {model.model} (HTTP 404): {said}",
                hint=f"{model.option} {model.provider}:MODEL with one that it has; {url} is the address that is asked",
            )
        return Failed(f"HTTP {status}: {said}" if status is not None else said)


class _OpenAI(_Hosted):
    """Any server with OpenAI's API."""

    def __init__(self, model: AskedModel, notify: Notify, timeout: float) -> None:
        from openai import AsyncOpenAI

        super().__init__(model, notify, timeout)
        # Servers of others know the older name of the limit, the newest models of OpenAI only the newer one.
        self._limit = "max_tokens" if model.address else "max_completion_tokens"
        self._client = AsyncOpenAI(
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            base_url=os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1",
            timeout=timeout / (_RETRIES + 1),
            max_retries=_RETRIES,
        )

    async def _ask(self, question: Question) -> Reply:
        settings: dict[str, Any] = {self._limit: self._model.max_tokens}
        if self._temperature:
            settings["temperature"] = TEMPERATURE
        answer = await self._client.chat.completions.create(
            model=self._model.model,
            messages=[{"role": "system", "content": question.system}, {"role": "user", "content": question.text}],
            **settings,
        )
        # What a server that only resembles OpenAI's sends is made into an object all the same.
        choice = _of(answer, "choices", 0)
        if _of(choice, "message") is None:
            raise Failed("the server's answer holds no message")
        text = _of(choice, "message", "content")
        cut = _of(choice, "finish_reason") == "length"
        return _reply(text, cut, _of(answer, "usage", "prompt_tokens"), _of(answer, "usage", "completion_tokens"))

    def _adapted(self, error: Exception) -> bool:
        said = _said(error)
        if _status(error) == 400 and self._limit == "max_tokens" and "max_completion_tokens" in said:
            self._limit = "max_completion_tokens"
            return True
        return super()._adapted(error)


class _Anthropic(_Hosted):
    """Anthropic's service, or one like it."""

    def __init__(self, model: AskedModel, notify: Notify, timeout: float) -> None:
        from anthropic import AsyncAnthropic

        super().__init__(model, notify, timeout)
        self._client = AsyncAnthropic(
            api_key=os.environ["ANTHROPIC_API_KEY"],
            base_url=os.environ.get("ANTHROPIC_BASE_URL") or "https://api.anthropic.com",
            timeout=timeout / (_RETRIES + 1),
            max_retries=_RETRIES,
        )

    async def _ask(self, question: Question) -> Reply:
        # Newer versions of the client have no parameter for the temperature, and send it all the same.
        settings: dict[str, object] = {"temperature": TEMPERATURE} if self._temperature else {}
        answer = await self._client.messages.create(
            model=self._model.model,
            system=question.system,
            messages=[{"role": "user", "content": question.text}],
            max_tokens=self._model.max_tokens,
            extra_body=settings,
        )
        blocks = _of(answer, "content")
        if not isinstance(blocks, list):
            raise Failed("the server's answer holds no message")
        text = "".join(filter(None, (_of(block, "text") for block in blocks if _of(block, "type") == "text")))
        cut = _of(answer, "stop_reason") == "max_tokens"
        return _reply(text, cut, _of(answer, "usage", "input_tokens"), _of(answer, "usage", "output_tokens"))


@dataclass(frozen=True)
class _Engine:
    """A model on one of our engines."""

    sampler: "SamplingClient"
    renderer: "Renderer"
    max_length: int | None
    max_tokens: int

    async def reply(self, question: Question) -> Reply:
        """See `Endpoint`."""
        from tinker import types

        from tinkertools.chat.datums import to_model_input
        from tinkertools.chat.examples import RenderError

        messages = [{"role": "system", "content": question.system}, {"role": "user", "content": question.text}]
        try:
            asked = self.renderer.generation_prompt({"messages": messages})
        except RenderError as error:
            raise Failed(f"the model's renderer: {error}") from error
        read = len(asked.tokens)
        limit = self.max_tokens
        if self.max_length is not None:
            limit = min(limit, self.max_length - read)
        if limit < 1:
            raise Failed(f"the question has {read:,} tokens, and the model takes {self.max_length:,}")
        params = types.SamplingParams(max_tokens=limit, temperature=TEMPERATURE, seed=0, stop=self.renderer.stop_tokens)
        try:
            pending = self.sampler.sample(to_model_input(asked.tokens, asked.images), 1, params)
            sequence = (await _in_thread(pending.result)).sequences[0]
        except EngineError as error:
            raise Failed(error.message) from error
        text = self.renderer.decode(sequence.tokens)
        return Reply(text, sequence.stop_reason != "stop", read, len(sequence.tokens))


def _engine(service: "Service", choice: Choice, weights: "Weights | None", model: AskedModel) -> _Engine:
    """The model on an engine that is open.

    Raises:
        RunError: nobody says what the weights were trained on.
    """
    from tinkertools.chat.rendering import load_renderer

    source = weights.source(choice.engine) if weights else None
    base_model = choice.base_model
    if not base_model:
        from tinkertools import remote

        assert isinstance(service, remote.ServiceClient) and source is not None
        found = service.base_model_of(source)
        if found is None:
            raise RunError(
                f"the server does not say what {source} was trained on",
                hint=f"name another model with {model.option}, such as a base model",
            )
        base_model = found
    renderer = load_renderer(base_model, (weights.renderer if weights else None) or AUTO_RENDERER)
    sampler = service.create_sampling_client(source, base_model)
    return _Engine(sampler, renderer, service.max_length(base_model), model.max_tokens)


def _choose(model: AskedModel) -> tuple[Choice, "Weights | None"]:
    """The engine of a model, and the adapter, where it has one. A server's adapter may have a base yet to be asked."""
    from tinkertools.runs.directory import find_weights

    if model.provider == "local":
        weights, base_model = _in_folder(model.option, model.model)
        return choose("local", base_model, ServerSettings(None, False)), weights
    if model.model.startswith("tinker://"):
        return Choice("tinker", "", "the model is on a server", model.url), find_weights(model.model, OUTPUT_DIR)
    return choose("tinker", model.model, ServerSettings(model.url, False)), None


def _in_folder(option: str, folder: str) -> tuple["Weights | None", str]:
    """The adapter in a folder, where it holds one or is a run, and the base model.

    Raises:
        RunError: it is a run without weights, or an adapter that does not say its base.
    """
    from tinkertools.adapters.peft_files import is_adapter
    from tinkertools.runs.directory import RunDirectory, find_weights

    run = RunDirectory(Path(folder))
    if not (is_adapter(run.path) or (run.exists and run.log.is_file())):
        return None, folder
    weights = find_weights(folder, OUTPUT_DIR)
    if weights.directory is None or weights.base_model is None:
        raise RunError(
            f"{folder} does not say which base model it was trained on", hint=f"name another model with {option}"
        )
    return weights, weights.base_model


async def _in_thread(function: Callable[[], Any]) -> Any:
    """What a call that blocks returns. Its thread holds nobody up who leaves."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it is raised again where the result is awaited
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="tt asks").start()
    return await asyncio.wrap_future(future)


def _of(value: Any, *path: str | int) -> Any:
    """What is at a place of an answer; None where there is no such place."""
    for step in path:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and len(value) > step else None
        else:
            value = value.get(step) if isinstance(value, Mapping) else getattr(value, step, None)
    return value


def _reply(text: Any, cut: bool, tokens_in: Any, tokens_out: Any) -> Reply:
    """A reply from what a server sent: whatever is not of its kind is not there."""
    counts = [count if isinstance(count, int) else None for count in (tokens_in, tokens_out)]
    return Reply(text if isinstance(text, str) else "", cut, *counts)


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _said(error: Exception) -> str:
    """What the server wrote, in one line; else what the client says. Without any secret."""
    body = getattr(error, "body", None)
    words = _of(body, "error", "message") or _of(body, "message") or body
    text = words if isinstance(words, str) and words.strip() else str(error) or type(error).__name__
    if (cause := error.__cause__) is not None and _status(error) is None:
        text = f"{text} ({cause or type(cause).__name__})"
    line = " ".join(without_secrets(text).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
