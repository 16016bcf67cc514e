"""The pictures show the points of the log where they belong, in few bytes that are always the same."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkertools.config import MethodName
from tinkertools.runs.plots import (
    Curve,
    Floats,
    envelope,
    running_mean,
    smooth_loss,
    smoothed,
    top_of,
    write_plots,
    write_sweep_plots,
)

_SVG = "{http://www.w3.org/2000/svg}"
# How exactly matplotlib writes coordinates, in points.
_WRITTEN = 1e-4


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    """What matplotlib or numpy warn of would reach the user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What other tests of the process left open is found at any time.
        for category in (ResourceWarning, pytest.PytestUnraisableExceptionWarning):
            warnings.simplefilter("ignore", category)
        yield


def steps_of(losses: Sequence[float | None], tokens: Sequence[int] | None = None) -> list[dict[str, Any]]:
    return [
        {
            "step": number, "epoch": 1, "loss": loss, "learning_rate": 2e-4 / number,
            "trained_tokens": tokens[number - 1] if tokens else 100, "tokens": 200, "seconds": 0.5,
            "tokens_per_second": 400.0 + number,
        }
        for number, loss in enumerate(losses, 1)
    ]  # fmt: skip


def evals_of(nll_by_step: dict[int, float]) -> list[dict[str, Any]]:
    return [{"step": step, "nll": nll, "trained_tokens": 50} for step, nll in nll_by_step.items()]


def noisy(count: int) -> list[float]:
    rng = np.random.default_rng(0)
    return [float(value) for value in 1.2 + np.exp(-np.arange(count) / count * 5) + rng.normal(0, 0.1, count)]


def line(svg: Path, gid: str) -> Floats:
    """The points of a line as drawn: from the left, and upwards."""
    group = ElementTree.parse(svg).find(f".//{_SVG}g[@id='{gid}']")
    assert group is not None, gid
    # A marker on its own is `use`d at its place; the path of a line comes before its markers' shape.
    used = [(float(u.attrib["x"]), float(u.attrib["y"])) for u in group.iter(f"{_SVG}use")]
    path = group.find(f"{_SVG}path")
    drawn = [] if path is None else re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"])
    return np.array(drawn or used, dtype=np.float64).reshape(-1, 2) * [1, -1]


def comments(svg: Path) -> str:
    """All texts of a picture: beside the shapes of its letters they are written as comments."""
    return "\n".join(re.findall(r"<!-- (.*?) -->", svg.read_text(), re.DOTALL))


def assert_affine(drawn: Floats, expected: Floats) -> None:
    """The drawn points are the expected ones on two linear axes that grow to the right and upwards."""
    assert len(drawn) == len(expected)
    for axis in (0, 1):
        slope, base = np.polyfit(expected[:, axis], drawn[:, axis], 1)
        assert slope > 0
        assert np.allclose(slope * expected[:, axis] + base, drawn[:, axis], atol=_WRITTEN)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_points_of_steps_and_evaluations_share_their_axes(tmp_path: Path) -> None:
    losses, nll = noisy(130), {0: 2.3, 40: 1.5, 80: 1.31, 120: 1.4}
    write_plots(tmp_path / "plots", steps_of(losses), evals_of(nll))
    assert names(tmp_path / "plots") == ["eval_nll.svg", "learning_rate.svg", "loss.svg", "tokens_per_second.svg"]
    picture = tmp_path / "plots" / "loss.svg"
    steps = np.arange(1, 131)
    means = smoothed(np.array(losses), np.ones(130), 13)
    evaluations = np.array(list(nll.items()))
    lines = [np.column_stack([steps, losses]), np.column_stack([steps, means]), evaluations, evaluations[2:3]]
    drawn = [line(picture, gid) for gid in ("loss", "loss_mean", "eval_nll", "eval_best")]
    assert [len(one) for one in drawn] == [130, 130, 4, 1]
    assert_affine(np.concatenate(drawn), np.concatenate(lines))
    texts = comments(picture)
    for text in (
        "step", "loss (mean NLL per trained token, nats)", "training, mean of 13 steps",
        "best evaluation: 1.3100 at step 80",
    ):  # fmt: skip
        assert text in texts
    assert_affine(line(tmp_path / "plots" / "eval_nll.svg", "eval_nll"), evaluations)
    rates = np.column_stack([steps, 2e-4 / steps])
    assert_affine(line(tmp_path / "plots" / "learning_rate.svg", "learning_rate"), rates)
    speeds = np.column_stack([steps, 400.0 + steps])
    assert_affine(line(tmp_path / "plots" / "tokens_per_second.svg", "tokens_per_second"), speeds)


