"""What `tt --help` costs beside a bare Typer program, the two in turn in one run."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

BARE = '''
import typer

app = typer.Typer()


@app.command()
def one(count: int = 1) -> None:
    """Do one thing."""


@app.command()
def two(name: str = "x") -> None:
    """Do another."""


app()
'''


def wall_seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("command", "bare_command"),
    [(["--help"], ["--help"]), (["train", "--help"], ["one", "--help"])],
    ids=["the application's", "a command's"],
)
def test_help_costs_little_more_than_typer(command: list[str], bare_command: list[str], tmp_path: Path) -> None:
    script = tmp_path / "bare.py"
    script.write_text(BARE)
    tt, bare = [sys.executable, "-m", "tinkertools", *command], [sys.executable, str(script), *bare_command]
    pairs = [(wall_seconds(tt), wall_seconds(bare)) for _ in range(12)][2:]
    ratio = statistics.median(a / b for a, b in pairs)
    ours, theirs = (statistics.median(times) * 1000 for times in zip(*pairs, strict=True))
    print(
        f"\ntt {' '.join(command)}: {ours:.0f} ms, bare Typer {' '.join(bare_command)}: {theirs:.0f} ms, "
        f"ratio {ratio:.2f}"
    )
    assert ratio <= 1.5
