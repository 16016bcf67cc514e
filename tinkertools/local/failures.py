"""Errors of the embedded engine: each is one of ours, and the SDK's for the same thing.

A service refuses some requests at once (`tinker.BadRequestError` and its neighbours, by HTTP status), others when they
are computed (`tinker.RequestFailedError` at a future's `result()`), and the SDK itself raises `ValueError` for what it
sees without asking. Where the line runs is the service's business, so these are all of them, and code that catches any
of them works.
"""

import uuid
from typing import Any

import httpx
import tinker
from tinker.types import RequestErrorCategory

from tinkertools.errors import EngineError, ModelError, RunError, TinkertoolsError, without_secrets
from tinkertools.local.memory import out_of_memory


class _Refusal(TinkertoolsError):
    """Made like our errors; has the attributes of the SDK's."""

    status_code: int
    category = RequestErrorCategory.User

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # Not `super().__init__`: next in line are the SDK's constructors, which take other things.
        self.message = without_secrets(message)
        self.hint = without_secrets(hint) if hint else None
        Exception.__init__(self, self.message)
        self.request = httpx.Request("POST", "local://tinkertools")
        self.response = httpx.Response(self.status_code, request=self.request)
        self.body: object | None = None
        self.request_id = uuid.uuid4().hex
        if self.hint:
            self.add_note(self.hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (type(self), self.message, self.hint)


def _made_again(kind: type[_Refusal], message: str, hint: str | None) -> _Refusal:
    return kind(message, hint=hint)


class BadRequest(_Refusal, EngineError, tinker.BadRequestError, tinker.RequestFailedError, ValueError):
    """What was asked for cannot be computed; the message says what is wrong, and where."""

    status_code = 400


class BadModel(_Refusal, ModelError, tinker.BadRequestError, tinker.RequestFailedError, ValueError):
    """A base model that cannot be used."""

    status_code = 400


class NotFound(_Refusal, EngineError, tinker.NotFoundError, tinker.RequestFailedError):
    """A checkpoint, run or session that is not in the store, or not any more."""

    status_code = 404


class Conflict(_Refusal, EngineError, tinker.ConflictError, tinker.RequestFailedError):
    """A checkpoint of that name is there already."""

    status_code = 409


class OutOfMemory(_Refusal, EngineError, tinker.InternalServerError, tinker.RequestFailedError):
    """The device has too little memory for a request."""

    status_code = 500
    category = RequestErrorCategory.Server


class Closed(EngineError, RuntimeError):
    """The service client was closed; the SDK raises `RuntimeError`."""


def as_sdk(error: BaseException) -> BaseException:
    """The error that those who wait for a request are given for `error`."""
    made: _Refusal
    if type(error) is EngineError and error.__cause__ is not None and out_of_memory(error.__cause__):
        made = OutOfMemory(error.message, hint=error.hint)
    elif type(error) is EngineError or type(error) is RunError:
        made = BadRequest(error.message, hint=error.hint)
    elif type(error) is ModelError:
        made = BadModel(error.message, hint=error.hint)
    elif not isinstance(error, _Refusal) and out_of_memory(error):
        first_line = (str(error) or "no memory").split("\n", maxsplit=1)[0]
        made = OutOfMemory(f"too little memory: {first_line}", hint="send fewer or shorter sequences at a time")
        made.__cause__ = error
        return made.with_traceback(error.__traceback__)
    else:
        return error
    made.__cause__ = error.__cause__
    return made.with_traceback(error.__traceback__)
