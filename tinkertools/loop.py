"""The training loop, on any engine: steps in flight, what is logged, evaluated and saved."""

import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkertools.config import TrainConfig
from tinkertools.errors import EngineError
from tinkertools.evaluation import masked_nll
from tinkertools.reporting import Notify, ProgressMaker
from tinkertools.runs.log import best_of
from tinkertools.runs.pruning import keep_newest
from tinkertools.schedules import learning_rate_at

if TYPE_CHECKING:
    from tinkertools.chat.batching import Batches
    from tinkertools.chat.datums import Fitted
    from tinkertools.engines import SamplingClient, Service, TrainingClient
    from tinkertools.evaluation import HeldOut, Pending
    from tinkertools.runs.directory import RunDirectory
    from tinkertools.runs.log import TrainingLog
    from tinkertools.stopping import StopRequest
    from tinkertools.tracking import Tracking

# Steps that are submitted before the first of them is waited for.
STEPS_IN_FLIGHT = 2

# The name of the last checkpoint on the engine.
FINAL = "final"

# How long a server keeps weights that are asked only once: the shortest time that servers take.
SAMPLER_SECONDS = 3600


@dataclass
class Submitted:
    """A step on its way: what was sent, and the futures of what comes back."""

    step: int
    indices: tuple[int, ...]
    learning_rate: float
    forward_backward: Any
    optim_step: Any
    evaluation: "Pending | None" = None
    weights: Any = None
    state: Any = None


@dataclass(frozen=True)
class Ended:
    """How training ended: after which step, and whether it was asked to stop before its end."""

    step: int
    interrupted: bool


