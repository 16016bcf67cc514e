"""Pictures of runs as SVG: the curves of one run, and those of a sweep side by side.

The same log gives the same bytes, and a long log gives no bigger a file than a short one: where there are more points
than the eye can tell apart, the lowest and the highest of each column of the picture stand for the others.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinkertools.config import FOLLOWED_BY, MethodName
from tinkertools.files import whole_directory
from tinkertools.runs.log import LOSSES, best_of, in_words, judged_by, more_is_better, of_policy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

_LOSS = "loss (mean NLL per trained token, nats)"
_EVAL_NLL = "evaluation NLL (mean per trained token, nats)"
_RUNNING_MEAN = "training NLL so far: mean over all steps up to\nthis one, weighted by trained tokens (nats)"

# The colours of Okabe and Ito, which the colour-blind tell apart, without the yellow that is lost on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", ":", "-.")
_LIGHT, _STRONG, _EVAL = _COLOURS[4], _COLOURS[0], _COLOURS[1]

# Columns of a picture, about one a pixel, and of a sweep's, in which lines are smooth and many.
_COLUMNS = 700
_SWEEP_COLUMNS = 200
# Up to so many points each is marked; more would run together.
_MARKED = 60
# A mean over fewer steps than this many would follow the noise.
_SMOOTH_FROM = 50
_WIDEST_WINDOW = 200
# What rises more than so many times as high as the middle run of a sweep is cut off.
_HEADROOM = 3.0
_LEGEND_ROWS = 26


@dataclass(frozen=True)
class Curve:
    """A run in the pictures of a sweep: its name, and its log's entries."""

    label: str
    steps: Sequence[dict[str, Any]]
    evals: Sequence[dict[str, Any]]


def write_plots(
    directory: Path, steps: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]] = (), method: MethodName = "sft"
) -> None:
    """Write a run's pictures into `directory`, which they replace.

    They are `loss.svg`, `learning_rate.svg` and `tokens_per_second.svg` over steps; where there are evaluations, a
    picture of what they are judged by, such as `eval_nll.svg`; and one of the figure of its own by which the method's
    steps are followed, such as `reward.svg`, with the evaluations in it.

    Args:
        directory: where they go.
        steps: the log's entries of steps, the first first.
        evals: its entries of evaluations.
        method: what was trained.
    """
    x = _values(steps, "step")
    all_x = np.concatenate([x, _values(evals, "step")])
    own = FOLLOWED_BY.get(method, "")
    with _pictures(directory) as part:
        _save(_loss_picture(steps, evals, method), part / "loss.svg")
        if evals:
            judged = judged_by(evals[0])
            figure, axes = _picture("Evaluations", _label_of_evals(judged), all_x)
            _draw_evals(axes, evals, judged)
            axes.legend(fontsize=8)
            _save(figure, part / f"eval_{judged}.svg")
        if any(own in entry for entry in steps):
            _save(_own_picture(steps, evals, own), part / f"{own}.svg")
        for key, title, label in (
            ("learning_rate", "Learning rate", "learning rate"),
            ("tokens_per_second", "Speed", "tokens per second"),
        ):
            figure, axes = _picture(title, label, x)
            _draw(axes, key, x, _values(steps, key), color=_STRONG)
            axes.set_ylim(bottom=0)
            _save(figure, part / f"{key}.svg")


