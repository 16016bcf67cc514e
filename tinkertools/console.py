"""Data to stdout, talk to stderr. Only the command line and its commands print."""

import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tinkertools.errors import TinkertoolsError, without_secrets
from tinkertools.reporting import Report, Voice

if TYPE_CHECKING:
    from rich.console import Console

    from tinkertools.chat.examples import Example
    from tinkertools.chat.pairs import Pair
    from tinkertools.chat.rendering import Renderer

# How often progress is a line where there is no terminal to redraw.
_LINE_SECONDS = 10.0
# Answers shown in the terminal; the results file has them all.
_ANSWERS_SHOWN = 20
# Scores of models that are shown: how each is called and written.
_SCORES = {
    "nll": ("NLL per trained token", ".4f"),
    "perplexity": ("perplexity", ".4f"),
    "bits_per_byte": ("bits per byte", ".4f"),
    "trained_tokens": ("trained tokens", ",d"),
    "exact": ("same as the reference", ".0%"),
    "chrf": ("chrF with the reference", ".1f"),
    "rouge_l": ("ROUGE-L with the reference", ".3f"),
    "tokens": ("tokens an answer", ".1f"),
    "stopped": ("answers that came to their end", ".0%"),
    "repetition": ("repetition", ".0%"),
    "agrees_with_base": ("same answer as the base", ".0%"),
}
# A chart's rows without its title and its axis, its width at most, and the columns below which there is nothing to see.
_CHART_ROWS = 8
_CHART_WIDTH = 100
_CHART_LEAST = 16
# The bits of a braille character's dots, from the top.
_BRAILLE_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def _console(file: TextIO) -> "Console":
    from rich.console import Console

    return Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(text: str = "") -> None:
    """A line of talk, to stderr."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Something the user should know and that stops nothing."""
    _console(sys.stderr).print(f"note: {text}", style="yellow")


def waiting(text: str) -> None:
    """What a server is waited for, or what it says meanwhile."""
    say(f"  … {without_secrets(text)}")


def show_server_paths(paths: Sequence[tuple[int, Mapping[str, str]]], *, downloaded: bool) -> None:
    """Where a run's checkpoints are on the server."""
    say("on the server   " + ("the adapters are here too" if downloaded else "the adapters were not downloaded"))
    for step, found in paths:
        for kind, path in found.items():
            say(f"  step {step:>5}, {kind + ':':8} {path}")


def show_traceback(error: BaseException) -> None:
    """Where an error comes from, for those who asked; what its texts hold of keys is blacked out."""
    say(without_secrets("".join(traceback.format_exception(error))))


def show_error(error: TinkertoolsError) -> None:
    """What is wrong, then what to type next."""
    console = _console(sys.stderr)
    console.print(f"error: {error.message}", style="red")
    if error.hint:
        console.print(f"  → {error.hint}")


