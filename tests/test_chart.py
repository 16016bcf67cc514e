"""The chart in the terminal: where its dots are, what it says of its axes, and where it must not be in the way."""

import io
import math
import sys

import pytest

from tinkertools import console

LOSSES = [(float(step), 1.0 + math.exp(-step / 30)) for step in range(1, 131)]


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")


def drawn(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_line_with_a_mark(capsys: pytest.CaptureFixture[str]) -> None:
    console.chart("loss", [(1, 3.0), (1000, 1.0)], marks=[(1000, 3.0)])
    assert drawn(capsys) == [
        "loss",
        "3 ┤⠉⠒⠤⣀⡀                               ●",
        "  ┤    ⠈⠑⠢⠤⣀",
        "  ┤         ⠉⠑⠢⢄⣀",
        "  ┤              ⠉⠒⠤⢄⡀",
        "  ┤                  ⠈⠑⠒⠤⣀",
        "  ┤                       ⠉⠑⠢⢄⣀",
        "  ┤                            ⠉⠒⠢⢄⡀",
        "1 ┤                                ⠈⠉⠒⠤⣀",
        "  └─────────────────────────────────────",
        "   1                               1,000",
    ]


@pytest.mark.parametrize("columns", [24, 40, 80, 300])
def test_it_fits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    console.chart("a title that is longer than a narrow terminal", LOSSES, marks=[(130, 1.5)])
    lines = drawn(capsys)
    assert len(lines) <= 12
    # As wide as the terminal, but not as a very wide one.
    assert max(map(len, lines)) == min(columns, 100)
    assert "\x1b" not in "".join(lines)
    assert lines[1].startswith("1.967 ┤")
    assert lines[8].startswith("1.013 ┤")
    assert lines[10].split() == ["1", "130"]


def test_a_spike_between_many_steps_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    console.chart("loss", [(step, 9.0 if step == 50_000 else 1.0) for step in range(100_001)])
    rows = drawn(capsys)[1:9]
    assert all(len(row) in (20, 21, 22) for row in rows[:7])
    assert rows[7][3:].strip("⣀⣸⣇⣿⡇⢸") == ""


def test_a_single_value_stands_by_its_label(capsys: pytest.CaptureFixture[str]) -> None:
    console.chart("loss", [(7, 2.5)])
    lines = drawn(capsys)
    assert lines[1] == "2.5 ┤⠁"
    assert set(lines[2:9]) == {"    ┤"}
    assert lines[10].split() == ["7"]


@pytest.mark.parametrize(
    ("points", "columns"), [([], 80), ([(1, math.nan), (2, math.inf)], 80), (LOSSES, 20), (LOSSES, 1)]
)
def test_nothing_is_drawn_without_values_or_room(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    points: list[tuple[float, float]],
    columns: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    console.chart("loss", points)
    assert drawn(capsys) == []


def test_values_that_are_not_finite_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    console.chart("loss", [(1, 3.0), (2, math.nan), (1000, 1.0), (2000, math.inf)])
    with_gaps = drawn(capsys)
    console.chart("loss", [(1, 3.0), (1000, 1.0)])
    assert with_gaps == drawn(capsys)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_unicode_gets_plain_characters(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, encoding=encoding, errors="strict", newline="\n"))
    console.chart("loss (● evaluation)", LOSSES, marks=[(130, 1.9)])
    lines = written.getvalue().decode("ascii").splitlines()
    assert lines[0] == "loss (o evaluation)"
    assert lines[1].startswith("1.967 |.")
    assert lines[1].endswith(" o") or lines[2].endswith(" o")
    assert lines[9] == "      +" + "-" * 33
