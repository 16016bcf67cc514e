"""Intervals: how often they hold the truth, against SciPy, and what must not change them."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marks import mostly_slow
from scipy import stats  # type: ignore[import-untyped]

from tinkertools.evidence.statistics import (
    Interval,
    mean_difference,
    paired_shares,
    share,
    share_difference,
    student_quantile,
    win_rate,
    wins,
)

SIMULATIONS = 2000

Draw = Callable[[np.random.Generator, int], tuple[Any, Any, float]]


def _plain(draw: Callable[[np.random.Generator, int], Any], truth: float) -> Draw:
    return lambda random, n: (draw(random, n), None, truth)


def _tokens(random: np.random.Generator, n: int) -> Any:
    """Lengths of answers: skewed, from a handful to a thousand."""
    return np.ceil(random.lognormal(4, 0.8, n))


def _noisy_tokens(random: np.random.Generator, n: int) -> tuple[Any, Any, float]:
    w = random.integers(5, 200, n).astype(float)
    return w * -0.2 + random.normal(0, 1, n) * np.sqrt(w), w, -0.2


def _skewed_tokens(random: np.random.Generator, n: int) -> tuple[Any, Any, float]:
    w = _tokens(random, n)
    return w * random.normal(-0.2, 0.3, n), w, -0.2


def _heavy_tokens(random: np.random.Generator, n: int) -> tuple[Any, Any, float]:
    w = _tokens(random, n)
    return w * 0.1 * random.standard_t(4, n), w, 0.0


CASES: dict[str, Draw] = {
    "normal": _plain(lambda r, n: r.normal(-0.3, 1, n), -0.3),
    "lognormal": _plain(lambda r, n: r.lognormal(0, 1, n), math.exp(0.5)),
    "lognormal against lognormal": _plain(lambda r, n: r.lognormal(0, 1, n) - r.lognormal(0, 1, n), 0.0),
    "exponential": _plain(lambda r, n: r.exponential(1, n), 1.0),
    "Student's t, 4 degrees": _plain(lambda r, n: r.standard_t(4, n), 0.0),
    "weights, noise by token": _noisy_tokens,
    "lognormal weights": _skewed_tokens,
    "lognormal weights, Student's t": _heavy_tokens,
}


@pytest.mark.parametrize("count", [30, 100])
@pytest.mark.parametrize("case", mostly_slow(CASES, 3))
def test_intervals_hold_the_truth_as_often_as_they_say(case: str, count: int) -> None:
    random = np.random.default_rng(20_260)
    held = 0
    for seed in range(SIMULATIONS):
        difference, weights, truth = CASES[case](random, count)
        found = mean_difference(difference, np.zeros(count), weights, seed=seed, resamples=400)
        held += found.low <= truth <= found.high
    print(f"{case}, {count} examples: {held / SIMULATIONS:.4f}")
    assert 0.93 <= held / SIMULATIONS <= 0.97


@pytest.mark.parametrize(
    ("win", "loss", "count"), [(0.5, 0.5, 30), (0.6, 0.2, 30), (0.25, 0.05, 30), (0.1, 0.1, 100), (0.05, 0.02, 100)]
)
def test_win_rates_hold_the_truth_with_ties(win: float, loss: float, count: int) -> None:
    random = np.random.default_rng(1)
    held = 0
    for won, lost, tied in random.multinomial(count, [win, loss, 1 - win - loss], SIMULATIONS):
        found = wins(int(won), int(tied), int(lost))
        assert found.low is not None and found.high is not None
        held += found.low <= (1 + win - loss) / 2 + 1e-9 and (1 + win - loss) / 2 - 1e-9 <= found.high
    assert 0.93 <= held / SIMULATIONS <= 0.97


def test_a_large_sample_has_the_interval_of_scipys_bootstrap() -> None:
    random = np.random.default_rng(3)
    ours, theirs = random.lognormal(0, 0.5, 400), random.lognormal(0.1, 0.5, 400)
    weights = random.integers(5, 50, 400).astype(float)

    def ratio(a: Any, b: Any, w: Any, axis: int = -1) -> Any:
        return (a.sum(axis) - b.sum(axis)) / w.sum(axis)

    theirs_found = stats.bootstrap(
        (ours, theirs, weights), ratio, paired=True, n_resamples=10_000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    found = mean_difference(ours, theirs, weights)
    width = found.high - found.low
    assert found.mean == pytest.approx(ratio(ours, theirs, weights))
    # Monte Carlo error of either end is some 2 % of the width; the methods differ by less than that here.
    assert found.low == pytest.approx(theirs_found.low, abs=0.05 * width)
    assert found.high == pytest.approx(theirs_found.high, abs=0.05 * width)


def test_students_quantiles() -> None:
    for probability in (0.6, 0.9, 0.975, 0.995):
        for freedom in (1, 2, 3, 9, 29, 1999, 10**6):
            assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-6)


@pytest.mark.parametrize("count", [2, 5, 9, 10_001])
def test_few_and_very_many_examples_have_students_interval(count: int) -> None:
    values = np.random.default_rng(0).normal(1, 2, count)
    found = mean_difference(values, np.zeros(count))
    expected = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-6)


def test_equal_weights_are_no_weights() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.normal(0, 1, 50), random.normal(0, 1, 50)
    plain, weighted = mean_difference(ours, theirs), mean_difference(ours, theirs, [4.0] * 50)
    assert (weighted.mean * 4, weighted.low * 4, weighted.high * 4) == pytest.approx(
        (plain.mean, plain.low, plain.high)
    )


def test_one_example_and_equal_ones_say_why_they_have_no_width() -> None:
    one = mean_difference([3.0], [1.0], [4.0])
    assert one == Interval(0.5, 0.5, 0.5, 0.95, 1)
    assert one.note == "one example: no interval" and not one.differs
    equal = mean_difference([1.1, 2.2, 3.3], [0.1, 0.2, 0.3], [1.0, 2.0, 3.0])
    assert equal.low == equal.high == equal.mean == pytest.approx(1)
    assert equal.note == "all 3 examples differ by the same: no spread to make an interval of"
    assert equal.differs
    assert mean_difference([1.0, 2.0], [3.0, 5.0]).note is None


def test_a_single_example_that_differs_makes_no_endless_interval() -> None:
    for count in (10, 30, 500):
        found = mean_difference([1.0] + [0.0] * (count - 1), [0.0] * count)
        assert math.isfinite(found.low) and math.isfinite(found.high)
        assert found.low <= 0 < found.mean < found.high
    # The others differ by next to nothing: studentised, such resamples lie ten thousand errors away.
    values = [10.0, *np.random.default_rng(0).normal(0, 0.001, 29)]
    found = mean_difference(values, [0.0] * 30)
    assert found.low < 0 < found.high <= max(values)


def test_two_thousand_examples_take_little_time() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.normal(0, 1, 2000), random.normal(0, 1, 2000)
    began = time.process_time()
    mean_difference(ours, theirs)
    assert time.process_time() - began < 4


VALUES = st.floats(-100, 100).map(lambda x: round(x, 3))


@st.composite
def samples(draw: st.DrawFn) -> tuple[list[float], list[float], list[float]]:
    count = draw(st.integers(1, 40))
    lists = [draw(st.lists(values, min_size=count, max_size=count)) for values in (VALUES, VALUES, st.integers(1, 50))]
    return lists[0], lists[1], [float(w) for w in lists[2]]


def _ends(found: Interval) -> tuple[float, float, float]:
    return found.mean, found.low, found.high


@given(samples(), st.integers(0, 3))
def test_exchanging_the_models_mirrors_the_interval(sample: tuple[Any, Any, Any], seed: int) -> None:
    ours, theirs, weights = sample
    there = mean_difference(ours, theirs, weights, seed=seed, resamples=200)
    back = mean_difference(theirs, ours, weights, seed=seed, resamples=200)
    assert _ends(back) == pytest.approx((-there.mean, -there.high, -there.low), rel=1e-9, abs=1e-12)
    assert there.low <= there.mean <= there.high


@given(samples(), st.randoms(use_true_random=False))
def test_the_order_of_examples_changes_nothing(sample: tuple[Any, Any, Any], random: Any) -> None:
    order = list(range(len(sample[0])))
    random.shuffle(order)
    moved = [[values[i] for i in order] for values in sample]
    assert mean_difference(*moved, resamples=200) == mean_difference(*sample, resamples=200)


@given(samples(), st.sampled_from([0.25, 2.0, 1024.0]), st.integers(-8, 8))
def test_scaled_and_shifted_sums_scale_and_shift_the_interval(
    sample: tuple[Any, Any, Any], scale: float, shift: float
) -> None:
    ours, theirs, weights = sample
    plain = mean_difference(ours, theirs, weights, resamples=200)
    scaled = mean_difference([x * scale for x in ours], [x * scale for x in theirs], weights, resamples=200)
    assert _ends(scaled) == pytest.approx([x * scale for x in _ends(plain)], rel=1e-9)
    shifted = mean_difference(
        [x + shift * w for x, w in zip(ours, weights, strict=True)], theirs, weights, resamples=200
    )
    assert _ends(shifted) == pytest.approx([x + shift for x in _ends(plain)], rel=1e-4, abs=1e-4)


@given(samples())
def test_a_model_against_itself_is_exactly_zero(sample: tuple[Any, Any, Any]) -> None:
    ours, _, weights = sample
    found = mean_difference(ours, ours, weights, resamples=200)
    assert _ends(found) == (0.0, 0.0, 0.0) and not found.differs
    rate = win_rate(ours, ours)
    assert (rate.rate, rate.won, rate.lost) == (0.5, 0, 0)


def test_seeds_and_levels() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.normal(0, 1, 60), random.normal(0, 1, 60)
    assert mean_difference(ours, theirs, seed=1) == mean_difference(ours, theirs, seed=1)
    assert mean_difference(ours, theirs, seed=1) != mean_difference(ours, theirs, seed=2)
    narrow, wide = mean_difference(ours, theirs, level=0.5), mean_difference(ours, theirs, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], []), "no examples"),
        (([1.0], [1.0, 2.0]), "do not pair up"),
        (([1.0, math.nan], [1.0, 2.0]), "ours holds numbers that are not finite"),
        (([1.0], [math.inf]), "theirs holds numbers that are not finite"),
        (([1.0], [1.0], [0.0]), "must be above 0"),
        (([1.0], [1.0], [math.nan]), "weights holds"),
        (([[1.0]], [[1.0]]), "flat"),
    ],
)
def test_what_has_no_mean_is_refused(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mean_difference(*arguments)


def test_levels_and_counts_out_of_range_are_refused() -> None:
    for level in (0.0, 1.0, 95.0, math.nan):
        with pytest.raises(ValueError, match="level"):
            mean_difference([1.0], [2.0], level=level)
        with pytest.raises(ValueError, match="level"):
            win_rate([], [], level=level)
        with pytest.raises(ValueError, match="level"):
            share(1, 2, level=level)
    for passed, of in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no share"):
            share(passed, of)
    with pytest.raises(ValueError, match="no share"):
        paired_shares(2, 2, 3)
    with pytest.raises(ValueError, match="pair up"):
        win_rate([1.0], [])
    with pytest.raises(ValueError, match="finite"):
        win_rate([math.nan], [1.0])


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(("passed", "of"), [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (517, 1319)])
def test_shares_are_scipys(passed: int, of: int, level: float) -> None:
    expected = stats.binomtest(passed, of).proportion_ci(level, method="wilson")
    found = share(passed, of, level=level)
    assert _ends(found) == pytest.approx((passed / of, expected.low, expected.high), abs=1e-12)
    # A win rate without ties is such a share.
    rate = wins(passed, 0, of - passed, level=level)
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wins_ties_and_losses() -> None:
    found = win_rate([1.0, 2.0, 3.0, 9.0], [2.0, 2.0, 4.0, 1.0])
    assert (found.won, found.tied, found.lost, found.rate) == (2, 1, 1, 0.625)
    assert win_rate([], []).rate is win_rate([], []).low is win_rate([], []).high is None


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_differences_of_shares_are_the_roots_of_the_score(only_first: int, only_second: int, same: int) -> None:
    of = only_first + only_second + same
    if not of:
        return
    found = paired_shares(only_first, only_second, of)
    z = stats.norm.ppf(0.975)
    for end in (found.low, found.high):
        if abs(end) == 1:
            continue
        # The likelihood's maximum under this difference, found without the closed form.
        grid = np.linspace(max(0, -end), (1 - end) / 2, 40_001)[1:-1]
        with np.errstate(divide="ignore"):
            likelihood = (
                (only_first and only_first * np.log(grid + end))
                + (only_second and only_second * np.log(grid))
                + (same and same * np.log(np.maximum(1 - 2 * grid - end, 1e-300)))
            )
        q = grid[np.argmax(likelihood)]
        gap = only_first - only_second - of * end
        assert abs(gap) == pytest.approx(z * math.sqrt(of * (2 * q + end * (1 - end))), rel=1e-3)
    mirrored = paired_shares(only_second, only_first, of)
    assert _ends(mirrored) == pytest.approx((-found.mean, -found.high, -found.low), abs=1e-9)


def test_two_checks_on_the_same_examples() -> None:
    ours, theirs = [True] * 40 + [False] * 20 + [True] * 100, [False] * 40 + [True] * 20 + [True] * 100
    found = share_difference(ours, theirs)
    assert found == paired_shares(40, 20, 160)
    assert found.mean == 0.125 and found.differs
    alike = share_difference([True] * 100, [True] * 100)
    assert (
        alike.mean == 0
        and alike.low == pytest.approx(-0.037, abs=1e-4)
        and alike.high == pytest.approx(0.037, abs=1e-4)
    )
    with pytest.raises(ValueError, match="pair up"):
        share_difference([True], [])
