"""What tests train on, and what the runs have written."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinkertools.runs.directory import RunDirectory

# What no two runs have in common.
TIMES = ("seconds", "tokens_per_second")


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sums(count: int, first: int = 0, question: str = "{} plus 1?") -> list[dict[str, Any]]:
    """Conversations of a question and its answer, about one number each from `first` on."""
    return [
        {
            "messages": [
                {"role": "user", "content": question.format(number)},
                {"role": "assistant", "content": f"{number + 1}."},
            ]
        }
        for number in range(first, first + count)
    ]


def run_of(found: Any) -> RunDirectory:
    """The run that a command trained: the last line of its output names it."""
    assert found.code == 0, found.err
    return RunDirectory(Path(found.out.strip().splitlines()[-1]).absolute())


def log_of(run: RunDirectory | Path | str) -> dict[str, Any]:
    """The log of a run."""
    directory = run if isinstance(run, RunDirectory) else RunDirectory(Path(run))
    content: dict[str, Any] = json.loads(directory.log.read_text())
    return content


def without_times(run: RunDirectory | Path | str) -> list[dict[str, Any]]:
    """The steps in the log of a run, but for how long they took."""
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in log_of(run)["steps"]]
