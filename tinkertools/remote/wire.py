"""What the SDK and a server say to each other, watched on the one thing that every version of the SDK uses: httpx.

The SDK sends a request again when its answer was lost or was an error, for minutes and without a word. Watching tells
what the server said last. And where an answer to an optimizer step was lost, sending it again could take the step
twice: a server that does not know requests by their sequence number would do so. Such a request is not sent again.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx

from tinkertools.errors import without_secrets

_API = "/api/v1/"
# What a client does on its own, and nobody waits for.
_BACKGROUND = {"telemetry", "session_heartbeat"}
# What changes a model or its checkpoints, and must be done exactly once.
_ONCE = {
    "forward_backward",
    "optim_step",
    "save_weights",
    "save_weights_for_sampler",
    "save_weights_external",
    "load_weights",
}
# What asks whether something is done. The SDK asks again at once where a server answers with an error: not here.
_POLLS = {"retrieve_future", "retrieve_futures"}
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
# Answers of servers and proxies that did nothing with the request: it may be sent again.
_NOT_DONE = {408, 425, 429, 503}
# Thrown before anything was sent.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
# The vendor's service puts requests in order by their sequence number, and so knows one that it has seen.
_KNOWS_REPEATS = ("thinkingmachines.dev", "thinkingmachines.ai")
# Longer words of a server are cut.
_LONGEST = 300
# Answers longer than this hold results, not the state of a queue.
_SMALL = 4096


class Wire:
    """The talk with one server.

    Attributes:
        failures: how many answers in a row were errors or did not come.
        server_errors: how many answers in a row had a status of 500 or more.
        guards: whether requests that must be done once are not sent again; off until training begins.
        lost: in words, the request that must not be sent again and whose outcome is not known.
    """

    def __init__(self, base_url: str) -> None:
        self._netloc = httpx.URL(base_url).netloc
        host = urlsplit(base_url).hostname or ""
        self._knows_repeats = any(host == known or host.endswith(f".{known}") for known in _KNOWS_REPEATS)
        self.failures = 0
        self.server_errors = 0
        self.guards = False
        self.lost: str | None = None
        self._said: str | None = None
        self._queue: str | None = None

    @property
    def last_word(self) -> str:
        """What the server said last, and how often in a row it failed."""
        if self._queue and not self.failures:
            return self._queue
        if self._said is None:
            return "it has not answered yet"
        times = f", {self.failures} times in a row" if self.failures > 1 else ""
        return f"{self._said}{times}"

    def carries(self, request: httpx.Request) -> bool:
        """Whether a request goes to this server."""
        return request.url.netloc == self._netloc

    def refuses(self, endpoint: str) -> bool:
        """Whether a request must not be sent any more."""
        return self.lost is not None and endpoint in _ONCE

    def failed(self, endpoint: str, error: Exception) -> None:
        """Take note of a request without an answer."""
        self.failures += 1
        self.server_errors = 0
        self._said = f"{_words(error)} at {endpoint}"
        if not isinstance(error, _NOT_SENT):
            self._lose(endpoint, _words(error))

    def answered(self, endpoint: str, response: httpx.Response) -> None:
        """Take note of an answer."""
        status = response.status_code
        self.server_errors = self.server_errors + 1 if status >= 500 else 0
        detail = _body_of(response) if status >= 400 else None
        self._said = f"HTTP {status} to {endpoint}{f': {detail}' if detail else ''}"
        self._queue = _queue_state(response)
        waiting = status == 408 and self._queue is not None
        self.failures = self.failures + 1 if status >= 400 and not waiting else 0
        if (status >= 500 and status not in _NOT_DONE) or status == 409:
            self._lose(endpoint, f"HTTP {status}")

    def _lose(self, endpoint: str, why: str) -> None:
        if self.guards and endpoint in _ONCE and not self._knows_repeats and self.lost is None:
            self.lost = f"{endpoint} ({why})"


@contextmanager
def watch(wire: Wire) -> Iterator[None]:
    """Watch all that the SDK says in this process, while the block runs."""
    original = httpx.AsyncClient.send

    async def send(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        endpoint = _endpoint(request)
        if endpoint is None or not wire.carries(request):
            return await original(client, request, **options)
        if wire.refuses(endpoint):
            return httpx.Response(400, json={"detail": f"not sent: {wire.lost} is not settled"}, request=request)
        try:
            response = await original(client, request, **options)
        except Exception as error:
            wire.failed(endpoint, error)
            raise
        wire.answered(endpoint, response)
        if endpoint in _POLLS and wire.server_errors:
            await asyncio.sleep(min(_FIRST_PAUSE * 2 ** min(wire.server_errors, 10), _LONGEST_PAUSE))
        return response

    httpx.AsyncClient.send = send  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        httpx.AsyncClient.send = original  # type: ignore[method-assign]


def _endpoint(request: httpx.Request) -> str | None:
    """`optim_step` of `/api/v1/optim_step`; None for what is not watched."""
    _, found, rest = request.url.path.partition(_API)
    name = rest.split("/", maxsplit=1)[0]
    name = rest if name == "client" else name
    return name if found and name not in _BACKGROUND else None


def _body_of(response: httpx.Response) -> str | None:
    with suppress(httpx.ResponseNotRead):
        return detail_of(response.text)
    return None


def _queue_state(response: httpx.Response) -> str | None:
    """In words, why the server lets a request wait; None where it does not say."""
    with suppress(ValueError, httpx.ResponseNotRead, AttributeError):
        if len(response.content) <= _SMALL:
            body = json.loads(response.content)
            if state := body.get("queue_state"):
                reason = body.get("queue_state_reason")
                return f"the request is in its queue ({state}{f': {reason}' if reason else ''})"
    return None


def _words(error: Exception) -> str:
    """What happened to a request, without its headers or body."""
    kinds: list[tuple[type[Exception], str]] = [
        (httpx.ConnectTimeout, "no connection in time"),
        (httpx.ConnectError, "no connection"),
        (httpx.ReadTimeout, "no answer in time"),
        (httpx.RemoteProtocolError, "the answer broke off or is no HTTP"),
        (httpx.ReadError, "the connection broke off"),
        (httpx.WriteError, "the connection broke off"),
        (httpx.TimeoutException, "no answer in time"),
    ]
    for kind, words in kinds:
        if isinstance(error, kind):
            return words
    return type(error).__name__


def detail_of(body: Any) -> str | None:
    """What the body of an error says, in one line; None where it says nothing."""
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except ValueError:
            return short(body.strip().splitlines()[0]) if body.strip() else None
    if not isinstance(body, dict):
        return None
    found = next((body[key] for key in ("detail", "error", "message") if body.get(key)), None)
    if isinstance(found, list):
        # FastAPI's list of what is wrong with a request.
        parts = [
            f"{'.'.join(str(part) for part in item.get('loc', []))}: {item.get('msg')}"
            for item in found
            if isinstance(item, dict)
        ]
        found = "; ".join(parts)
    if isinstance(found, dict):
        return detail_of(found)
    return short(" ".join(str(found).split())) if found else None


def short(text: str) -> str:
    """A line that is not too long for a message. Secrets go first: a part of one is not known as one."""
    text = without_secrets(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
