"""What can be found out of the installed SDK and of a server."""

import inspect
import re
import statistics
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from tinkertools.errors import EngineError, ServerTimeoutError
from tinkertools.remote.explain import SKYRL_SDK, TUFT_SDK, sdk_version
from tinkertools.remote.kinds import SKYRL, TUFT, VENDOR
from tinkertools.remote.service import ServiceClient
from tinkertools.remote.waiting import settled
from tinkertools.remote.wire import short

OLDEST_SDK = (0, 16)
# For each kind of server the versions of the SDK that work, first and last, and the one to install. From running them:
# see the table in the README.
_PAIRS = {SKYRL: ((0, 16), (0, 24), SKYRL_SDK), TUFT: ((0, 25), (0, 25), TUFT_SDK)}

# The modules before a type's name, which only make signatures long.
_MODULES = re.compile(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])")

_PINGS = 5
_PING_SECONDS = 10.0
# Rows of a listing that are asked for at once, and in all.
_PAGE = 100
_MOST = 10_000


def sdk_methods() -> dict[str, dict[str, str]]:
    """Every public method of the installed SDK's clients with its signature, by class."""
    import tinker
    from tinker.lib.public_interfaces.rest_client import RestClient

    classes = [tinker.ServiceClient, tinker.TrainingClient, tinker.SamplingClient, RestClient]
    return {made.__name__: methods_of(made) for made in classes}


def methods_of(made: type) -> dict[str, str]:
    """The public methods of a class with their signatures, without `self`."""
    found = {}
    for name, method in inspect.getmembers(made, callable):
        if name.startswith("_") or inspect.isclass(method):
            continue
        signature = inspect.signature(method)
        parameters = [
            p.replace(annotation=_bare(p.annotation)) for p in signature.parameters.values() if p.name != "self"
        ]
        plain = signature.replace(parameters=parameters, return_annotation=_bare(signature.return_annotation))
        found[name] = _MODULES.sub("", str(plain))
    return found


class _Bare:
    """An annotation that is written without quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _bare(annotation: Any) -> Any:
    return _Bare(annotation) if isinstance(annotation, str) else annotation


def verdict(kind: str | None) -> tuple[bool | None, str]:
    """Whether this SDK and a kind of server are known to work together (None: nobody tried), and so in words."""
    sdk = sdk_version()
    numbers = tuple(int(part) for part in sdk.split(".")[:2])
    if numbers < OLDEST_SDK:
        return False, f"SDK {sdk} is older than all that tt works with: pip install 'tinker>=0.16'"
    if kind == VENDOR:
        return None, f"SDK {sdk}: the service takes the newest; nobody tried this pair here"
    if kind not in _PAIRS:
        return None, f"SDK {sdk} with a server that does not say what it is: --probe tries each operation"
    first, last, install = _PAIRS[kind]
    if first <= numbers <= last:
        return True, f"SDK {sdk} with {kind}: known to work"
    return (
        False,
        f"SDK {sdk} with {kind}: known not to work; install tinker=={install} (uv run --with 'tinker=={install}' tt …)",
    )


def latency_of(address: str) -> float | None:
    """Milliseconds to the server and back, the median of a few; None where nothing answers."""
    times = []
    try:
        with httpx.Client(timeout=_PING_SECONDS) as client:
            for _ in range(_PINGS):
                began = time.perf_counter()
                client.get(f"{address.rstrip('/')}/api/v1/healthz")
                times.append(time.perf_counter() - began)
    except httpx.HTTPError:
        return None
    return round(statistics.median(times) * 1000, 1)


def survey(service: ServiceClient) -> dict[str, Any]:
    """What a server tells about the account's things on it; `unknown` says what it does not tell and why."""
    found: dict[str, Any] = {
        "models": [
            {"name": model.name, "max_length": model.max_length, "trainable": model.trainable}
            for model in service.models or []
        ]
    }
    unknown: dict[str, str] = {}
    questions: dict[str, Callable[[], Any]] = {
        "account": lambda: _account(service),
        "storage": lambda: _storage(service),
        "sessions": lambda: list(_rest(service, "list_sessions", limit=_PAGE).sessions),
        "runs": lambda: [_run(run) for run in runs_of(service)],
        "checkpoints": lambda: checkpoints_of(service),
    }
    for name, question in questions.items():
        try:
            found[name] = question()
        except ServerTimeoutError:
            raise
        except EngineError as error:
            unknown[name] = error.message
    return found | ({"unknown": unknown} if unknown else {})


