"""The clients of the SDK as the loop and the commands use them, on any version of the SDK and any server."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tinkertools import custom_loss
from tinkertools.custom_loss import CustomLoss
from tinkertools.errors import EngineError, TinkertoolsError
from tinkertools.remote import passes
from tinkertools.remote.download import Downloads
from tinkertools.remote.explain import WITH_LOSS, explain
from tinkertools.remote.passes import Config
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

    @property
    def failed(self) -> bool:
        """Whether it is known to have failed."""
        return self._future.done() and (self._future.cancelled() or self._future.exception() is not None)

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

    def __init__(
        self, sdk: Any, waiter: Waiter, downloads: Downloads, *, keeps_order: bool = True, means: bool = False
    ) -> None:
        """A model in training.

        Args:
            sdk: the SDK's client.
            waiter: waits for the server.
            downloads: of its adapters.
            keeps_order: whether the server does passes and steps in the order in which they are sent.
            means: whether it divides the loss of each datum by the sum of its weights.
        """
        self._sdk = sdk
        self._waiter = waiter
        self._downloads = downloads
        self._keeps_order = keeps_order
        self._means = means
        self._last_pass: Pending[Any] | None = None
        self._last_step: Pending[Any] | None = None

    def forward(self, data: Sequence[Any], loss_fn: str, loss_fn_config: Config = None) -> Pending[Any]:
        """The loss without gradients, and the `logprobs` of every target token."""
        return self._pass("forward", data, loss_fn, loss_fn_config)

    def forward_backward(self, data: Sequence[Any], loss_fn: str, loss_fn_config: Config = None) -> Pending[Any]:
        """The loss, adding its gradients to those of the step.

        The policy losses are sums over tokens on every server. `cross_entropy` on SkyRL is, for each datum, the mean
        over its weights; `forward_backward_custom` has the sum there, too.
        """
        self._last_pass = self._pass("forward_backward", data, loss_fn, loss_fn_config)
        return self._last_pass

    def forward_backward_custom(self, data: Sequence[Any], loss_fn: CustomLoss) -> Pending[Any]:
        """As `forward_backward`, with a loss in Python: from `data` and the logprobs of each to the loss and metrics.

        It returns when the forward pass is done and `loss_fn` has run, here; the result is that of the backward pass
        behind it. The logprobs are those of every target token, whatever its weight. `metrics` hold what the loss told,
        its value as `loss:sum`, and the cross-entropy with its gradient as `surrogate_loss:sum`. What fails is raised
        by the result, and by that of the next step, which is not taken.

        Raises:
            EngineError: there are no datums, or the loss is no function.
        """
        custom_loss.check(data, loss_fn)
        self._last_pass = self._custom(data, loss_fn)
        return self._last_pass

    def optim_step(self, adam_params: Any) -> Pending[Any]:
        """One step of Adam with the gradients added up.

        SkyRL looks for passes first and for steps right after: a step that was sent together with its pass can be found
        before it, and is taken with a gradient of zero, in silence. There the step waits until the pass is done.
        """
        if self._last_pass is not None and (self._last_pass.failed or not self._keeps_order):
            try:
                self._last_pass.result()
            except EngineError:
                return self._last_pass  # whoever waits for the step is told the same; there is nothing to step with
        self._last_step = self._ask("optim_step", adam_params)
        return self._last_step

    def save_state(self, name: str, ttl_seconds: int | None = None) -> Pending[Saved]:
        """Save adapter and optimizer on the server; for good without `ttl_seconds`."""
        return self._save("save_state", "weights", name, ttl_seconds)

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None, *, fetched: bool = True
    ) -> Pending[Saved]:
        """Save the adapter on the server, to sample from and, where it will be `fetched`, to download."""
        saved = self._save("save_weights_for_sampler", "sampler_weights", name, ttl_seconds)
        self._let_number()
        if fetched and self._downloads.needs_external:
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

    def _custom(self, data: Sequence[Any], loss_fn: CustomLoss) -> Pending[Any]:
        started = time.monotonic()
        try:
            forward = self.forward(passes.plain(data), passes.CROSS_ENTROPY).result()
            logprobs = passes.logprobs_of(data, forward)
            loss = passes.computed(data, logprobs, loss_fn)
            sent = passes.weighted(data, logprobs, loss, means=self._means)
            asked = self._ask("forward_backward", *sent)
        except TinkertoolsError as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return Pending(self._waiter, failed, "forward_backward", started)
        return dataclasses.replace(asked, _read=passes.as_one(forward, loss))

    def _pass(self, method: str, data: Sequence[Any], loss_fn: str, config: Config) -> Pending[Any]:
        """A pass, behind the last step: SkyRL can find a pass that was sent right behind a step before it."""
        if self._last_step is not None and not self._keeps_order:
            try:
                self._last_step.result()
            except EngineError:
                return self._last_step
        if self._means:
            data, loss_fn, config = passes.as_sums(data, loss_fn, config)
        what = method if loss_fn == passes.CROSS_ENTROPY else f"{method}{WITH_LOSS}{loss_fn}"
        asked = ask(self._waiter, what, lambda: getattr(self._sdk, method)(data, loss_fn, config))
        return dataclasses.replace(asked, _read=passes.with_sum)

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
