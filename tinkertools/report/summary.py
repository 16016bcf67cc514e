"""What the page says before any script runs: who was compared with whom, the findings, the scores, the settings."""

import html
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

# What an interval says: it lies on the good side of "no difference", on the bad one, holds it, or is not there.
Verdict = Literal["better", "worse", "none", "unknown"]

NOTHING = "–"

_BADGES: dict[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "none": "no difference found",
    "unknown": "no interval",
}

_UNITS = {"nll": "NLL", "bits_per_byte": "bits per byte"}

# Controls have no shape of their own; their pictures have. Half a surrogate pair has no bytes.
_CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Finding:
    """One thing that was compared: what its interval says, and the sentence."""

    verdict: Verdict
    text: str

    @property
    def sentence(self) -> str:
        """The finding as plain text."""
        return f"{_BADGES[self.verdict]}: {self.text}"


def safe(value: Any) -> str:
    """`value` as HTML that shows its text, in element or attribute."""
    text = _SURROGATES.sub("\ufffd", str(value)).translate(_CONTROLS)
    return html.escape(text)


def title(results: Mapping[str, Any]) -> str:
    """What the page is called."""
    labels = _labels(results)
    tuned = [label for label in labels if not _of(_of(results, "models"), label).get("base") and label != "base"]
    if len(tuned) == 1 and len(labels) == 2:
        return f"{tuned[0]} against {next(label for label in labels if label != tuned[0])}"
    return f"Comparison of {len(labels)} models" if labels else "Comparison"


def heading(results: Mapping[str, Any]) -> str:
    """The name of the page, and on what was compared."""
    asked, scored = _list(results, "results"), _list(_of(results, "likelihood"), "examples")
    chosen = _of(results, "settings")
    answers = f"({_counted(len(asked), 'answer')} a model)"
    data = _of(results, "likelihood").get("data") or chosen.get("data")
    facts = [
        _fact("base model", results.get("base_model")),
        _fact("held-out data", f"{data or 'data'} ({_counted(len(scored), 'example')})" if scored else None),
        _fact("prompts", f"{chosen.get('prompts') or ''} {answers}" if asked else None),
        _fact("judge", chosen.get("judge")),
        _fact("made", results.get("created")),
    ]
    return f'<h1>{_isolated(title(results))}</h1>\n<dl class="facts">{"".join(facts)}</dl>'


def summary(results: Mapping[str, Any]) -> str:
    """The findings of each comparison, the scores, and which models these are."""
    parts = [_cards(results), _scores(results), _models(results)]
    shown = "\n".join(part for part in parts if part) or "<p>There is nothing to summarise: no model was scored.</p>"
    return _section("summary", "Summary", shown)


def settings(results: Mapping[str, Any]) -> str:
    """How the answers were made, and with which versions."""
    tables = "".join(
        _pairs(caption, found)
        for caption, found in (("Settings", _of(results, "settings")), ("Versions", _of(results, "versions")))
        if found
    )
    shown = tables or "<p>Not recorded.</p>"
    return _section("settings", "Settings and versions", f'<div class="columns">{shown}</div>')


def _section(name: str, words: str, content: str) -> str:
    title = f'<h2 id="{name}-title">{words}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">\n{title}\n{content}\n</section>'


def _wide_table(name: str, words: str, head: str, rows: str) -> str:
    """A table that is scrolled by itself where it is wider than the page."""
    region = f'<div class="wide" tabindex="0" role="region" aria-labelledby="{name}-title">'
    return (
        f'<h3 id="{name}-title">{words}</h3>\n{region}'
        f'<table class="{name}"><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'
    )


def findings(comparison: Mapping[str, Any]) -> list[Finding]:
    """What a comparison found, in sentences; the likelihood first."""
    unit = _UNITS.get(str(comparison.get("unit")), "NLL")
    level = _of(comparison, "difference").get("level", 0.95)
    found = [
        _likelihood(_of(comparison, "difference"), unit),
        _rate(_of(comparison, "wins"), level, f"lower {unit} on", "examples"),
        _check(_of(_of(comparison, "check"), "difference")),
        _rate(_of(comparison, "judge"), level, "preferred by the judge in", "prompts"),
    ]
    return [finding for finding in found if finding]


def _likelihood(difference: Mapping[str, Any], unit: str) -> Finding | None:
    mean, low, high = (_finite(difference.get(key)) for key in ("mean", "low", "high"))
    if mean is None:
        return None
    verdict = _verdict(low, high, 0, lower_is_better=True)
    digits = _digits(low, high)
    return Finding(verdict, f"held-out {unit} {_change(mean, low, high, digits, '')}{_spread(difference, digits)}")


def _check(difference: Mapping[str, Any]) -> Finding | None:
    mean, low, high = (_finite(difference.get(key)) for key in ("mean", "low", "high"))
    if mean is None:
        return None
    verdict = _verdict(low, high, 0, lower_is_better=False)
    points = {key: None if (found := _finite(difference.get(key))) is None else 100 * found for key in ("low", "high")}
    change = _change(100 * mean, points["low"], points["high"], 1, " points")
    return Finding(verdict, f"share of checks passed {change}{_spread({**difference, **points}, 1, ' points')}")


