"""The training loop, on any engine and for any method: steps in flight, what is logged, evaluated and saved."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tinkertools.config import TrainConfig
from tinkertools.engines import snapshot
from tinkertools.errors import EngineError
from tinkertools.reporting import Notify, ProgressMaker
from tinkertools.runs.log import best_of, figures_shown
from tinkertools.runs.pruning import keep_newest
from tinkertools.schedules import learning_rate_at

if TYPE_CHECKING:
    from tinkertools.engines import SamplingClient, Service, TrainingClient
    from tinkertools.runs.directory import RunDirectory
    from tinkertools.runs.log import TrainingLog
    from tinkertools.stopping import StopRequest
    from tinkertools.tracking import Tracking

# The name of the last checkpoint on the engine.
FINAL = "final"


class Passes(Protocol):
    """The passes of a step, on their way to the engine."""

    @property
    def trains(self) -> bool:
        """Whether there is a gradient to step with."""
        ...

    def result(self) -> dict[str, Any]:
        """Wait for them. The figures of the step: `loss`, `trained_tokens`, `tokens`, and others of the method's own.

        Raises:
            EngineError: one failed.
        """
        ...


class Evaluation(Protocol):
    """What is found out of the model every so many steps."""

    def submit(self, client: "TrainingClient") -> Any:
        """Ask about the weights that the client has then; at best without waiting."""
        ...

    def result(self, pending: Any) -> dict[str, Any]:
        """Wait for what `submit` asked: the figures, one of them what evaluations are judged by (`runs.log`)."""
        ...


class Method(Protocol):
    """What a step of training is: the examples and the loss are the method's, all else is the loop's."""

    @property
    def steps_in_flight(self) -> int:
        """How many steps may be submitted before the first of them is waited for."""
        ...

    @property
    def shown(self) -> tuple[str, ...]:
        """The figures of a step that progress tells."""
        ...

    @property
    def evaluation(self) -> Evaluation | None:
        """Of the model; None where there is nothing to evaluate on."""
        ...

    @property
    def companions(self) -> "Mapping[str, TrainingClient]":
        """Other adapters that are trained in the same steps, by name; they are saved with the run's own."""
        ...

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, that step `step` (from 1) belongs to."""
        ...

    def submit(self, step: int) -> Passes:
        """Send the passes of a step to the engine, which takes them in the order of the calls."""
        ...


@dataclass
class Submitted:
    """A step on its way: what was sent, and the futures of what comes back."""

    step: int
    learning_rate: float
    passes: Passes
    optim_steps: list[Any]
    evaluation: Any = None
    weights: Any = None
    states: "dict[str, Any] | None" = None


@dataclass(frozen=True)
class Ended:
    """How training ended: after which step, and whether it was asked to stop before its end."""

    step: int
    interrupted: bool


@dataclass
class Loop:
    """The training loop, on any `TrainingClient`.

    Attributes:
        tracking: is told of each entry of the log.
        answer: asks the model as it is after a step, and keeps what it says.
    """

    client: "TrainingClient"
    service: "Service"
    method: Method
    config: TrainConfig
    run_directory: "RunDirectory"
    log: "TrainingLog"
    progress: ProgressMaker
    notify: Notify
    tracking: "Tracking | None" = None
    answer: "Callable[[int, SamplingClient], None] | None" = None

    def run(self, first_step: int, total_steps: int, stop: "StopRequest") -> Ended:
        """Train steps `first_step` to `total_steps`, or until a stop is asked for or nothing improves any more."""
        pending: deque[Submitted] = deque()
        step = first_step - 1
        with self.progress("train", total_steps, "steps") as self._report:
            if step == 0 and self.method.evaluation is not None and not self.log.evals:
                self._take_evaluation(0, self.method.evaluation.submit(self.client))
            self._finished_at = time.perf_counter()
            while step < total_steps and not self._no_better():
                step += 1
                pending.append(self._submit(step, total_steps))
                in_flight = 0 if self._waits(step, total_steps) else self.method.steps_in_flight - 1
                while len(pending) > in_flight:
                    self._complete(pending.popleft())
                if self._answers(step, total_steps):
                    self._ask(step)
                if stop.requested and step < total_steps:
                    if not pending:
                        self._take_state(step, self._save_states(step))
                    elif pending[-1].states is None:
                        pending[-1].states = self._save_states(step)
                    while pending:
                        self._complete(pending.popleft())
                    return Ended(step, interrupted=True)
            while pending:
                self._complete(pending.popleft())
        return Ended(step, interrupted=False)

    def _saves(self, step: int, total_steps: int) -> bool:
        return step < total_steps and _is_due(step, self.config.save_every)

    def _evaluates(self, step: int, total_steps: int) -> bool:
        return self.method.evaluation is not None and (step == total_steps or _is_due(step, self.config.eval_every))

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

        config = self.config
        assert config.learning_rate != "auto"
        rate = learning_rate_at(step, total_steps, config.learning_rate, config.lr_schedule, config.warmup_steps)
        passes = self.method.submit(step)
        clients = [self.client, *self.method.companions.values()] if passes.trains else []
        optim_steps = [client.optim_step(types.AdamParams(learning_rate=rate)) for client in clients]
        sent = Submitted(step, rate, passes, optim_steps)
        if self.method.evaluation is not None and self._evaluates(step, total_steps):
            sent.evaluation = self.method.evaluation.submit(self.client)
        if self._saves(step, total_steps):
            ttl = self.config.ttl_seconds or None
            sent.weights = self.client.save_weights_for_sampler(checkpoint_name(step), ttl_seconds=ttl)
            sent.states = self._save_states(step)
        return sent

    def _save_states(self, step: int) -> dict[str, Any]:
        """Ask for the states after a step that is not the last one: the run's own under "", and its companions'."""
        ttl = self.config.ttl_seconds or None
        clients = {"": self.client, **self.method.companions}
        return {
            name: client.save_state("_".join(filter(None, (checkpoint_name(step), name))), ttl_seconds=ttl)
            for name, client in clients.items()
        }

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
        figures = sent.passes.result()
        # What the optimizer says of the run's own adapter.
        metrics = [stepped.result().metrics or {} for stepped in sent.optim_steps][:1]
        now = time.perf_counter()
        seconds, self._finished_at = now - self._finished_at, now
        tokens = figures["tokens"]
        entry = {
            "step": sent.step,
            "epoch": self.method.epoch_of(sent.step),
            "loss": figures["loss"],
            "learning_rate": sent.learning_rate,
            "trained_tokens": figures["trained_tokens"],
            "tokens": tokens,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
        }
        entry |= {name: value for found in metrics for name, value in found.items() if name == "grad_norm"}
        entry |= {name: value for name, value in figures.items() if name not in entry}
        self.log.add_step(entry)
        if self.tracking is not None:
            self.tracking.add_step(entry)
        shown = [f"{name.replace('_', ' ')} {entry[name]:.4f}" for name in self.method.shown]
        self._report(sent.step, ", ".join([*shown, f"{entry['tokens_per_second']:,.0f} tokens/s"]))
        if sent.evaluation is not None:
            self._take_evaluation(sent.step, sent.evaluation)
            self._finished_at = time.perf_counter()
        if sent.states is not None:
            self._take_state(sent.step, sent.states, sent.weights)

    def _take_evaluation(self, step: int, pending: Any) -> None:
        """Wait for an evaluation and log it."""
        assert self.method.evaluation is not None
        entry = {"step": step, **self.method.evaluation.result(pending)}
        self.log.add_eval(entry)
        if self.tracking is not None:
            self.tracking.add_eval(entry)
        self._report(step, f"held out: {figures_shown(entry)}")

    def _ask(self, step: int) -> None:
        """Have the model answer as it is after a step; nothing else is in flight."""
        assert self.answer is not None
        self.answer(step, snapshot(self.client, self.service, self.config.base_model, f"sample_{step:04d}"))
        self._finished_at = time.perf_counter()

    def _take_state(self, step: int, saving: Mapping[str, Any], weights: Any = None) -> None:
        """Wait for states, and for the checkpoint of the same step where there is one, and take all over."""
        states = {name: future.result().path for name, future in saving.items()}
        self.log.sync()
        # The state comes last: a process that goes on with it does nothing again of what came before it.
        if weights is not None:
            self._take_checkpoint(step, weights.result().path, states[""])
        self._publish_state(step, states)

    def _publish_state(self, step: int, states: Mapping[str, str]) -> None:
        """Make states that are saved one: companions' lie in folders of their names."""
        directory = self.service.checkpoint_directory(states[""])
        for name, path in states.items():
            if name:
                self.service.checkpoint_directory(path).replace(directory / name)
        named = {f"{name}_state" if name else "state": path for name, path in states.items()}
        self.run_directory.take_state(directory, step, self._kept(**named))

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
        clients = {"": self.client, **self.method.companions}
        names = {name: "_".join(filter(None, (FINAL, name))) for name in clients}
        saving = {name: client.save_state(names[name]) for name, client in clients.items()}
        weights = {name: client.save_weights_for_sampler(names[name]) for name, client in clients.items()}
        states = {name: future.result().path for name, future in saving.items()}
        paths = {name: future.result().path for name, future in weights.items()}
        self._publish_state(last_step, states)
        for name in reversed(clients):  # the run's own come last
            directory = self.service.checkpoint_directory(paths[name])
            kept = self._kept(sampler=paths[name], state=states[name])
            self.run_directory.take_final(directory, last_step, kept, name)
        self.run_directory.finish()


def _is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return bool(every) and step % every == 0


def checkpoint_name(step: int) -> str:
    """The name a checkpoint has on the engine."""
    return f"step_{step:04d}"
