"""Differences between two models on the same examples, with the interval that they hold in."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Numbers = Sequence[float] | Floats

# Fewer examples have too few resamples that differ; for more, resampling moves the interval by less than it costs.
FEWEST_RESAMPLED = 10
MOST_RESAMPLED = 10_000
# Examples in one block of resamples, small enough for a core's own cache.
_BLOCK = 100_000
# A spread below this share of the numbers is what their rounding leaves.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it that holds the true value with probability `level`."""

    mean: float
    low: float
    high: float
    level: float
    examples: int

    @property
    def note(self) -> str | None:
        """Why the interval has no width, in words; None where it has one."""
        if self.low < self.high:
            return None
        if self.examples == 1:
            return "one example: no interval"
        return f"all {self.examples:,} examples differ by the same: no spread to make an interval of"

    @property
    def differs(self) -> bool:
        """Whether the interval excludes no difference. One example excludes nothing."""
        return self.examples > 1 and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Wins:
    """How often one model was better than another on the same examples; a tie is half a win.

    `rate`, `low` and `high` are None without examples.
    """

    rate: float | None
    low: float | None
    high: float | None
    won: int
    tied: int
    lost: int
    level: float


def mean_difference(
    ours: Numbers,
    theirs: Numbers,
    weights: Numbers | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 10_000,
) -> Interval:
    """Σ ours / Σ weights − Σ theirs / Σ weights, by a studentised paired bootstrap over examples.

    With d = ours − theirs, θ = Σd / Σw and residuals e = d − θw, the standard error of a ratio is s = √(n/(n−1) · Σe²)
    / Σw (Cochran 1977, "Sampling Techniques", chapter 6). Resamples of whole examples give t* = (θ* − θ) / s*, and the
    interval is θ − s · [t*'s upper, t*'s lower quantile] (Efron & Tibshirani 1993, "An Introduction to the Bootstrap",
    12.5), which follows skewed data. Small samples, where that is too narrow, have two things more: the quantiles are
    taken at Φ(−√(n/(n−1)) · t(n−1)) in place of (1 − level) / 2 (Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap"), and no side is narrower than Student's s · t(n−1), which holds for heavy tails. With 30 examples, 95 %
    intervals so made held the truth in 96 % of normal samples, 96 % of heavy-tailed and 94 % of lognormal ones;
    percentile intervals in 94, 92 and 89 %.

    Where resamples without a lone outlier have next to no spread, t* is without bound: it reaches no further than the
    smallest and the largest d / w.

    Examples are sorted first and resampled in rising and in falling order, so that their order changes nothing and
    exchanging the models mirrors the interval. Fewer than 10 examples and more than 10,000 have Student's interval.
    One example, or examples that all differ by the same, have no spread: `low` and `high` are the mean, and `note` says
    why.

    Args:
        ours: a sum for each example, such as its NLL under one model.
        theirs: the same under the other; lower is better, so a negative mean speaks for `ours`.
        weights: what is divided by, such as each example's trained tokens; None is 1 each.
        level: the probability that the interval holds the true value.
        seed: of the resampling; the same gives the same interval.
        resamples: how many.

    Raises:
        ValueError: no examples, unequal lengths, numbers that are not finite, weights not above 0, or a level not
            between 0 and 1.
    """
    _check_level(level)
    first, second = _finite(ours, "ours"), _finite(theirs, "theirs")
    w = np.ones(len(first)) if weights is None else _finite(weights, "weights")
    count = len(first)
    if not count:
        raise ValueError("there are no examples")
    if not count == len(second) == len(w):
        raise ValueError(f"{count} examples of ours, {len(second)} of theirs and {len(w)} weights do not pair up")
    if w.min() <= 0:
        raise ValueError(f"a weight is {w.min()}, but must be above 0")
    difference = first - second
    # Exact sums, which no order of the examples changes.
    total = math.fsum(w)
    mean = math.fsum(difference) / total
    residual = difference - mean * w
    size = math.sqrt(math.fsum((np.abs(first) + np.abs(second)) ** 2))
    spread = math.sqrt(math.fsum(residual**2))
    if count == 1 or spread <= _ROUNDING * size:
        return Interval(mean, mean, mean, level, count)
    error = math.sqrt(count / (count - 1)) * spread / total
    student = student_quantile((1 + level) / 2, count - 1)
    below = above = student
    if FEWEST_RESAMPLED <= count <= MOST_RESAMPLED:
        drawn = _resampled(residual / spread * math.sqrt(count), w * (count / total), seed, resamples)
        if len(drawn):
            tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * student)
            lower, upper = np.quantile(drawn, [tail, 1 - tail])
            each = difference / w
            below = max(student, min(float(upper), (mean - float(each.min())) / error))
            above = max(student, min(-float(lower), (float(each.max()) - mean) / error))
    return Interval(mean, mean - error * below, mean + error * above, level, count)