def write_sweep_plots(directory: Path, curves: Sequence[Curve], judged: str = "nll") -> None:
    """Write two pictures of a sweep into `directory`, which they replace: a line a run.

    They are `test_nll.svg` and `train_nll.svg`, or so for what else evaluations are judged by; the second where steps
    have that figure too.

    Args:
        directory: where they go.
        curves: the runs, the best first.
        judged: what evaluations are judged by.
    """
    labels = [curve.label for curve in curves]
    key = "loss" if judged == "nll" else judged
    test = [(_values(curve.evals, "step"), _values(curve.evals, judged)) for curve in curves]
    train = [(_values(curve.steps, "step"), running_mean(*_counted(curve.steps, key, judged))) for curve in curves]
    over_steps = _RUNNING_MEAN if judged == "nll" else f"training {in_words(judged)} so far: mean over all steps"
    up = more_is_better(judged)
    with _pictures(directory) as part:
        picture = _sweep_picture("Evaluations", _label_of_evals(judged), labels, test, whole=up)
        _save(picture, part / f"test_{judged}.svg")
        of_its_kind = judged in LOSSES and not any(of_policy(curve.steps) for curve in curves)
        if of_its_kind or any(judged in entry for curve in curves for entry in curve.steps):
            _save(_sweep_picture("Training", over_steps, labels, train, whole=up), part / f"train_{judged}.svg")


def weights_of(steps: Sequence[dict[str, Any]], judged: str = "nll") -> Floats:
    """How much steps count in a mean of several: an NLL is of tokens, any other figure of steps.

    A step in which there was nothing to train has no loss, and does not count in a mean of losses.
    """
    tokens = _values(steps, "trained_tokens")
    if judged == "nll":
        return tokens
    weights: Floats = (tokens > 0).astype(np.float64) if judged == "loss" else np.ones(len(steps))
    return weights


def _counted(steps: Sequence[dict[str, Any]], key: str, judged: str) -> tuple[Floats, Floats]:
    """The values of steps and their weights; a step without a reward or the like does not count."""
    values, weights = _values(steps, key), weights_of(steps, judged)
    if judged in LOSSES:
        return values, weights
    return np.nan_to_num(values), np.where(np.isfinite(values), weights, 0)


def envelope(x: Floats, y: Floats, columns: int) -> tuple[Floats, Floats]:
    """The points that give the same picture: of each column of `x` the lowest and the highest, and the two ends.

    Points without a finite value are left out. Where few are left, all of them are kept.

    Args:
        x: where the points are, ascending.
        y: their values.
        columns: how many columns the picture has.
    """
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= 2 * columns:
        return x, y
    column = np.minimum((x - x[0]) / ((x[-1] - x[0]) or 1) * columns, columns - 1).astype(int)
    by_value = np.lexsort((y, column))
    first = np.flatnonzero(np.diff(column[by_value], prepend=-1))
    last = np.append(first[1:], len(x)) - 1
    kept = np.unique(np.concatenate([by_value[first], by_value[last], [0, len(x) - 1]]))
    return x[kept], y[kept]


