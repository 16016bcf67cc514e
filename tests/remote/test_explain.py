"""The SDK's errors in plain words, each with what to type next."""

import httpx
import pytest
import tinker

from tinkertools.errors import EngineError, ServerTimeoutError, TinkertoolsError, without_secrets
from tinkertools.remote.explain import explain, mismatch
from tinkertools.remote.waiting import Waiter
from tinkertools.remote.wire import Wire

URL = "http://127.0.0.1:1"
KEY = "tml-planted-key-1234567890"


def waiter() -> Waiter:
    return Waiter(Wire(URL), URL, 60, print)


def status_error(status: int, body: object = None) -> tinker.APIStatusError:
    response = httpx.Response(status, json=body, request=httpx.Request("POST", f"{URL}/api/v1/x"))
    return tinker.APIStatusError(f"Error code: {status}", response=response, body=body)


@pytest.mark.parametrize(
    ("status", "body", "words", "hint"),
    [
        (401, {"detail": "bad key"}, "refuses the key in TINKER_API_KEY (HTTP 401): bad key", "set TINKER_API_KEY"),
        (403, {}, "refuses the key in TINKER_API_KEY (HTTP 403)", "set TINKER_API_KEY"),
        (402, {"detail": "no credit"}, "wants to be paid first (HTTP 402): no credit", "billing"),
        (
            422,
            {"detail": [{"loc": ["optimizer_config"], "msg": "Extra inputs"}]},
            "does not understand what SDK",
            "tinker==0.25.0",
        ),
        (422, {"detail": "?"}, "does not understand what SDK", "tinker==0.24.1"),
        (404, {"detail": "Model not found"}, "does not have what x needs (HTTP 404): Model not found", "inspect-api"),
        (
            400,
            {"detail": "the sequence is too long"},
            "failed at x (HTTP 400): the sequence is too long",
            "--max-length",
        ),
        (500, {"detail": "oops"}, "failed at x (HTTP 500): oops", "inspect-api --probe"),
    ],
)
def test_a_status_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, status: int, body: object, words: str, hint: str
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    found = explain(status_error(status, body), waiter(), "x")
    assert isinstance(found, EngineError)
    assert words in found.message
    assert hint in str(found.hint)


def test_the_status_is_found_behind_other_errors() -> None:
    try:
        try:
            raise status_error(402, {"detail": "no credit"})
        except tinker.APIStatusError as error:
            raise ValueError("Error retrieving result: … with status") from error
    except ValueError as error:
        assert "(HTTP 402): no credit" in explain(error, waiter(), "optim_step").message


def test_no_key_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    found = explain(tinker.TinkerError("The api_key client option must be set"), waiter(), "the first contact")
    assert "wants a key, and TINKER_API_KEY is not set" in found.message
    assert ".env" in str(found.hint)


def test_a_lost_step_is_told_whatever_the_sdk_says() -> None:
    lost = waiter()
    lost.wire.lost = "optim_step (no answer in time)"
    found = explain(status_error(400, {"detail": "not sent"}), lost, "forward_backward")
    assert "the answer to optim_step (no answer in time)" in found.message


def test_what_is_plain_already_stays() -> None:
    error = ServerTimeoutError("plain")
    assert explain(error, waiter(), "x") is error


def test_a_probe_that_fails_names_the_version_to_install() -> None:
    one = waiter()
    one.wire.answered("forward_backward", httpx.Response(500, json={"detail": "no JSON"}))
    found = mismatch(ServerTimeoutError("does not do forward"), one)
    assert "does not do the simplest forward with SDK" in found.message
    assert "no JSON" in found.message
    assert "tinker==0.24.1" in str(found.hint)
    other = EngineError("refuses the key")
    assert mismatch(other, waiter()) is other


def test_keys_are_blacked_out_of_every_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    monkeypatch.setenv("MY_SECRET", "swordfish99")
    echo = {"detail": f"your headers: Authorization: Bearer {KEY}, swordfish99"}
    found = explain(status_error(401, echo), waiter(), "x")
    assert "swordfish99" not in found.message + str(found.hint)
    assert KEY not in found.message + repr(found) + str(found.args)
    made = TinkertoolsError(f"with {KEY}", hint=f"or {KEY}")
    assert (made.message, made.hint, str(made)) == ("with (secret)", "or (secret)", "with (secret)")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tml-abcdefgh12345", "(secret)"),
        ("hf_abcdefghijkl", "(secret)"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer (secret)"),
        ("a token of half_price words", "a token of half_price words"),
        ("any key that begins with tml-, or tml-x", "any key that begins with tml-, or tml-x"),
    ],
)
def test_what_looks_like_a_key(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