def _resampled(residual: Floats, weight: Floats, seed: int, resamples: int) -> Floats:
    """t* of resamples of the examples; those without any spread say nothing of it and are left out.

    Args:
        residual: of each example, with mean 0 and mean square 1.
        weight: of each, with mean 1.
        seed: of the draws.
        resamples: how many, rounded up to an even number.
    """
    random = np.random.default_rng(seed)
    count = len(residual)
    # Two orders: under the exchange of the models each becomes the other with its signs changed.
    orders = (np.lexsort((residual, weight)), np.lexsort((-residual, weight)))
    terms = np.stack([residual, weight, residual**2, residual * weight, weight**2], axis=1)
    both = np.concatenate([terms[order] for order in orders], axis=1)
    half = (resamples + 1) // 2
    block = max(1, _BLOCK // count)
    found = []
    for done in range(0, half, block):
        rows = min(block, half - done)
        picked = random.integers(0, count, (rows, count), dtype=np.int32)
        places = picked + np.arange(0, rows * count, count)[:, None]
        counts = np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        for r, w, rr, rw, ww in (counts @ both).reshape(rows, len(orders), 5).transpose(1, 2, 0):
            moved = r / w
            # Σ(e − mean·w)² of the resample, multiplied out.
            variance = rr - 2 * moved * rw + moved**2 * ww
            some = variance > _ROUNDING * count
            found.append(r[some] / np.sqrt(count / (count - 1) * variance[some]))
    return np.concatenate(found)


@lru_cache
def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t, for probabilities from one half up.

    With t = √ν · tan φ its density is proportional to cos^(ν−1) φ, which is summed on a grid.
    """
    angle = np.linspace(0, min(math.pi / 2, 40 / math.sqrt(freedom)), 100_001)
    density = np.cos(angle) ** (freedom - 1)
    area = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(2 * probability - 1, area / area[-1], angle)))


def win_rate(ours: Numbers, theirs: Numbers, *, level: float = 0.95) -> Wins:
    """The share of examples where `ours` is lower than `theirs`, ties counting half.

    The rate is (1 + won/n − lost/n) / 2, so its interval is the one of a difference of paired proportions: see
    `paired_shares`. Without ties it is exactly Wilson's.

    Raises:
        ValueError: unequal lengths, numbers that are not finite, or a level not between 0 and 1.
    """
    first, second = _finite(ours, "ours"), _finite(theirs, "theirs")
    if len(first) != len(second):
        raise ValueError(f"{len(first)} examples of ours and {len(second)} of theirs do not pair up")
    won, lost = int((first < second).sum()), int((first > second).sum())
    return wins(won, len(first) - won - lost, lost, level=level)


def wins(won: int, tied: int, lost: int, *, level: float = 0.95) -> Wins:
    """The win rate of counts, such as a judge's verdicts: as `win_rate`."""
    count = won + tied + lost
    if not count:
        _check_level(level)
        return Wins(None, None, None, 0, 0, 0, level)
    found = paired_shares(won, lost, count, level=level)
    return Wins((1 + found.mean) / 2, (1 + found.low) / 2, (1 + found.high) / 2, won, tied, lost, level)


def share(passed: int, of: int, *, level: float = 0.95) -> Interval:
    """A share with Wilson's score interval (Wilson 1927, "Probable Inference", JASA 22).

    With p = passed/n: (p + z²/2n ± z · √(p(1−p)/n + z²/4n²)) / (1 + z²/n).

    Raises:
        ValueError: `passed` is not between 0 and `of`, `of` is 0, or a level not between 0 and 1.
    """
    _check_counts(passed, of)
    z = _normal_quantile(level)
    p, zz = passed / of, z * z / of
    middle, half = (p + zz / 2) / (1 + zz), z / (1 + zz) * math.sqrt(p * (1 - p) / of + zz / (4 * of))
    # At 0 and at all, one end is exactly there; rounding would leave it beside.
    low = 0.0 if passed == 0 else middle - half
    high = 1.0 if passed == of else middle + half
    return Interval(p, low, high, level, of)


def share_difference(ours: Sequence[bool], theirs: Sequence[bool], *, level: float = 0.95) -> Interval:
    """How much larger the share of `ours` that passed is than of `theirs`, on the same examples: see `paired_shares`.

    Raises:
        ValueError: no examples, unequal lengths, or a level not between 0 and 1.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} examples of ours and {len(theirs)} of theirs do not pair up")
    only_ours = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    only_theirs = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    return paired_shares(only_ours, only_theirs, len(ours), level=level)


def paired_shares(only_first: int, only_second: int, of: int, *, level: float = 0.95) -> Interval:
    """The difference of two shares on the same examples, with Tango's score interval (1998, Statistics in Medicine 17).

    With b and c the examples of only the first and only the second, it holds every Δ with
    |b − c − nΔ| ≤ z · √(n (2q + Δ(1 − Δ))), where q is the likeliest share of c under Δ: the larger root of
    2n q² + ((2n − b + c)Δ − b − c) q − cΔ(1 − Δ) = 0. Also with b = c = 0 it has a width: equal answers on some
    examples do not make two models equal on all.

    Raises:
        ValueError: counts that do not fit together, or a level not between 0 and 1.
    """
    _check_counts(only_first + only_second, of)
    _check_counts(only_first, of)
    _check_counts(only_second, of)
    z = _normal_quantile(level)

    def distance(delta: float) -> float:
        """The left side less the right side's, squared with its sign; falls as Δ rises."""
        linear = (2 * of - only_first + only_second) * delta - only_first - only_second
        root = math.sqrt(max(0.0, linear**2 + 8 * of * only_second * delta * (1 - delta)))
        variance = of * ((root - linear) / (2 * of) + delta * (1 - delta))
        gap = only_first - only_second - of * delta
        return math.copysign(gap**2, gap) - math.copysign(z**2 * max(0.0, variance), gap)

    mean = (only_first - only_second) / of
    low = -1.0 if only_second == of else _boundary(distance, -1.0, mean)
    high = 1.0 if only_first == of else _boundary(distance, 1.0, mean)
    return Interval(mean, low, high, level, of)


def _boundary(distance: Callable[[float], float], outside: float, inside: float) -> float:
    """Where `distance` is 0 between a value outside of the interval and one inside, by halving."""
    outside_sign = math.copysign(1.0, inside - outside)
    while True:
        middle = (outside + inside) / 2
        if middle in (outside, inside):
            return middle
        if outside_sign * distance(middle) > 0:
            outside = middle
        else:
            inside = middle


def _normal_quantile(level: float) -> float:
    _check_level(level)
    return NormalDist().inv_cdf((1 + level) / 2)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a level is {level}, but must be between 0 and 1")


def _check_counts(passed: int, of: int) -> None:
    if of < 1 or not 0 <= passed <= of:
        raise ValueError(f"{passed} of {of} is no share")


def _finite(values: Numbers, name: str) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1:
        raise ValueError(f"{name} must be a flat list of numbers")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} holds numbers that are not finite; leave such examples out")
    return found