def running_mean(values: Floats, weights: Floats) -> Floats:
    """The weighted mean of each value and all before it; not finite from the first that is not."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean: Floats = np.cumsum(values * weights) / np.cumsum(weights)
    return mean


def smoothed(values: Floats, weights: Floats, window: int) -> Floats:
    """The weighted mean of the finite values at most `window // 2` places away; at the ends of those there are."""
    known = np.isfinite(values)
    weights = np.where(known, weights, 0)
    around = np.ones(window)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean: Floats = np.convolve(np.where(known, values, 0) * weights, around, "same") / np.convolve(
            weights, around, "same"
        )
    return mean


def smooth_loss(steps: Sequence[dict[str, Any]], method: MethodName = "sft") -> tuple[Floats, Floats, int]:
    """`smooth` of the loss."""
    return smooth(steps, "loss", method)


def smooth(steps: Sequence[dict[str, Any]], key: str, method: MethodName = "sft") -> tuple[Floats, Floats, int]:
    """A figure of a run without its noise: the steps, the means, and of how many steps each is; 1 where steps are few.

    A mean of the loss is the NLL per trained token of all those steps together; where the loss of a method is none, the
    mean of their losses. Steps in which there was nothing to train have none.
    """
    x, values = _values(steps, "step"), _losses(steps) if key == "loss" else _values(steps, key)
    if len(steps) < _SMOOTH_FROM:
        return x, values, 1
    # Odd, so that a step has as many neighbours before it as after it.
    window = min(len(steps) // 10, _WIDEST_WINDOW) | 1
    judged = "nll" if method == "sft" and key == "loss" else key
    return x, smoothed(values, weights_of(steps, judged), window), window


def _losses(steps: Sequence[dict[str, Any]]) -> Floats:
    """The losses of steps, not finite where nothing was trained."""
    return np.where(_values(steps, "trained_tokens") == 0, np.nan, _values(steps, "loss"))


def top_of(lines: Sequence[Floats]) -> float:
    """The highest value that a picture of many lines shows, so that a diverged one does not flatten the others.

    It is the highest of all, unless that is several times as high above the lowest as the middle line rises.
    """
    finite = [line[np.isfinite(line)] for line in lines]
    highest = sorted(float(line.max()) for line in finite if len(line))
    if not highest:
        return 1.0
    bottom = min(float(line.min()) for line in finite if len(line))
    middle = highest[(len(highest) - 1) // 2]
    limit = bottom + _HEADROOM * (middle - bottom)
    shown = [value for value in highest if value <= limit]
    return shown[-1] if shown else highest[-1]


def _highest(lines: Sequence[Floats]) -> float:
    return max((float(line[np.isfinite(line)].max()) for line in lines if np.isfinite(line).any()), default=1.0)


def _values(entries: Sequence[dict[str, Any]], key: str) -> Floats:
    # JSON has no NaN: a value that was none is null in the log.
    found = [entry.get(key) for entry in entries]
    return np.array([np.nan if value is None else value for value in found], dtype=np.float64)


@contextmanager
def _pictures(directory: Path) -> Iterator[Path]:
    """A directory to save pictures into, in one style whatever the user's settings are."""
    import matplotlib as mpl

    style = mpl.rcParamsDefault | {
        "svg.hashsalt": "tinkertools",  # no random ids
        "path.simplify": False,  # points stay where they are
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.formatter.useoffset": False,
        "axes.formatter.limits": (-3, 6),  # a learning rate of 0.0002 is 2 times 1e-4
    }
    style.pop("backend", None)
    with whole_directory(directory) as part, mpl.rc_context(style):
        yield part


