"""What the SDK has two of: methods for `async` code, and clients that are the future of themselves."""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any, ParamSpec, Self, TypeVar

import tinker

from tinkertools.local.worker import finished

P = ParamSpec("P")
R = TypeVar("R")


def submits(method: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The `_async` twin of a method that does not block: awaiting it gives what the method returns, a future say."""

    @functools.wraps(method)
    async def twin(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(*args, **kwargs)

    return _named(method, twin)


def awaits(method: Callable[P, tinker.APIFuture[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The `_async` twin of a method that returns a future: awaiting it gives the future's result."""

    @functools.wraps(method)
    async def twin(*args: P.args, **kwargs: P.kwargs) -> R:
        return await method(*args, **kwargs).result_async()

    return _named(method, twin)


def in_thread(method: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The `_async` twin of a method that blocks: awaiting it gives what the method returns."""

    @functools.wraps(method)
    async def twin(*args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.to_thread(method, *args, **kwargs)

    return _named(method, twin)


def _named(method: Callable[..., Any], twin: Callable[P, R]) -> Callable[P, R]:
    twin.__name__ = f"{method.__name__}_async"
    twin.__qualname__ = f"{method.__qualname__}_async"
    return twin


class Ready:
    """A client that may be used as it is, or as the future of itself.

    The SDK's `create_…` methods returned clients, and return futures of clients since 0.34 or so. Code of either kind
    works with this: `client.sample(…)`, `client.result().sample(…)`, `(await client).sample(…)`.
    """

    def result(self, timeout: float | None = None) -> Self:
        """This client."""
        return self

    async def result_async(self, timeout: float | None = None) -> Self:
        """This client."""
        return self

    async def coroutine(self) -> Self:
        """This client."""
        return self

    def future(self) -> Future[Self]:
        """A finished future of this client."""
        return finished(self)

    def __await__(self) -> Generator[Any, None, Self]:
        return self.result_async().__await__()
