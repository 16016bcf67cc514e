"""What became of the runs of a sweep, as their logs say it: which is the best, as a table and as JSON."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinkertools.config import JUDGED_OF
from tinkertools.errors import RunError
from tinkertools.runs.directory import RunDirectory
from tinkertools.runs.log import LOSSES, TrainingLog, best_of, in_words, judged_by, more_is_better, of_policy
from tinkertools.sweeping.plans import Run, Sweep, as_text


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        run: which one.
        finished: whether it was trained to its end.
        error: why it failed, where it did.
        steps: its log's entries.
        evals: the same of evaluations.
    """

    run: Run
    finished: bool
    error: str | None
    steps: Sequence[Mapping[str, Any]]
    evals: Sequence[Mapping[str, Any]]

    @property
    def state(self) -> str:
        """How far it came, in a word."""
        return "finished" if self.finished else "failed" if self.error else "unfinished"

    @property
    def judged(self) -> str:
        """What its evaluations are judged by."""
        return judged_by(self.evals[-1]) if self.evals else JUDGED_OF[self.run.config.method]

    @property
    def value(self) -> float | None:
        """That at the end: of the final weights."""
        return _number(self.evals[-1][self.judged]) if self.evals else None

    @property
    def accuracy(self) -> float | None:
        """The accuracy at the end, where evaluations have one."""
        return _number(self.evals[-1].get("accuracy")) if self.evals else None

    @property
    def train(self) -> float | None:
        """The mean of the same figure over all steps, each as the model was before it; None where steps have none.

        An NLL is the mean of all tokens that were trained. Steps in which there was nothing to train have no loss.
        """
        if self.judged in LOSSES and of_policy(self.steps):
            return None
        if self.judged in LOSSES:
            pairs = [(entry["loss"], entry["trained_tokens"]) for entry in self.steps if entry["trained_tokens"]]
            if self.judged == "loss":
                pairs = [(loss, 1) for loss, _ in pairs]
        else:
            pairs = [(entry[self.judged], 1) for entry in self.steps if _number(entry.get(self.judged)) is not None]
        if not pairs or any(_number(value) is None for value, _ in pairs):
            return None
        return float(math.fsum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs))

    def to_json(self) -> dict[str, Any]:
        """Its row in `results.json`; keys are named by what evaluations are judged by, such as `best_nll`."""
        best = best_of([dict(entry) for entry in self.evals])
        return {
            "run": self.run.name,
            "settings": dict(self.run.values),
            "state": self.state,
            "error": self.error,
            "steps": len(self.steps),
            self.judged: self.value,
            f"best_{self.judged}": best[self.judged] if best else None,
            "best_step": best["step"] if best else None,
            f"train_{self.judged}": self.train,
        } | ({"accuracy": self.accuracy} if self.accuracy is not None else {})


def _number(value: float | None) -> float | None:
    """A number of a log; None where it is none."""
    return value if value is not None and math.isfinite(value) else None


def outcome_of(sweep: Sweep, run: Run, error: str | None) -> Outcome:
    """What became of a run, by its log; `error` is why it failed, where it did."""
    directory = sweep.directory.run(run.name)
    try:
        log = TrainingLog.reopen(directory.log, sys.maxsize)
    except RunError:  # something else is in its place; the run has said so
        log = TrainingLog(directory.log)
    return Outcome(run, directory.finished, error, log.steps, log.evals)


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The best first: finished ones by what their final weights are judged by, then the others; those without last."""

    def key(one: Outcome) -> tuple[bool, bool, float]:
        sign = -1 if more_is_better(one.judged) else 1
        return not one.finished, one.value is None, sign * (one.value or 0.0)

    return sorted(outcomes, key=key)


def best_run(sweep: Sweep, outcomes: Sequence[Outcome]) -> RunDirectory | None:
    """The directory of the best run; None where none is finished and evaluated."""
    first = outcomes[0]
    return sweep.directory.run(first.run.name) if first.finished and first.value is not None else None


def held_out(judged: str) -> str:
    """What evaluations are judged by, in words."""
    return in_words(judged) if judged == "win_rate" else f"held-out {in_words(judged)}"


def results_table(sweep: Sweep, outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what became of the runs, the best first."""
    judged = outcomes[0].judged
    accuracy = any(one.accuracy is not None for one in outcomes)
    rows = []
    for place, one in enumerate(outcomes, 1):
        best = best_of([dict(entry) for entry in one.evals])
        shown = f"{best[one.judged]:.4f} @ {best['step']}" if best else "–"
        state = f"failed: {one.error}" if one.error else one.state
        figures = [_shown(one.value), *([_shown(one.accuracy)] if accuracy else []), shown, _shown(one.train)]
        rows.append([str(place), *map(as_text, one.run.values.values()), *figures, f"{len(one.steps):,}", state])
    # On several lines, so that eight columns fit into a terminal of 80 characters.
    swept = [name.replace("_", "\n") for name in sweep.grid]
    figures = [held_out(judged).replace(" ", "\n"), *(["accuracy"] if accuracy else [])]
    return ["", *swept, *figures, "best\n@ step", f"train\n{in_words(judged)}", "steps", "state"], rows


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def refuse_failed(sweep: Sweep, outcomes: Sequence[Outcome]) -> None:
    """Say which runs failed.

    Raises:
        RunError: some did.
    """
    failed = [one for one in outcomes if one.error]
    if failed:
        listed = "; ".join(f"{one.run.name} ({one.error})" for one in failed)
        raise RunError(
            f"{len(failed)} of {len(outcomes)} runs failed: {listed}",
            hint=f"mend what is wrong, then {sweep.goes_on} tries them again",
        )