def _save(figure: "Figure", path: Path) -> None:
    # Without a date, so that the same log gives the same bytes. A legend beside the axes takes nothing from them.
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def _picture(title: str, label: str, steps: Floats) -> "tuple[Figure, Axes]":
    """An empty picture over `steps`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.5, 4.2))
    axes = figure.subplots()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel(label, fontsize=9)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if len(steps):
        # All steps, those without a finite value too.
        margin = max(0.02 * (steps.max() - steps.min()), 0.5)
        axes.set_xlim(steps.min() - margin, steps.max() + margin)
    return figure, axes


def _draw(axes: "Axes", gid: str, x: Floats, y: Floats, *, columns: int = _COLUMNS, **style: Any) -> None:
    """A line of the finite points, each marked where they are few."""
    x, y = envelope(x, y, columns)
    own: dict[str, Any] = {"marker": "o" if len(x) <= _MARKED else "", "markersize": 3, "linewidth": 1.4}
    axes.plot(x, y, gid=gid, **(own | style))


def _label_of_evals(judged: str) -> str:
    return _EVAL_NLL if judged == "nll" else f"evaluation {in_words(judged)}"


def _loss_picture(
    steps: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]], method: MethodName = "sft"
) -> "Figure":
    """The loss of steps, with evaluations of the same kind."""
    x, loss = _values(steps, "step"), _losses(steps)
    label = _LOSS if method == "sft" else f"{method} loss"
    figure, axes = _picture("Training loss", label, np.concatenate([x, _values(evals, "step")]))
    _, mean, window = smooth_loss(steps, method)
    if window == 1:
        _draw(axes, "loss", x, loss, color=_STRONG, label="training, each step")
    else:
        _draw(axes, "loss", x, loss, color=_LIGHT, linewidth=0.6, marker="", alpha=0.7, label="training, each step")
        _draw(axes, "loss_mean", x, mean, color=_STRONG, label=f"training, mean of {window} steps")
    if missing := int((~np.isfinite(loss)).sum()):
        axes.plot([], [], " ", label=f"without a finite loss: {missing:,} of {len(steps):,} steps")
    if evals and judged_by(evals[0]) in LOSSES and not of_policy(steps):
        _draw_evals(axes, evals, judged_by(evals[0]))
    axes.legend(fontsize=8)
    return figure


def _own_picture(steps: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]], key: str) -> "Figure":
    """A figure of steps, with that of evaluations where they have it."""
    words = in_words(key)
    x = _values(steps, "step")
    figure, axes = _picture(f"Training {words}", words, np.concatenate([x, _values(evals, "step")]))
    _draw(axes, key, x, _values(steps, key), color=_STRONG, label="training, each step")
    if any(key in entry for entry in evals):
        _draw_evals(axes, evals, key)
    axes.legend(fontsize=8)
    return figure


def _draw_evals(axes: "Axes", evals: Sequence[dict[str, Any]], key: str) -> None:
    """A figure of evaluations, and which is the best by what they are judged by."""
    _draw(
        axes, f"eval_{key}", _values(evals, "step"), _values(evals, key), color=_EVAL, markersize=5, label="evaluation"
    )
    best = best_of(evals)
    if best is not None and best.get(key) is not None:
        axes.plot(
            [best["step"]],
            [best[key]],
            gid="eval_best",
            linestyle="none",
            marker="*",
            markersize=14,
            color=_EVAL,
            markeredgecolor="white",
            zorder=5,
            label=f"best evaluation: {best[key]:.4f} at step {best['step']:,.0f}",
        )


def _sweep_picture(
    title: str, label: str, labels: Sequence[str], lines: Sequence[tuple[Floats, Floats]], *, whole: bool = False
) -> "Figure":
    """A line a run, in the order of `labels`, which the legend beside the axes keeps.

    What rises far above the others is cut off, unless the `whole` is to be seen.
    """
    from matplotlib.lines import Line2D

    figure, axes = _picture(title, label, np.concatenate([np.empty(0), *(x for x, _ in lines)]))
    top = _highest([y for _, y in lines]) if whole else top_of([y for _, y in lines])
    names: list[str] = []
    handles: list[Line2D] = []
    for index, (name, (x, y)) in enumerate(zip(labels, lines, strict=True)):
        style: dict[str, Any] = {
            "color": _COLOURS[index % len(_COLOURS)],
            "linestyle": _STYLES[index // len(_COLOURS) % len(_STYLES)],
            "linewidth": 2.0 if index == 0 else 1.2,
        }
        if len(x):
            # The better lies above the worse.
            _draw(axes, f"run_{index}", x, y, columns=_SWEEP_COLUMNS, zorder=3 - index / len(lines), **style)
        else:
            style["linestyle"] = "none"
        handles.append(Line2D([], [], **style))
        leaves = bool((~(y <= top)).any())
        names.append(name + (" (no data)" if not len(x) else " ↑ leaves the picture" if leaves else ""))
    _limit(axes, [y for _, y in lines], top)
    legend = axes.legend(
        handles,
        names,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=7.5,
        handlelength=3.2,
        ncols=max(1, ceil(len(names) / _LEGEND_ROWS)),
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _limit(axes: "Axes", lines: Sequence[Floats], top: float) -> None:
    """End the picture a little above `top` and a little below the lowest value."""
    shown = [line[line <= top] for line in lines]
    bottom = min((float(line.min()) for line in shown if len(line)), default=0.0)
    margin = 0.05 * (top - bottom) or 0.1
    axes.set_ylim(bottom - margin, top + margin)