@dataclass
class Loop:
    """The training loop, on any `TrainingClient`.

    Attributes:
        held_out: what is evaluated on; None where nothing is.
        tracking: is told of each entry of the log.
        answer: asks the model as it is after a step, and keeps what it says.
    """

    client: "TrainingClient"
    service: "Service"
    data: "Fitted"
    batches: "Batches"
    config: TrainConfig
    run_directory: "RunDirectory"
    log: "TrainingLog"
    progress: ProgressMaker
    notify: Notify
    held_out: "HeldOut | None" = None
    tracking: "Tracking | None" = None
    answer: "Callable[[int, SamplingClient], None] | None" = None

    def run(self, first_step: int, total_steps: int, stop: "StopRequest") -> Ended:
        """Train steps `first_step` to `total_steps`, or until a stop is asked for or nothing improves any more."""
        pending: deque[Submitted] = deque()
        step = first_step - 1
        with self.progress("train", total_steps, "steps") as self._report:
            if step == 0 and self.held_out is not None and not self.log.evals:
                self._take_evaluation(0, self.held_out.submit(self.client))
            self._finished_at = time.perf_counter()
            while step < total_steps and not self._no_better():
                step += 1
                pending.append(self._submit(step, total_steps))
                in_flight = 0 if self._waits(step, total_steps) else STEPS_IN_FLIGHT - 1
                while len(pending) > in_flight:
                    self._complete(pending.popleft())
                if self._answers(step, total_steps):
                    self._ask(step)
                if stop.requested and step < total_steps:
                    if not pending:
                        self._take_state(step, self._save_state(step))
                    elif pending[-1].state is None:
                        pending[-1].state = self._save_state(step)
                    while pending:
                        self._complete(pending.popleft())
                    return Ended(step, interrupted=True)
            while pending:
                self._complete(pending.popleft())
        return Ended(step, interrupted=False)

    def _saves(self, step: int, total_steps: int) -> bool:
        return step < total_steps and _is_due(step, self.config.save_every)

    def _evaluates(self, step: int, total_steps: int) -> bool:
        return self.held_out is not None and (step == total_steps or _is_due(step, self.config.eval_every))

    def _answers(self, step: int, total_steps: int) -> bool:
        every = self.config.sample_every
        return self.answer is not None and bool(every) and (step == total_steps or _is_due(step, every))

    def _waits(self, step: int, total_steps: int) -> bool:
        """Whether what is known after a step decides what comes next."""
        decides = bool(self.config.early_stop) and self._evaluates(step, total_steps)
        return decides or self._answers(step, total_steps)

    def _no_better(self) -> bool:
        """Whether the last `early_stop` evaluations brought nothing."""
        best = best_of(self.log.evals)
        if not self.config.early_stop or best is None:
            return False
        return len(self.log.evals) - 1 - self.log.evals.index(best) >= self.config.early_stop

    def _submit(self, step: int, total_steps: int) -> Submitted:
        """Send a step, and the evaluation and saving that follow it, without waiting for any of them."""
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
        if self.held_out is not None and self._evaluates(step, total_steps):
            sent.evaluation = self.held_out.submit(self.client)
        if self._saves(step, total_steps):
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
        nll, weight = masked_nll(examples, output)
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
        if self.tracking is not None:
            self.tracking.add_step(entry)
        self._report(sent.step, f"loss {entry['loss']:.4f}, {entry['tokens_per_second']:,.0f} tokens/s")
        if sent.evaluation is not None:
            self._take_evaluation(sent.step, sent.evaluation)
            self._finished_at = time.perf_counter()
        if sent.state is not None:
            self._take_state(sent.step, sent.state, sent.weights)

    def _take_evaluation(self, step: int, pending: "Pending") -> None:
        """Wait for an evaluation and log it."""
        assert self.held_out is not None
        entry = {"step": step, **self.held_out.result(pending)}
        self.log.add_eval(entry)
        if self.tracking is not None:
            self.tracking.add_eval(entry)
        self._report(step, f"held out: NLL {entry['nll']:.4f}")

    def _ask(self, step: int) -> None:
        """Have the model answer as it is after a step; nothing else is in flight."""
        assert self.answer is not None
        saved = self.client.save_weights_for_sampler(f"sample_{step:04d}", ttl_seconds=SAMPLER_SECONDS).result()
        self.answer(step, self.service.create_sampling_client(saved.path, self.config.base_model))
        if self.config.engine == "local":
            shutil.rmtree(self.service.checkpoint_directory(saved.path), ignore_errors=True)
        self._finished_at = time.perf_counter()

    def _take_state(self, step: int, saving: Any, weights: Any = None) -> None:
        """Wait for a state, and for the checkpoint of the same step where there is one, and take both over."""
        state = saving.result().path
        self.log.sync()
        # The state comes last: a process that goes on with it does nothing again of what came before it.
        if weights is not None:
            self._take_checkpoint(step, weights.result().path, state)
        self.run_directory.take_state(self.service.checkpoint_directory(state), step, self._kept(state=state))

    def _take_checkpoint(self, step: int, weights: str, state: str) -> None:
        try:
            directory = self.service.checkpoint_directory(weights)
        except EngineError as error:
            self.notify(f"step {step}: {error.message}; it stays on the server, and training goes on")
            directory = None
        self.run_directory.take_checkpoint(directory, step, self._kept(sampler=weights, state=state))
        best = best_of(self.log.evals)
        keep_newest(self.run_directory, self.config.keep_last, best["step"] if best else None)

    def _kept(self, **paths: str) -> dict[str, str]:
        """Paths worth keeping: those on a server. The embedded engine's end when the run takes its folders."""
        return paths if self.config.engine == "tinker" else {}

    def finish(self, last_step: int) -> None:
        """Save the last state and then the final weights, whose presence says that the run is finished."""
        saving = self.client.save_state(FINAL)
        weights = self.client.save_weights_for_sampler(FINAL)
        state, path = saving.result().path, weights.result().path
        directory = self.service.checkpoint_directory(state)
        self.run_directory.take_state(directory, last_step, self._kept(state=state))
        directory = self.service.checkpoint_directory(path)
        self.run_directory.take_final(directory, last_step, self._kept(sampler=path, state=state))
        self.run_directory.finish()


def _is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return bool(every) and step % every == 0


def checkpoint_name(step: int) -> str:
    """The name a checkpoint has on the engine."""
    return f"step_{step:04d}"