def _rate(found: Mapping[str, Any], level: Any, what: str, things: str) -> Finding | None:
    rate, low, high = (_finite(found.get(key)) for key in ("rate", "low", "high"))
    if rate is None:
        return None
    counts = {key: found.get(key) or 0 for key in ("won", "tied", "lost", "undecided")}
    of = sum(counts.values())
    others = [f"{counts[key]:,} {key}" for key in ("tied", "undecided") if counts[key]]
    text = f"{what} {counts['won']:,} of {of:,} {things}"
    if others:
        text += f" ({', '.join(others)})"
    text += f": win rate {rate:.0%}"
    if low is not None and high is not None:
        text += f" ({_level(found.get('level', level))}: {low:.0%} to {high:.0%})"
    return Finding(_verdict(low, high, 0.5, lower_is_better=False), text)


def _change(mean: float, low: float | None, high: float | None, digits: int, unit: str) -> str:
    """How far a value moved: by its size where the direction is known, else with its sign."""
    if low is not None and high is not None and low <= 0 <= high:
        return f"{_signed(mean, digits)}{unit}"
    return f"{abs(mean):.{digits}f}{unit} {'lower' if mean < 0 else 'higher'}"


def _spread(difference: Mapping[str, Any], digits: int, unit: str = "") -> str:
    """The interval of a difference and its number of examples, as far as they are known."""
    low, high, examples = (_finite(difference.get(key)) for key in ("low", "high", "examples"))
    text = ""
    if low is not None and high is not None:
        # Where the direction is said, sizes are told, the smaller first.
        ends = [_signed(low, digits), _signed(high, digits)]
        if not low <= 0 <= high:
            ends = [f"{size:.{digits}f}" for size in sorted((abs(low), abs(high)))]
        text = f" ({_level(difference.get('level', 0.95))}: {ends[0]} to {ends[1]}{unit})"
    return text + (f" on {_counted(int(examples), 'example')}" if examples is not None else "")


def _verdict(low: float | None, high: float | None, same: float, *, lower_is_better: bool) -> Verdict:
    if low is None or high is None:
        return "unknown"
    if low <= same <= high:
        return "none"
    return "better" if (high < same) == lower_is_better else "worse"


def _digits(low: float | None, high: float | None) -> int:
    """Decimals that show two figures of an interval's width; at least two."""
    width = high - low if low is not None and high is not None else 0.0
    return min(max(1 - math.floor(math.log10(width)), 2), 6) if width > 0 else 4


def _cards(results: Mapping[str, Any]) -> str:
    comparisons = [each for each in _list(results, "comparisons") if isinstance(each, Mapping)]
    reach = {unit: _reach(comparisons, unit) for unit in _UNITS}
    cards = "\n".join(_card(each, _of(results, "scores"), reach) for each in comparisons)
    return f'<div class="cards">\n{cards}\n</div>' if cards else ""


def _card(comparison: Mapping[str, Any], scores: Mapping[str, Any], reach: Mapping[str, tuple[float, float]]) -> str:
    of, against = comparison.get("of"), comparison.get("against")
    rows = "".join(
        f'<li><span class="badge {found.verdict}">{_BADGES[found.verdict]}</span> {safe(found.text)}</li>'
        for found in findings(comparison)
    )
    before, after = (_finite(_of(scores, str(label)).get("perplexity")) for label in (against, of))
    if before is not None and after is not None:
        rows += f"<li>perplexity {_general(before)} → {_general(after)}</li>"
    unit = str(comparison.get("unit"))
    strip = _strip(_of(comparison, "difference"), reach.get(unit, (0.0, 0.0)), _UNITS.get(unit, "NLL"))
    return (
        f'<article class="card"><h3>{_isolated(of)} <small>against</small> {_isolated(against)}</h3>\n{strip}'
        f"<ul>{rows or '<li>nothing was measured for both</li>'}</ul></article>"
    )


def _reach(comparisons: Sequence[Mapping[str, Any]], unit: str) -> tuple[float, float]:
    """The scale that the intervals of all comparisons in `unit` share; 0 is on it."""
    of_unit = [_of(each, "difference") for each in comparisons if each.get("unit") == unit]
    values = [_finite(each.get(key)) or 0.0 for each in of_unit for key in ("low", "mean", "high")]
    return min([0.0, *values]), max([0.0, *values])


