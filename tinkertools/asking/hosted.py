"""Services with OpenAI's or Anthropic's API, asked by their vendors' clients."""

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from tinkertools.asking.endpoints import Failed, Question, Reply
from tinkertools.asking.models import HOSTED, TEMPERATURE, AskedModel
from tinkertools.errors import EngineError, without_secrets
from tinkertools.reporting import Notify

# How often the clients ask again, with pauses that grow or that the server names.
_RETRIES = 3
# Longer words of a server are cut.
_LONGEST = 300


class _Hosted(ABC):
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

    @abstractmethod
    async def _ask(self, question: Question) -> Reply:
        """Ask once."""

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
        key, url = HOSTED[self._model.provider]
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


class OpenAIEndpoint(_Hosted):
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


class AnthropicEndpoint(_Hosted):
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
