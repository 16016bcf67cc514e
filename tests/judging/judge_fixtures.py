"""Fixtures of tests that ask the services: their clients, with keys and servers that are not theirs."""

from collections.abc import Callable, Iterator

import anyio
import pytest
from judge_server import KEY, Judge, JudgeServer

Serve = Callable[..., JudgeServer]


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key for each service, and no address of any."""
    for name in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that the clients make, none of which takes any time."""
    found: list[float] = []
    nap = anyio.sleep

    async def sleep(seconds: float) -> None:
        found.append(seconds)
        await nap(0)

    monkeypatch.setattr(anyio, "sleep", sleep)
    return found


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, services: None, slept: list[float]) -> Iterator[Serve]:
    """Start a server on which both providers are."""
    started: list[JudgeServer] = []

    def start(judge: Judge) -> JudgeServer:
        server = JudgeServer(judge)
        server.__enter__()
        started.append(server)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        return server

    yield start
    for server in started:
        server.__exit__(None, None, None)