def _strip(difference: Mapping[str, Any], reach: tuple[float, float], unit: str) -> str:
    """A difference as a point with its interval, left of "no difference" where it is better."""
    mean, low, high = (_finite(difference.get(key)) for key in ("mean", "low", "high"))
    if mean is None or low is None or high is None or reach[0] == reach[1]:
        return ""
    verdict = _verdict(low, high, 0, lower_is_better=True)

    def place(value: float) -> str:
        return f"{4 + 92 * (value - reach[0]) / (reach[1] - reach[0]):.2f}%"

    zero = place(0)
    # The words stand on the side that is away from the 0.
    words = f'x="{"0" if reach[0] < -reach[1] else "100%"}" class="{"start" if reach[0] < -reach[1] else "end"}"'
    return (
        f'<svg class="strip {verdict}" role="img" aria-label="difference and interval" width="100%" height="34">'
        '<line class="axis" x1="0" x2="100%" y1="11" y2="11"/>'
        f'<line class="zero" x1="{zero}" x2="{zero}" y1="1" y2="21"/><text x="{zero}" y="31">0</text>'
        f'<text {words} y="31">difference of {unit}, left of 0 is better</text>'
        f'<line class="interval" x1="{place(low)}" x2="{place(high)}" y1="11" y2="11"/>'
        f'<circle cx="{place(mean)}" cy="11" r="4.5"/></svg>\n'
    )


def _check_score(check: Any) -> str:
    passed, of = (_finite(check.get(key)) if isinstance(check, Mapping) else None for key in ("passed", "of"))
    return f"{passed:,.0f} of {of:,.0f} ({passed / of:.0%})" if passed is not None and of else NOTHING


def _fixed(digits: int) -> Callable[[Any], str]:
    return lambda value: NOTHING if (found := _finite(value)) is None else f"{found:,.{digits}f}"


def _share(value: Any) -> str:
    return NOTHING if (found := _finite(value)) is None else f"{found:.1%}"


def _general(value: float) -> str:
    if value < 1000:
        return f"{value:#.4g}"
    return f"{value:,.0f}" if value < 1e6 else f"{value:.3g}"


_ROWS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "nll": ("NLL per trained token", _fixed(4)),
    "perplexity": ("perplexity", lambda value: NOTHING if (found := _finite(value)) is None else _general(found)),
    "bits_per_byte": ("bits per byte", _fixed(4)),
    "trained_tokens": ("trained tokens", _fixed(0)),
    "check": ("checks passed", _check_score),
    "exact": ("same as the reference", _share),
    "chrf": ("chrF with the reference", _fixed(1)),
    "rouge_l": ("ROUGE-L with the reference", _fixed(3)),
    "tokens": ("tokens an answer", _fixed(1)),
    "stopped": ("answers that came to their end", _share),
    "repetition": ("repetition", _share),
    "distinct_1": ("distinct words", _share),
    "distinct_2": ("distinct pairs of words", _share),
    "agrees_with_base": ("same answer as the base", _share),
}


def _scores(results: Mapping[str, Any]) -> str:
    scores = _of(results, "scores")
    labels = [label for label in _labels(results) if isinstance(scores.get(label), Mapping)]
    found = {key for label in labels for key, value in scores[label].items() if value is not None}
    rows = "\n".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{show(scores[label].get(key))}</td>" for label in labels)}</tr>'
        for key, (name, show) in _ROWS.items()
        if key in found
    )
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{_isolated(label)}</th>' for label in labels)
    return _wide_table("scores", "Scores", f'<th scope="col">score</th>{head}', rows)


def _models(results: Mapping[str, Any]) -> str:
    models = {label: found for label, found in _of(results, "models").items() if isinstance(found, Mapping)}
    if not models:
        return ""
    rows = "\n".join(
        f'<tr><th scope="row">{_isolated(label)}</th><td>{_isolated(model.get("name"))}</td>'
        f"<td>{_isolated(model.get('base_model'))}</td>"
        f"<td>{_config(_of(_of(model, 'training'), 'config'))}</td></tr>"
        for label, model in models.items()
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("model", "weights", "base model", "trained with"))
    return _wide_table("models", "Models", head, rows)


def _config(config: Mapping[str, Any]) -> str:
    return safe(", ".join(f"{key} {_shown(value)}" for key, value in config.items() if value is not None)) or NOTHING


def _pairs(caption: str, values: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{_isolated(key)}</th><td>{_isolated(value)}</td></tr>' for key, value in values.items()
    )
    return f"<table><caption>{caption}</caption><tbody>{rows}</tbody></table>"


def _labels(results: Mapping[str, Any]) -> list[str]:
    """The names of all models, in the order in which they were compared."""
    return list(dict.fromkeys([*_of(results, "models"), *_of(results, "scores")]))


def _fact(name: str, value: Any) -> str:
    return f"<div><dt>{name}</dt><dd>{_isolated(value)}</dd></div>" if value else ""


def _isolated(value: Any) -> str:
    """Text whose direction and order cannot reach what stands beside it."""
    return f"<bdi>{safe(_shown(value))}</bdi>"


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _of(values: Any, key: str) -> Mapping[str, Any]:
    """The object under `key`; an empty one where there is none."""
    found = values.get(key) if isinstance(values, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _list(values: Mapping[str, Any], key: str) -> Sequence[Any]:
    found = values.get(key)
    return found if isinstance(found, list | tuple) else []


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def _level(level: Any) -> str:
    return f"{100 * (_finite(level) or 0.95):.4g}%"


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
