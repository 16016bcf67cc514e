"""The training loop, on any engine: steps in flight, what is logged and saved, and how it stops."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkertools.config import TrainConfig
from tinkertools.errors import EngineError
from tinkertools.reporting import Notify, ProgressMaker
from tinkertools.runs.pruning import keep_newest
from tinkertools.schedules import learning_rate_at

if TYPE_CHECKING:
    from tinkertools.chat.batching import Batches
    from tinkertools.chat.datums import Fitted
    from tinkertools.engines import Service, TrainingClient
    from tinkertools.runs.directory import RunDirectory
    from tinkertools.runs.log import TrainingLog

# Steps that are submitted before the first of them is waited for.
STEPS_IN_FLIGHT = 2

# The name of the last checkpoint on the engine.
FINAL = "final"


@dataclass
class Submitted:
    """A step on its way: what was sent, and the futures of what comes back."""

    step: int
    indices: tuple[int, ...]
    learning_rate: float
    forward_backward: Any
    optim_step: Any
    weights: Any = None
    state: Any = None


@dataclass
class Loop:
    """The training loop, on any `TrainingClient`."""

    client: "TrainingClient"
    service: "Service"
    data: "Fitted"
    batches: "Batches"
    config: TrainConfig
    run_directory: "RunDirectory"
    log: "TrainingLog"
    progress: ProgressMaker
    notify: Notify

    def run(self, first_step: int, total_steps: int, stop: "StopRequest") -> int:
        """Train steps `first_step` to `total_steps`; return 0, or the last step before a stop was asked for."""
        pending: deque[Submitted] = deque()
        self._finished_at = time.perf_counter()
        with self.progress("train", total_steps, "steps") as self._report:
            for step in range(first_step, total_steps + 1):
                save = bool(self.config.save_every) and step % self.config.save_every == 0 and step < total_steps
                pending.append(self._submit(step, total_steps, save=save))
                if len(pending) >= STEPS_IN_FLIGHT:
                    self._complete(pending.popleft())
                if stop.requested and step < total_steps:
                    if pending and pending[-1].state is None:
                        pending[-1].state = self._save_state(step)
                    while pending:
                        self._complete(pending.popleft())
                    return step
            while pending:
                self._complete(pending.popleft())
        return 0

    def _submit(self, step: int, total_steps: int, *, save: bool) -> Submitted:
        """Send a step, and the saving that follows it, without waiting for either."""
        from tinker import types

        from tinkertools.chat.datums import to_datums

        config = self.config
        assert config.learning_rate != "auto"
        rate = learning_rate_at(step, total_steps, config.learning_rate, config.lr_schedule, config.warmup_steps)
        indices = self.batches.at(step)
        datums = to_datums([self.data.examples[i] for i in indices])
        sent = Submitted(
            step,
            indices,
            rate,
            self.client.forward_backward(datums, "cross_entropy"),
            self.client.optim_step(types.AdamParams(learning_rate=rate)),
        )
        if save:
            ttl = self.config.ttl_seconds or None
            sent.weights = self.client.save_weights_for_sampler(checkpoint_name(step), ttl_seconds=ttl)
            sent.state = self._save_state(step)
        return sent

    def _save_state(self, step: int) -> Any:
        """Ask for the state after a step that is not the last one."""
        return self.client.save_state(checkpoint_name(step), ttl_seconds=self.config.ttl_seconds or None)

    def _complete(self, sent: Submitted) -> None:
        """Wait for a step, log it, and take over what it saved.

        Raises:
            EngineError: the step failed; the message names it.
        """
        try:
            self._take(sent)
        except EngineError as error:
            raise type(error)(f"step {sent.step}: {error.message}", hint=error.hint) from error

    def _take(self, sent: Submitted) -> None:
        output = sent.forward_backward.result()
        metrics = sent.optim_step.result().metrics or {}
        examples = [self.data.examples[i] for i in sent.indices]
        nll = weight = 0.0
        for example, found in zip(examples, output.loss_fn_outputs, strict=True):
            logprobs = found["logprobs"].to_torch().double().numpy()
            nll -= float((logprobs * example.weights[1:]).sum())
            weight += float(example.weights[1:].sum())
        now = time.perf_counter()
        seconds, self._finished_at = now - self._finished_at, now
        tokens = sum(len(example.tokens) for example in examples)
        entry = {
            "step": sent.step,
            "epoch": self.batches.epoch_of(sent.step),
            "loss": nll / weight,
            "learning_rate": sent.learning_rate,
            "trained_tokens": sum(example.trained_tokens for example in examples),
            "tokens": tokens,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
        }
        if "grad_norm" in metrics:
            entry["grad_norm"] = metrics["grad_norm"]
        self.log.add_step(entry)
        self._report(sent.step, f"loss {entry['loss']:.4f}, {entry['tokens_per_second']:,.0f} tokens/s")
        if sent.state is None:
            return
        state = sent.state.result().path
        self.log.sync()
        # The state comes last: a process that goes on with it does nothing again of what came before it.
        if sent.weights is not None:
            self._take_checkpoint(sent.step, sent.weights.result().path, state)
        self.run_directory.take_state(self.service.checkpoint_directory(state), sent.step, self._kept(state=state))

    def _take_checkpoint(self, step: int, weights: str, state: str) -> None:
        try:
            directory = self.service.checkpoint_directory(weights)
        except EngineError as error:
            self.notify(f"step {step}: {error.message}; it stays on the server, and training goes on")
            directory = None
        self.run_directory.take_checkpoint(directory, step, self._kept(sampler=weights, state=state))
        keep_newest(self.run_directory, self.config.keep_last)

    def _kept(self, **paths: str) -> dict[str, str]:
        """Paths worth keeping: those on a server. The embedded engine's end when the run takes its folders."""
        return paths if self.config.engine == "tinker" else {}

    def finish(self, total_steps: int) -> None:
        """Save the last state and then the final weights, whose presence says that the run is finished."""
        saving = self.client.save_state(FINAL)
        weights = self.client.save_weights_for_sampler(FINAL)
        state, path = saving.result().path, weights.result().path
        directory = self.service.checkpoint_directory(state)
        self.run_directory.take_state(directory, total_steps, self._kept(state=state))
        directory = self.service.checkpoint_directory(path)
        self.run_directory.take_final(directory, total_steps, self._kept(sampler=path, state=state))
        self.run_directory.finish()


