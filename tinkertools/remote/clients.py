"""The clients of the SDK as the loop and the commands use them, on any version of the SDK and any server."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tinkertools.errors import EngineError
from tinkertools.remote.download import Downloads
from tinkertools.remote.explain import explain
from tinkertools.remote.waiting import Waiter, standard

T = TypeVar("T")


@dataclass
class Pending(Generic[T]):
    """A request on its way. Waiting for it says so, ends in time, and tells an error in plain words."""

    _waiter: Waiter
    _future: "Future[Any]"
    _what: str
    _started: float
    _read: Callable[[Any], T] = lambda answer: answer

    def result(self) -> T:
        """What the server answered.

        Raises:
            EngineError: an error, or no answer in time.
        """
        try:
            return self._read(self._waiter.result(self._future, self._what, self._started))
        except Exception as error:
            raise explain(error, self._waiter, self._what) from error


@dataclass(frozen=True)
class Saved:
    """A checkpoint on the server."""

    path: str


class TrainingClient:
    """As the SDK's, with waits that end and errors in plain words.

    The methods return at once; `result()` of what they return waits.
    """

    def __init__(self, sdk: Any, waiter: Waiter, downloads: Downloads, *, keeps_order: bool) -> None:
        self._sdk = sdk
        self._waiter = waiter
        self._downloads = downloads
        self._keeps_order = keeps_order
        self._last_pass: Pending[Any] | None = None

    def forward(self, data: Sequence[Any], loss_fn: str) -> Pending[Any]:
        """The loss without gradients."""
        return self._ask("forward", data, loss_fn)

    def forward_backward(self, data: Sequence[Any], loss_fn: str) -> Pending[Any]:
        """The loss, adding its gradients to those of the step."""
        self._last_pass = self._ask("forward_backward", data, loss_fn)
        return self._last_pass

    def optim_step(self, adam_params: Any) -> Pending[Any]:
        """One step of Adam with the gradients added up.

        SkyRL looks for passes first and for steps right after: a step that was sent together with its pass can be found
        before it, and is taken with a gradient of zero, in silence. There the step waits until the pass is done.
        """
        if self._last_pass is not None and not self._keeps_order:
            try:
                self._last_pass.result()
            except EngineError:
                return self._last_pass  # whoever waits for the step is told the same; there is nothing to step with
        return self._ask("optim_step", adam_params)

    def save_state(self, name: str, ttl_seconds: int | None = None) -> Pending[Saved]:
        """Save adapter and optimizer on the server; for good without `ttl_seconds`."""
        return self._save("save_state", "weights", name, ttl_seconds)

    def save_weights_for_sampler(self, name: str, ttl_seconds: int | None = None) -> Pending[Saved]:
        """Save the adapter on the server, to sample from and to download."""
        saved = self._save("save_weights_for_sampler", "sampler_weights", name, ttl_seconds)
        self._let_number()
        if self._downloads.needs_external:
            # Asked for right behind, so that it holds the same weights.
            self._downloads.external[name] = self._save(
                "save_weights_external", "external_weights", name, self._downloads.external_ttl_seconds
            )
        return saved

    def _let_number(self) -> None:
        """Wait until the SDK has given what it was asked for its place in the order of requests.

        Newer versions do so for `save_weights_for_sampler` on a thread of theirs: the next step, asked for later, could
        be numbered before it, and the weights saved would be those of that step. That thread takes turns.
        """

        async def nothing() -> None:
            """Come to its turn."""

        self._sdk.holder.run_coroutine_threadsafe(nothing()).result(self._waiter.limit)

    def _save(self, method: str, kind: str, name: str, ttl_seconds: int | None) -> Pending[Saved]:
        asked = self._ask(method, name, ttl_seconds=ttl_seconds)
        return dataclasses.replace(asked, _read=lambda answer: Saved(_whole_path(answer.path, kind)))

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Pending[Any]:
        return ask(self._waiter, method, lambda: getattr(self._sdk, method)(*arguments, **options))


class SamplingClient:
    """As the SDK's, with waits that end and errors in plain words."""

    def __init__(self, sdk: Any, waiter: Waiter) -> None:
        self._sdk = sdk
        self._waiter = waiter

    def sample(self, prompt: Any, num_samples: int, sampling_params: Any) -> Pending[Any]:
        """Answers to a prompt."""
        return ask(self._waiter, "sample", lambda: self._sdk.sample(prompt, num_samples, sampling_params))

    def compute_logprobs(self, prompt: Any) -> Pending[list[float | None]]:
        """The logprob of each token, None for the first."""
        asked = ask(self._waiter, "compute_logprobs", lambda: self._sdk.compute_logprobs(prompt))
        length = prompt.length

        def read(answer: Any) -> list[float | None]:
            # SkyRL leaves the first token out, which has none.
            logprobs = [None, *answer] if len(answer) == length - 1 else list(answer)
            if len(logprobs) != length:
                raise EngineError(f"{length} tokens were sent to be scored, and {len(answer)} logprobs came back")
            return logprobs

        return dataclasses.replace(asked, _read=read)


def ask(waiter: Waiter, what: str, request: Callable[[], Any]) -> Pending[Any]:
    """Send a request of the SDK, without waiting for its answer."""
    started = time.monotonic()
    try:
        return Pending(waiter, standard(request()), what, started)
    except Exception as error:
        raise explain(error, waiter, what) from error


def _whole_path(path: str, kind: str) -> str:
    """`tinker://RUN/KIND/NAME`: some servers leave the kind out, which the SDK's other calls want."""
    match path.removeprefix("tinker://").split("/"):
        case [run, name]:
            return f"tinker://{run}/{kind}/{name}"
    return path