def test_the_same_log_gives_the_same_bytes(tmp_path: Path) -> None:
    steps, evals = steps_of(noisy(70)), evals_of({0: 2.0, 70: 1.0})
    write_plots(tmp_path / "a", steps, evals)
    write_sweep_plots(tmp_path / "c", [Curve("x", steps, evals), Curve("y", [], [])])
    import matplotlib as mpl

    # Nor do the user's own settings change them.
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30}):
        write_plots(tmp_path / "b", steps, evals)
        write_sweep_plots(tmp_path / "d", [Curve("x", steps, evals), Curve("y", [], [])])
    for one, other in (("a", "b"), ("c", "d")):
        assert names(tmp_path / one) == names(tmp_path / other)
        for name in names(tmp_path / one):
            assert (tmp_path / one / name).read_bytes() == (tmp_path / other / name).read_bytes()


@pytest.mark.parametrize("losses", [[1.5], [float("nan")], [1.0, None, float("inf"), 2.0], [1e300, 1.0], []])
def test_any_log_can_be_drawn(tmp_path: Path, losses: list[float | None]) -> None:
    steps = steps_of(losses)
    write_plots(tmp_path / "plots", steps)
    assert names(tmp_path / "plots") == ["learning_rate.svg", "loss.svg", "tokens_per_second.svg"]
    finite = sum(value is not None and np.isfinite(value) for value in losses)
    svg = tmp_path / "plots" / "loss.svg"
    assert len(line(svg, "loss")) == finite
    missing = len(losses) - finite
    assert (f"without a finite loss: {missing} of {len(losses)} steps" in comments(svg)) == bool(missing)
    write_sweep_plots(tmp_path / "plots", [Curve("a", steps, evals_of({1: float("nan")}))])
    assert names(tmp_path / "plots") == ["test_nll.svg", "train_nll.svg"]


def test_a_long_log_gives_a_small_file_that_keeps_its_spikes(tmp_path: Path) -> None:
    losses = noisy(100_000)
    losses[77_777] = 9.0
    write_plots(tmp_path, steps_of(losses), evals_of({0: 2.0, 100_000: 1.0}))
    drawn = line(tmp_path / "loss.svg", "loss")
    assert 1000 < len(drawn) <= 1500
    assert all((tmp_path / name).stat().st_size < 200_000 for name in names(tmp_path))
    both = line(tmp_path / "loss.svg", "eval_nll")
    (x0, y0), (x1, y1) = both
    spike = drawn[drawn[:, 1].argmax()]
    assert spike == pytest.approx([x0 + (x1 - x0) * 77_778 / 100_000, y1 + (y0 - y1) * (9.0 - 1.0)], abs=0.01)


@given(
    values=st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(float("nan")), st.just(float("inf"))), max_size=200),
    gaps=st.lists(st.integers(1, 5), min_size=200, max_size=200),
    columns=st.integers(1, 30),
)
@settings(deadline=None)
def test_an_envelope_has_the_ends_and_each_column_its_extremes(
    values: list[float], gaps: list[int], columns: int
) -> None:
    x, y = np.cumsum(gaps)[: len(values)].astype(float), np.array(values, dtype=float)
    seen_x, seen_y = envelope(x, y, columns)
    points = {(a, b) for a, b in zip(x, y, strict=True) if np.isfinite(b)}
    seen = list(zip(seen_x, seen_y, strict=True))
    assert set(seen) <= points
    assert seen == sorted(set(seen))
    assert len(seen) <= 2 * columns + 2
    if len(points) <= 2 * columns:
        assert set(seen) == points
        return
    assert min(points) == seen[0]
    assert max(points) == seen[-1]
    start, width = min(points)[0], max(points)[0] - min(points)[0]

    def extremes(of: Any) -> dict[int, tuple[float, float]]:
        by_column: dict[int, list[float]] = {}
        for a, b in of:
            by_column.setdefault(min(int((a - start) / width * columns), columns - 1), []).append(b)
        return {column: (min(found), max(found)) for column, found in by_column.items()}

    assert extremes(seen) == extremes(points)


def test_means_are_weighted_by_trained_tokens() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.normal(size=300), rng.integers(1, 1000, 300).astype(float)
    by_hand = [np.average(values[: k + 1], weights=weights[: k + 1]) for k in range(300)]
    assert np.allclose(running_mean(values, weights), by_hand)
    around = [slice(max(0, k - 3), k + 4) for k in range(300)]
    assert np.allclose(smoothed(values, weights, 7), [np.average(values[s], weights=weights[s]) for s in around])
    # A step without a finite loss ends the one and is passed over by the other.
    values[10] = np.nan
    assert np.isfinite(running_mean(values, weights)).tolist() == [True] * 10 + [False] * 290
    known = [np.delete(np.arange(s.start, s.stop), np.where(np.arange(s.start, s.stop) == 10)) for s in around[:20]]
    by_hand = [np.average(values[k], weights=weights[k]) for k in known]
    assert np.allclose(smoothed(values, weights, 7)[:20], by_hand)