def checkpoint_name(step: int) -> str:
    """The name a checkpoint has on the engine."""
    return f"step_{step:04d}"


class StoppedAtOnce(KeyboardInterrupt):
    """A signal that did not let the step in flight finish."""

    def __init__(self, by: signal.Signals) -> None:
        super().__init__()
        self.by = by


class StopRequest:
    """Whether Ctrl-C was pressed, or SIGTERM came, and which. After the first the steps in flight finish; a second
    leaves at once."""

    def __init__(self, notify: Notify) -> None:
        self.by: signal.Signals | None = None
        self._notify = notify

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self.by is not None

    def __call__(self, number: int, *_: object) -> None:
        """Take the signal."""
        if self.requested:
            raise StoppedAtOnce(signal.Signals(number))
        self.by = signal.Signals(number)
        # A signal can come while a line is being written, which cannot be interrupted by another.
        with suppress(RuntimeError):
            self._notify("\nstopping: finishing the steps in flight and saving the state (Ctrl-C again leaves at once)")


@contextmanager
def stop_on_interrupt(notify: Notify) -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM ask for a stop instead of breaking off, while the block runs."""
    request = StopRequest(notify)
    with _handled(request, signal.SIGINT, signal.SIGTERM):
        yield request


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM breaks off as Ctrl-C does, while the block runs: what is half-done is cleared away."""

    def stop(number: int, *_: object) -> None:
        raise StoppedAtOnce(signal.Signals(number))

    with _handled(stop, signal.SIGTERM):
        yield


@contextmanager
def _handled(handler: Callable[..., None], *signals: signal.Signals) -> Iterator[None]:
    """Signals are given to `handler`; only the main thread may ask for them."""
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for one in signals:
                stack.callback(signal.signal, one, signal.signal(one, handler))
        yield
