"""`training_log.json`: one entry a step, valid JSON whenever it is read."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import orjson

from tinkertools.errors import RunError
from tinkertools.files import write_bytes

LOG_VERSION = 1

# The file is written whole each time, so not more often than this.
_WRITE_SECONDS = 1.0


class TrainingLog:
    """The steps of a run. `close` or leaving the `with` block writes what is not written yet."""

    def __init__(
        self, path: Path, steps: list[dict[str, Any]] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._clock = clock
        self._written_at = -float("inf")
        self._unwritten = True
        self.steps: list[dict[str, Any]] = steps or []
        self.evals: list[dict[str, Any]] = []

    @classmethod
    def reopen(cls, path: Path, next_step: int) -> Self:
        """The log of a run that goes on with `next_step`: entries from there on will be made again.

        Raises:
            RunError: the file is not a log.
        """
        try:
            content = orjson.loads(path.read_bytes())
            steps = [entry for entry in content["steps"] if entry["step"] < next_step]
            log = cls(path, steps)
            log.evals = [entry for entry in content["evals"] if entry["step"] < next_step]
        except FileNotFoundError:
            return cls(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is not readable: {error}", hint="move it away to go on without it") from error
        return log

    def add_step(self, entry: dict[str, Any]) -> None:
        """Append a step's entry."""
        self.steps.append(entry)
        self._unwritten = True
        if self._clock() - self._written_at >= _WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Bring the file up to date."""
        if not self._unwritten:
            return
        content = {"version": LOG_VERSION, "steps": self.steps, "evals": self.evals}
        write_bytes(self._path, orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE))
        self._unwritten = False
        self._written_at = self._clock()

    def __enter__(self) -> Self:
        self.write()
        return self

    def __exit__(self, *_: object) -> None:
        self.write()