def runs_of(service: ServiceClient) -> list[Any]:
    """All training runs on a server."""
    return list(_pages(lambda offset: _rest(service, "list_training_runs", limit=_PAGE, offset=offset).training_runs))


def checkpoints_of(service: ServiceClient) -> list[dict[str, Any]]:
    """All checkpoints of the account with size (bytes), creation and expiry; the oldest first.

    Raises:
        EngineError: the server tells of none.
    """
    try:
        found = list(
            _pages(lambda offset: _rest(service, "list_user_checkpoints", limit=_PAGE, offset=offset).checkpoints)
        )
    except ServerTimeoutError:
        raise
    except EngineError:
        # Servers without this listing have one for each run.
        found = [
            checkpoint
            for run in runs_of(service)
            for checkpoint in _rest(service, "list_checkpoints", run.training_run_id).checkpoints
        ]
    rows = [
        {
            "path": checkpoint.tinker_path,
            "type": str(checkpoint.checkpoint_type),
            "created": _utc(checkpoint.time).isoformat(timespec="seconds"),
            "size_bytes": getattr(checkpoint, "size_bytes", None),
            "expires": _utc(expires).isoformat(timespec="seconds")
            if (expires := getattr(checkpoint, "expires_at", None))
            else None,
        }
        for checkpoint in found
    ]
    return sorted(rows, key=lambda row: str(row["created"]))


def age_of(checkpoint: dict[str, Any], now: datetime) -> timedelta:
    """How long ago a checkpoint was made."""
    return now - datetime.fromisoformat(checkpoint["created"])


def delete(service: ServiceClient, path: str) -> None:
    """Delete a checkpoint on the server.

    Raises:
        EngineError: it was not deleted.
    """
    _rest(service, "delete_checkpoint_from_tinker_path", path)


def _pages(page: Callable[[int], Iterable[Any]]) -> Iterable[Any]:
    """The rows of all pages; servers without pages give the same rows again, or all of them."""
    offset = 0
    while offset < _MOST:
        rows = list(page(offset))
        yield from rows
        if len(rows) < _PAGE:
            return
        offset += len(rows)


def _rest(service: ServiceClient, method: str, *arguments: Any, **options: Any) -> Any:
    asked = getattr(service.rest, method, None)
    if asked is None:
        raise EngineError(f"SDK {sdk_version()} has no {method}")
    return service.call(method, lambda: settled(asked(*arguments, **options), service.waiter.limit))


def _account(service: ServiceClient) -> dict[str, Any]:
    known = _rest(service, "whoami")
    return {"user": known.user_urn, "organization": known.org_urn}


def _storage(service: ServiceClient) -> Any:
    import tinker

    admin = getattr(tinker, "AdminClient", None)
    if admin is None:
        raise EngineError(f"SDK {sdk_version()} does not ask for it")
    client = admin(base_url=service.address)
    return _plain(
        service.call(
            "the storage", lambda: settled(client.get_current_checkpoint_storage_usage(), service.waiter.limit)
        )
    )


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else short(str(value))


def _run(run: Any) -> dict[str, Any]:
    return {
        "id": run.training_run_id,
        "base_model": run.base_model,
        "rank": getattr(run, "lora_rank", None),
        "last_request": _utc(run.last_request_time).isoformat(timespec="seconds"),
    }


def _utc(time_given: datetime) -> datetime:
    """A time with its zone; servers that name none mean UTC."""
    return time_given if time_given.tzinfo else time_given.replace(tzinfo=UTC)
