"""What is noticed of the talk with a server, and what is not sent again."""

import asyncio
from collections.abc import Callable

import httpx
import pytest

from tinkertools.remote.wire import Wire, detail_of, watch

URL = "http://127.0.0.1:1"


def talk(
    wire: Wire, answers: Callable[[httpx.Request], httpx.Response], *paths: str, url: str = URL
) -> list[int | str]:
    """Send a request to each path while the wire is watched: the statuses, or the errors' names."""

    async def send() -> list[int | str]:
        found: list[int | str] = []
        async with httpx.AsyncClient(transport=httpx.MockTransport(answers)) as client:
            for path in paths:
                try:
                    found.append((await client.post(f"{url}/api/v1/{path}", json={})).status_code)
                except httpx.HTTPError as error:
                    found.append(type(error).__name__)
        return found

    with watch(wire):
        return asyncio.run(send())


def always(status: int, body: object = None) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(status, json=body)


def raising(error: type[httpx.HTTPError]) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error("words of the library", request=request)  # type: ignore[call-arg]

    return answer


def guarding(url: str = URL) -> Wire:
    wire = Wire(url)
    wire.guards = True
    return wire


def test_errors_in_a_row_are_counted_and_forgotten() -> None:
    wire = Wire(URL)
    assert wire.last_word == "it has not answered yet"
    talk(wire, always(503, {"detail": "full"}), "forward", "forward")
    assert (wire.failures, wire.server_errors) == (2, 2)
    assert wire.last_word == "HTTP 503 to forward: full, 2 times in a row"
    talk(wire, always(429, {}), "forward")
    assert (wire.failures, wire.server_errors) == (3, 0)
    talk(wire, always(200, {}), "retrieve_future")
    assert (wire.failures, wire.last_word) == (0, "HTTP 200 to retrieve_future")


def test_the_state_of_the_queue_is_the_last_word() -> None:
    wire = Wire(URL)
    talk(wire, always(408, {"queue_state": "paused_capacity", "queue_state_reason": "no GPU"}), "retrieve_future")
    assert wire.last_word == "the request is in its queue (paused_capacity: no GPU)"
    assert wire.failures == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ConnectError, "no connection at optim_step"),
        (httpx.ReadTimeout, "no answer in time at optim_step"),
        (httpx.ReadError, "the connection broke off at optim_step"),
        (httpx.RemoteProtocolError, "the answer broke off or is no HTTP at optim_step"),
    ],
)
def test_what_the_transport_says(error: type[httpx.HTTPError], words: str) -> None:
    wire = Wire(URL)
    assert talk(wire, raising(error), "optim_step") == [error.__name__]
    assert wire.last_word == words


@pytest.mark.parametrize("answers", [raising(httpx.ReadTimeout), raising(httpx.ReadError), always(500), always(409)])
@pytest.mark.parametrize("endpoint", ["forward_backward", "optim_step", "save_weights", "save_weights_for_sampler"])
def test_what_may_have_been_done_is_not_sent_again(
    answers: Callable[[httpx.Request], httpx.Response], endpoint: str
) -> None:
    wire = guarding()
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        return answers(request)

    talk(wire, answer, endpoint)
    assert wire.lost is not None
    assert wire.lost.startswith(endpoint)
    # Neither it nor any other step goes out, whatever the SDK tries; looking and asking still does.
    assert talk(wire, answer, endpoint, "optim_step") == [400, 400]
    assert seen == [f"/api/v1/{endpoint}"]
    talk(wire, answer, "retrieve_future")
    assert len(seen) == 2


@pytest.mark.parametrize("answers", [raising(httpx.ConnectError), always(429), always(503), always(408)])
def test_what_was_certainly_not_done_may_be_sent_again(answers: Callable[[httpx.Request], httpx.Response]) -> None:
    wire = guarding()
    talk(wire, answers, "optim_step")
    assert wire.lost is None
    assert talk(wire, always(200, {}), "optim_step") == [200]


def test_a_lost_answer_to_a_question_is_asked_again() -> None:
    wire = guarding()
    talk(wire, raising(httpx.ReadTimeout), "retrieve_future", "forward", "asample")
    assert wire.lost is None


@pytest.mark.parametrize(
    ("url", "trusted"),
    [
        ("https://tinker.thinkingmachines.dev/services/tinker-prod", True),
        ("https://thinkingmachines.dev.example.com", False),
        ("http://localhost:8000", False),
    ],
)
def test_only_the_vendors_service_is_known_to_know_repeats(url: str, trusted: bool) -> None:
    wire = guarding(url)
    talk(wire, raising(httpx.ReadTimeout), "optim_step", url=url)
    assert wire.failures == 1
    assert (wire.lost is None) == trusted


def test_before_training_nothing_is_held_back() -> None:
    wire = Wire(URL)
    talk(wire, always(500), "forward_backward")
    assert wire.lost is None


def test_what_nobody_waits_for_is_not_watched() -> None:
    wire = Wire(URL)
    talk(wire, always(500), "session_heartbeat", "telemetry")
    assert (wire.failures, wire.last_word) == (0, "it has not answered yet")


def test_other_servers_are_not_watched() -> None:
    wire = guarding()
    talk(wire, raising(httpx.ReadTimeout), "optim_step", url="http://127.0.0.1:2")
    assert (wire.failures, wire.lost) == (0, None)


def test_afterwards_nothing_is_watched() -> None:
    original = httpx.AsyncClient.send
    talk(Wire(URL), always(200, {}), "forward")
    assert httpx.AsyncClient.send is original


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"detail": "no such\n thing"}, "no such thing"),
        ({"error": {"message": "deep"}}, "deep"),
        (
            {"detail": [{"loc": ["body", "optimizer_config"], "msg": "Extra inputs"}]},
            "body.optimizer_config: Extra inputs",
        ),
        ('{"detail": "as text"}', "as text"),
        ("<html>\nno JSON</html>", "<html>"),
        ("", None),
        ({}, None),
        (None, None),
        ({"detail": "x" * 1000}, "x" * 299 + "…"),
    ],
)
def test_what_an_error_says(body: object, words: str | None) -> None:
    assert detail_of(body) == words


def test_a_server_that_fails_to_tell_is_not_asked_at_once_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("tinkertools.remote.wire.asyncio.sleep", sleep)
    wire = Wire(URL)
    talk(wire, always(500), *["retrieve_future"] * 9)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    talk(wire, always(408), "retrieve_future")
    assert len(pauses) == 9