def ask(question: str, answers: Mapping[str, str]) -> str | None:
    """Have the user choose; None where nobody is there to answer, or the answer is none of these.

    Args:
        question: what to decide.
        answers: each by the letter that stands for it.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    shown = ", ".join(f"[{letter}] {answer}" for letter, answer in answers.items())
    print(f"{question} {shown}, anything else stops: ", end="", file=sys.stderr, flush=True)
    return answers.get(sys.stdin.readline().strip().lower()[:1])


def read_line(prompt: str) -> str | None:
    """A line that the user types, without its end; None at the end. The prompt is shown on a terminal only."""
    if sys.stdin.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def data(text: str) -> None:
    """A line of data, to stdout."""
    print(text, flush=True)


def json_data(value: Any) -> None:
    """A value as JSON, to stdout."""
    import orjson

    data(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def voice() -> Voice:
    """How a command speaks, for those who do its work."""
    return Voice(say, warn, waiting, progress)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, lines: bool = False) -> None:
    """A table, to stdout. Cells are shown as they are: no markup in them is obeyed."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, emoji=False)
    drawn = Table(show_lines=lines)
    for column in columns:
        drawn.add_column(Text(column), overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console.print(drawn)


@contextmanager
def progress(what: str, total: float | None, unit: str) -> Iterator[Report]:
    """Show long work: what, how far, rate, time left. A bar on a terminal, a line now and then elsewhere.

    Args:
        what: the work in a word or two.
        total: how much there is in all, or None where nobody knows.
        unit: what is counted, for the rate.
    """
    if sys.stderr.isatty():
        with _bar(what, total, unit) as report:
            yield report
    else:
        yield _lines(what, total, unit)


@contextmanager
def _bar(what: str, total: float | None, unit: str) -> Iterator[Report]:
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    with RichProgress(*columns, console=_console(sys.stderr), transient=False) as bar:
        task = bar.add_task(what, total=total, amount=_amount(0, total, unit), note="")

        def report(done: float, note: str = "") -> None:
            bar.update(task, completed=done, note=note, amount=_amount(done, total, unit))

        yield report


def _lines(what: str, total: float | None, unit: str) -> Report:
    start = last = time.monotonic()

    def report(done: float, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        finished = total is not None and done >= total
        if now - last < _LINE_SECONDS and not finished:
            return
        last = now
        elapsed = now - start
        left = ""
        if total is not None and 0 < done < total:
            left = f", {seconds((total - done) * elapsed / done)} left"
        say(f"{what}: {_amount(done, total, unit)} {note} ({seconds(elapsed)}{left})")

    return report


def _amount(done: float, total: float | None, unit: str) -> str:
    of = f"/{total:,.0f}" if total is not None else ""
    return f"{done:,.0f}{of} {unit}"


def seconds(value: float) -> str:
    """A duration in words, such as `1 m 05 s`."""
    if value < 60:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} m"


def show_answers(questions: Sequence[str], answers: Mapping[str, Sequence[str]], results: Path) -> None:
    """Each question with the answers of each model, side by side; a long list is cut and `results` named."""
    rows = list(zip(questions, *answers.values(), strict=True))
    table(["prompt", *answers], rows[:_ANSWERS_SHOWN], lines=True)
    if len(rows) > _ANSWERS_SHOWN:
        say(f"{len(rows) - _ANSWERS_SHOWN} more in {results}")


def show_scores(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """The scores of each model, side by side; nothing where there are none."""
    found = list(scores.values())
    rows = [
        (words, *(format(score[name], form) if score.get(name) is not None else "–" for score in found))
        for name, (words, form) in _SCORES.items()
        if any(score.get(name) is not None for score in found)
    ]
    if "check" in found[0]:
        checks = [score["check"] for score in found]
        rows.append(("check passed", *(f"{c['passed']} of {c['of']} ({c['passed'] / c['of']:.0%})" for c in checks)))
    if rows:
        table(["", *scores], rows)


def chart(title: str, points: Sequence[tuple[float, float]], *, marks: Sequence[tuple[float, float]] = ()) -> None:
    """A small line chart of `points` to stderr, with `marks` on it; nothing where there is no room or no value.

    Args:
        title: what is shown, and how the marks are to be read.
        points: places and values, the places ascending; those without a finite value are left out.
        marks: more of them, drawn each by itself.
    """
    width = min(_console(sys.stderr).width, _CHART_WIDTH)
    lines = [line[:width].rstrip() for line in _chart_lines(title, points, marks, width)]
    try:
        "\n".join(lines).encode(sys.stderr.encoding or "ascii")
    except UnicodeEncodeError:
        lines = [_ascii(line) for line in lines]
    for line in lines:
        say(line)


def _chart_lines(
    title: str, points: Sequence[tuple[float, float]], marks: Sequence[tuple[float, float]], width: int
) -> list[str]:
    """The chart: its title, rows from the highest value to the lowest, the axis, the first place and the last."""
    import numpy as np

    from tinkertools.runs.plots import envelope

    line, dots = (np.array(found, dtype=np.float64).reshape(-1, 2) for found in (points, marks))
    line, dots = (found[np.isfinite(found).all(axis=1)] for found in (line, dots))
    both = np.concatenate([line, dots])
    if not len(both):
        return []
    (first, low), (last, high) = both.min(axis=0), both.max(axis=0)
    top, bottom = f"{high:.4g}", f"{low:.4g}" if low < high else ""
    margin = max(len(top), len(bottom))
    columns = width - margin - 2
    if columns < _CHART_LEAST:
        return []

    # A braille character has two columns of four dots. Rows count from the top, where a single value is, by its label.
    def places(found: Any) -> list[tuple[int, int]]:
        across = (found[:, 0] - first) / ((last - first) or 1) * (2 * columns - 1)
        down = (high - found[:, 1]) / ((high - low) or 1) * (4 * _CHART_ROWS - 1)
        return list(zip(np.rint(across).astype(int).tolist(), np.rint(down).astype(int).tolist(), strict=True))

    seen = np.column_stack(envelope(line[:, 0], line[:, 1], 2 * columns))
    rows = _braille(places(seen), places(dots), columns)
    names = [top, *[""] * (_CHART_ROWS - 2), bottom]
    left, right = f"{first:,.10g}", f"{last:,.10g}" if first < last else ""
    return [
        title,
        *(f"{name:>{margin}} ┤{row}" for name, row in zip(names, rows, strict=True)),
        f"{'':{margin}} └{'─' * columns}",
        f"{'':{margin}}  {left}{right:>{max(columns - len(left), 0)}}",
    ]


def _braille(line: Sequence[tuple[int, int]], dots: Sequence[tuple[int, int]], columns: int) -> list[str]:
    """Rows of characters with a line through the places of `line`, and each place of `dots` marked."""
    cells = [[0] * columns for _ in range(_CHART_ROWS)]
    for (x0, y0), (x1, y1) in zip([*line[:1], *line], line, strict=False):
        reach = max(abs(x1 - x0), abs(y1 - y0), 1)
        for k in range(reach + 1):
            x, y = x0 + round((x1 - x0) * k / reach), y0 + round((y1 - y0) * k / reach)
            cells[y // 4][x // 2] |= _BRAILLE_DOTS[y % 4][x % 2]
    rows = [[chr(0x2800 + cell) if cell else " " for cell in row] for row in cells]
    for x, y in dots:
        rows[y // 4][x // 2] = "●"
    return ["".join(row) for row in rows]


def _ascii(line: str) -> str:
    """A line of a chart for a terminal that has no other characters."""
    plain = line.translate(str.maketrans("●┤└─", "o|+-"))
    return "".join("." if "\u2800" <= c <= "\u28ff" else c if c.isascii() else "?" for c in plain)


def show_examples(renderer: "Renderer", examples: Sequence["Example"]) -> None:
    """Examples to stdout: what is trained stands in green, or in brackets where there is no colour."""
    _show_examples(renderer, ((f"example {number}", example) for number, example in enumerate(examples, 1)))


def show_pairs(renderer: "Renderer", pairs: Sequence["Pair"]) -> None:
    """Pairs to stdout, both sides as examples."""
    _show_examples(
        renderer,
        (
            (f"pair {number}, {side}", example)
            for number, pair in enumerate(pairs, 1)
            for side, example in (("chosen", pair.chosen), ("rejected", pair.rejected))
        ),
    )


def _show_examples(renderer: "Renderer", named: Iterable[tuple[str, "Example"]]) -> None:
    from rich.console import Console
    from rich.text import Text

    from tinkertools.chat.preview import bracketed, pieces

    out = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
    for name, example in named:
        text = Text()
        for piece in pieces(renderer, example):
            if out.color_system is None or piece.weight not in (0, 1):
                text.append(bracketed(piece))
            else:
                text.append(piece.text, style="bold green" if piece.weight else "")
        out.print(f"── {name}: {len(example.tokens):,} tokens, {example.trained_tokens:,} trained ──")
        out.print(text)
