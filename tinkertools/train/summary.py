"""What a run that has ended shows: its curve, its figures, and what to type next."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkertools import console
from tinkertools.config import FOLLOWED_BY, JUDGED_OF, MethodName
from tinkertools.errors import UsageError
from tinkertools.planning import Plan
from tinkertools.resuming import changes, option

if TYPE_CHECKING:
    from tinkertools.runs.directory import RunDirectory
    from tinkertools.runs.log import TrainingLog


def show_next(path: Path, *, scores: bool) -> None:
    """What to type when a run is trained: what scores answers is known by those, others by what they answer."""
    command = f"test --lora-weights {path} --score FILE" if scores else f"compare {path} --compare-base"
    console.say(f"next            tt {command}")


def show_summary(run: "RunDirectory", log: "TrainingLog", total_steps: int, method: MethodName) -> None:
    """Where the run is, what it did, and what to type next."""
    from tinkertools.estimates import peak_memory
    from tinkertools.runs.log import best_of, figures_shown, in_words, judged_by

    steps, evals = log.steps, log.evals
    seconds = sum(entry["seconds"] for entry in steps)
    tokens = sum(entry["tokens"] for entry in steps)
    trained = sum(entry["trained_tokens"] for entry in steps)
    if not trained:
        console.warn(
            "nothing was trained: in no step was one answer worth more than the others; warmer ones (--temperature) or "
            "weights that succeed sometimes (--load-checkpoint-path) make a difference"
        )
    console.say()
    show_curve(steps, evals, method)
    console.say(f"run             {run.path}")
    if len(steps) < total_steps:
        console.say(f"stopped early   after step {len(steps)} of {total_steps}: nothing had improved")
    for name in ("loss", FOLLOWED_BY.get(method)):
        known = [entry[name] for entry in steps if entry.get(name) is not None] if name else []
        if name and known:
            console.say(f"{in_words(name):<15} {known[0]:.4f} at the start, {known[-1]:.4f} at the end")
    if best := best_of(evals):
        kept = next((f", kept as {path}" for step, path in run.checkpoints() if step == best["step"]), "")
        console.say(
            f"{'evaluation' if method == 'selfplay' else 'held out':<15} {figures_shown(evals[-1])} at the end; best "
            f"{best[judged_by(best)]:.4f} after step {best['step']}{kept if best is not evals[-1] else ''}"
        )
    console.say(f"trained tokens  {trained:,} of {tokens:,} in {len(steps):,} steps, {console.seconds(seconds)}")
    console.say(f"speed           {tokens / seconds:,.0f} tokens/s")
    console.say(f"peak memory     {peak_memory() / 1e6:,.0f} MB")
    show_next(run.path, scores=method == "reward")
    console.data(str(run.path))


def show_curve(steps: "Sequence[dict[str, Any]]", evals: "Sequence[dict[str, Any]]", method: MethodName) -> None:
    """The chart of a run: what its evaluations are judged by, and so its loss, or its rewards and the like."""
    from tinkertools.runs.log import LOSSES, in_words, judged_by, of_policy
    from tinkertools.runs.plots import smooth

    key = "loss" if JUDGED_OF[method] in LOSSES and not of_policy(steps) else FOLLOWED_BY[method]
    x, values, window = smooth(steps, key, method)
    # Evaluations stand in the picture where they are of its kind.
    kinds = LOSSES if key == "loss" else (key,)
    marks = [(entry["step"], entry[judged_by(entry)]) for entry in evals if judged_by(entry) in kinds]
    console.chart(
        in_words(key) + f", mean of {window} steps" * (window > 1) + " (● evaluation)" * bool(marks),
        list(zip(x, values, strict=True)),
        marks=marks,
    )


def show_finished(plan: Plan) -> None:
    """That there is nothing left to do, and what to type next.

    Raises:
        UsageError: it is to be made longer.
    """
    assert plan.started is not None
    # A process may have been killed after it had written the final weights.
    plan.run.finish()
    for name in changes(plan.started, plan.config):
        if name in ("max_steps", "epochs") and name in plan.given.values:
            raise UsageError(
                f"{option(name, plan.given.values[name])}: {plan.run.path} is finished, with its learning rate at its "
                "end",
                hint="start a new run",
            )
    console.say(f"{plan.run.path} is finished: there is nothing left to train")
    show_next(plan.run.path, scores=plan.config.method == "reward")
    console.data(str(plan.run.path))