def test_the_loss_is_smoothed_where_steps_are_many() -> None:
    few = smooth_loss(steps_of(noisy(49)))
    assert (few[0].tolist(), few[1].tolist(), few[2]) == (list(range(1, 50)), noisy(49), 1)
    assert [smooth_loss(steps_of(noisy(count)))[2] for count in (50, 130, 5000, 100_000)] == [5, 13, 201, 201]


def test_the_loss_of_a_policy_stands_beside_no_nll(tmp_path: Path) -> None:
    steps = [{**step, "reverse_kl": 0.5 - step["loss"]} for step in steps_of([0.1, 0.2, 0.3])]
    evals = evals_of({0: 2.1, 3: 0.9})
    write_plots(tmp_path / "plots", steps, evals, "distill")
    assert names(tmp_path / "plots") == [
        "eval_nll.svg", "learning_rate.svg", "loss.svg", "reverse_kl.svg", "tokens_per_second.svg"
    ]  # fmt: skip
    own, loss = (tmp_path / "plots" / name for name in ("reverse_kl.svg", "loss.svg"))
    assert_affine(line(own, "reverse_kl"), np.array([[1, 0.4], [2, 0.3], [3, 0.2]]))
    assert "eval_" not in own.read_text() + loss.read_text()
    write_sweep_plots(tmp_path / "sweep", [Curve("one", steps, evals)])
    assert names(tmp_path / "sweep") == ["test_nll.svg"]


def test_a_sweep_has_a_line_a_run(tmp_path: Path) -> None:
    tokens = [10, 1000, 10, 500]
    good = Curve("good", steps_of([2.0, 1.0, 0.9, 0.8], tokens), evals_of({0: 2.1, 4: 0.9}))
    slow = Curve("_slow $x$", steps_of([2.0, 1.9, 1.8, 1.8], tokens), evals_of({0: 2.1, 4: 1.9}))
    write_sweep_plots(tmp_path / "plots", [good, slow, Curve("none", [], [])])
    assert names(tmp_path / "plots") == ["test_nll.svg", "train_nll.svg"]
    test, train = (tmp_path / "plots" / name for name in ("test_nll.svg", "train_nll.svg"))
    expected = np.array([[0, 2.1], [4, 0.9], [0, 2.1], [4, 1.9]])
    assert_affine(np.concatenate([line(test, "run_0"), line(test, "run_1")]), expected)
    means = [
        [step + 1, np.average([e["loss"] for e in run.steps[: step + 1]], weights=tokens[: step + 1])]
        for run in (good, slow)
        for step in range(4)
    ]
    assert_affine(np.concatenate([line(train, "run_0"), line(train, "run_1")]), np.array(means))
    for picture in (test, train):
        assert "run_2" not in picture.read_text()
        texts = comments(picture)
        assert texts.index("good") < texts.index("_slow $x$") < texts.index("none (no data)")
        assert "leaves the picture" not in texts


def test_a_diverged_run_does_not_flatten_the_others(tmp_path: Path) -> None:
    def run(label: str, last: float) -> Curve:
        return Curve(label, steps_of([2.0, last]), evals_of({0: 2.0, 2: last}))

    write_sweep_plots(tmp_path, [run("a", 1.0), run("b", 1.5), run("bad", 1e6), run("worse", float("nan"))])
    for name in names(tmp_path):
        assert "bad ↑ leaves the picture" in comments(tmp_path / name)
        assert "worse ↑ leaves the picture" in comments(tmp_path / name)
    drawn = line(tmp_path / "test_nll.svg", "run_0")
    # From 2.0 to 1.0 is nearly the whole height of the axes, 4.2 inches of which 0.77 are theirs.
    assert drawn[0, 1] - drawn[1, 1] > 0.85 * 4.2 * 72 * 0.77


def test_what_a_picture_of_many_lines_shows() -> None:
    def top(*highest: float) -> float:
        return top_of([np.array([1.0, value, np.nan]) for value in highest])

    assert top(2.0, 2.1, 2.2) == 2.2
    assert top(2.0, 2.1, 3.9) == 3.9
    assert top(2.0, 2.1, 99.0) == 2.1
    assert top(2.0, 99.0) == 2.0
    assert top(99.0) == 99.0
    assert top_of([]) == top_of([np.array([np.inf])]) == 1.0


def test_24_runs_can_be_told_apart(tmp_path: Path) -> None:
    write_sweep_plots(tmp_path, [Curve(f"run {k}", [], evals_of({0: 2.0, 9: 1.0 + k / 50})) for k in range(24)])
    root = ElementTree.parse(tmp_path / "test_nll.svg")
    looks = set()
    for k in range(24):
        path = root.find(f".//{_SVG}g[@id='run_{k}']/{_SVG}path")
        assert path is not None
        style = dict(part.split(": ") for part in path.attrib["style"].split("; "))
        # Dashes are written in widths of their line, and the first line is wider.
        looks.add((style["stroke"], style.get("stroke-dasharray", "")))
    assert len(looks) == 24


