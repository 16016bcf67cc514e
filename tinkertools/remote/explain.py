"""What an error of the SDK or of a server means, and what to type next."""

import os
from collections.abc import Iterator
from importlib.metadata import version

from tinkertools.errors import EngineError, RunError, TinkertoolsError
from tinkertools.remote.waiting import Waiter
from tinkertools.remote.wire import detail_of, short

# Versions of the SDK that a server understands: looked up and tried, see the table in the README.
SKYRL_SDK = "0.24.1"
TUFT_SDK = "0.25.0"


# How the loading of a state is called, with its path behind.
LOADING = "loading "
# What stands between a pass and its loss, where it is not the usual one.
WITH_LOSS = " with the loss "


def sdk_version() -> str:
    """The version of the SDK that is installed."""
    return version("tinker")


def type_older(sdk: str) -> str:
    """What to type to run the same command with another version of the SDK."""
    return f"run the same command with an SDK that this server knows: uv run --with 'tinker=={sdk}' tt …"


def explain(error: BaseException, waiter: Waiter, what: str) -> TinkertoolsError:
    """An error of the SDK in the user's words.

    Args:
        error: what it raised.
        waiter: knows the server and what it said last.
        what: the request in words.
    """
    if isinstance(error, TinkertoolsError):
        return error
    server, wire = waiter.server, waiter.wire
    status, words = status_of(error), _said(error)
    if wire.lost is not None:
        return EngineError(
            f"the answer to {wire.lost} of {server} was lost, so nobody knows whether it was done; sending it again "
            "could do it twice",
        )
    if _no_key(error):
        return EngineError(
            f"{server} wants a key, and TINKER_API_KEY is not set",
            hint="export TINKER_API_KEY=… or write it into .env (a server of your own takes any key that begins with "
            "tml-), or compute here: --engine local",
        )
    if status in (401, 403):
        return EngineError(
            f"{server} refuses the key in TINKER_API_KEY (HTTP {status}): {words}",
            hint="set TINKER_API_KEY to a key of that server; `tt inspect-api` tells whether it is taken",
        )
    if status == 402:
        return EngineError(
            f"{server} wants to be paid first (HTTP 402): {words}",
            hint="see the billing page of the account, or compute here: --engine local",
        )
    _, _, loss = what.partition(WITH_LOSS)
    if loss and status in (None, 400, 422) and ("loss_fn" in words or loss in words):
        refused = "these settings of the loss" if "config" in words else "the loss"
        return EngineError(
            f"{server} does not take {refused} {loss}{f' (HTTP {status})' if status else ''}: {words}",
            hint="use one that it has, or write it in Python: forward_backward_custom",
        )
    if status == 422:
        return EngineError(
            f"{server} does not understand what SDK {sdk_version()} sends as {what} (HTTP 422): {words}",
            hint=type_older(TUFT_SDK if "optimizer_config" in words else SKYRL_SDK),
        )
    if status == 404 and what.startswith(LOADING):
        return RunError(
            f"{server} does not have {what.removeprefix(LOADING)} any more (HTTP 404): {words}",
            hint="the run cannot be gone on with: start a new one, and keep its states for longer with --ttl-seconds",
        )
    if status == 404:
        gone = "`tt inspect-api --checkpoints` lists what is there: checkpoints end after their --ttl-seconds"
        return EngineError(
            f"{server} does not have what {what} needs (HTTP 404): {words}",
            hint=gone if "tinker://" in what else _hint(words),
        )
    if status is not None:
        return EngineError(f"{server} failed at {what} (HTTP {status}): {words}", hint=_hint(words))
    return EngineError(f"{what} on {server} failed: {words}", hint=_hint(words))


def mismatch(error: TinkertoolsError, waiter: Waiter) -> TinkertoolsError:
    """The error of a probe: what the server cannot do with one token, it cannot do with a run.

    Errors that say what is wrong, as of a key, are left as they are.
    """
    status = status_of(error)
    if waiter.wire.server_errors or (status is not None and (status >= 500 or status == 400)):
        return EngineError(
            f"{waiter.server} does not do the simplest forward with SDK {sdk_version()}: {waiter.wire.last_word}"
            f"{f' ({_said(error)})' if status else ''}. Older servers answer the protobuf of newer SDKs with errors",
            hint=type_older(SKYRL_SDK),
        )
    return error


def _hint(words: str) -> str:
    lower = words.lower()
    if any(sign in lower for sign in ("too long", "context length", "max_length", "exceeds")):
        return "shorten what is too long: --max-length N, or --overlength truncate"
    return "`tt inspect-api --probe` shows what this server can do with this SDK"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those it came from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error."""
    found = (getattr(part, "status_code", None) for part in _chain(error))
    return next((status for status in found if isinstance(status, int)), None)


def _said(error: BaseException) -> str:
    """What the server wrote, in one line; else what the SDK says."""
    for part in _chain(error):
        if text := detail_of(getattr(part, "body", None)):
            return text
    text = str(error).strip() or type(error).__name__
    return short(text.splitlines()[0])


def _no_key(error: BaseException) -> bool:
    return not os.environ.get("TINKER_API_KEY") and any("api_key" in str(part) for part in _chain(error))