METHODS: list[tuple[MethodName, str, str]] = [
    ("rl", "reward", "reward"), ("selfplay", "win_rate", "win_rate"), ("dpo", "loss", "accuracy"),
    ("reward", "loss", "accuracy"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "judged", "own"), METHODS)
def test_pictures_are_of_what_a_method_is_judged_by(tmp_path: Path, method: MethodName, judged: str, own: str) -> None:
    """The second step had nothing to train, and no figure of its own."""
    steps = steps_of([0.5, 0.0, 0.25, 0.1], [10, 0, 20, 20])
    values = [0.2, None, 0.4, 0.8]
    steps = [entry | {own: value} for entry, value in zip(steps, values, strict=True)]
    evals = [{"step": step, judged: value, own: value} for step, value in [(0, 0.3), (2, 0.9), (4, 0.6)]]
    write_plots(tmp_path / "plots", steps, evals, method)
    folder = tmp_path / "plots"
    expected = [f"eval_{judged}.svg", "learning_rate.svg", "loss.svg", "tokens_per_second.svg", f"{own}.svg"]
    assert names(folder) == sorted(expected)
    best = [0, 0.3] if judged == "loss" else [2, 0.9]
    points = np.array([[0, 0.3], [2, 0.9], [4, 0.6], best])
    picture = folder / f"eval_{judged}.svg"
    assert_affine(np.concatenate([line(picture, f"eval_{judged}"), line(picture, "eval_best")]), points)
    assert f"best evaluation: {best[1]:.4f} at step {best[0]}" in comments(picture)
    assert f"evaluation {judged.replace('_', ' ')}" in comments(picture)
    combined = folder / f"{own}.svg"
    drawn = [line(combined, gid) for gid in (own, f"eval_{own}", "eval_best")]
    assert_affine(np.concatenate(drawn), np.array([[1, 0.2], [3, 0.4], [4, 0.8], *points.tolist()]))
    losses = [[1, 0.5], [3, 0.25], [4, 0.1]]
    assert ("eval_best" in (folder / "loss.svg").read_text()) == (judged == "loss")
    assert len(line(folder / "loss.svg", "loss")) == len(losses)
    assert "without a finite loss: 1 of 4 steps" in comments(folder / "loss.svg")
    assert f"{method} loss" in comments(folder / "loss.svg")


def test_steps_without_anything_to_train_break_no_mean(tmp_path: Path) -> None:
    steps = steps_of([0.0] * 60 + [0.5] * 60, [0] * 60 + [10] * 60)
    methods: tuple[MethodName, ...] = ("sft", "rl")
    for method in methods:
        _, means, window = smooth_loss(steps, method)
        assert window == 13
        assert np.isnan(means[:54]).all()
        np.testing.assert_allclose(means[54:], 0.5)
        write_plots(tmp_path / "plots", steps, (), method)
    write_plots(tmp_path / "plots", steps_of([0.0, 0.0], [0, 0]))


def test_a_sweep_is_drawn_by_what_it_is_judged_by(tmp_path: Path) -> None:
    """A step whose answers had no reward does not count, and no run is cut off for being much better."""
    steps = [entry | {"reward": value} for entry, value in zip(steps_of([0.0] * 3), [0.5, None, 1.0], strict=True)]
    evals = [{"step": 0, "reward": 0.1}, {"step": 3, "reward": 0.9}]
    low = [{"step": step, "reward": 0.1 + step / 1000} for step in (0, 3)]
    write_sweep_plots(tmp_path / "p", [Curve("a", steps, evals), Curve("b", [], low), Curve("c", [], low)], "reward")
    assert names(tmp_path / "p") == ["test_reward.svg", "train_reward.svg"]
    drawn = [line(tmp_path / "p" / "test_reward.svg", f"run_{i}") for i in range(2)]
    assert_affine(np.concatenate(drawn), np.array([[0, 0.1], [3, 0.9], [0, 0.1], [3, 0.103]]))
    assert "leaves the picture" not in comments(tmp_path / "p" / "test_reward.svg")
    assert_affine(line(tmp_path / "p" / "train_reward.svg", "run_0"), np.array([[1, 0.5], [2, 0.5], [3, 0.75]]))
    write_sweep_plots(tmp_path / "p", [Curve("a", steps_of([0.5]), [{"step": 1, "win_rate": 0.5}])], "win_rate")
    assert names(tmp_path / "p") == ["test_win_rate.svg"]
