"""`samples.jsonl`: what the model answered to a few prompts while it was trained, a line an answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson

from tinkertools.errors import RunError
from tinkertools.files import write_bytes


@dataclass
class Samples:
    """The answers of a run, written anew as a whole with each step that adds some: they are few."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def reopen(cls, path: Path, next_step: int) -> Self:
        """Those of a run that goes on with `next_step`: answers from there on will be given again.

        Raises:
            RunError: the file is not readable.
        """
        try:
            found = [orjson.loads(line) for line in path.read_bytes().split(b"\n") if line]
            return cls(path, [line for line in found if line["step"] < next_step])
        except FileNotFoundError:
            return cls(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is not readable: {error}", hint="move it away to go on without it") from error

    def add(self, step: int, answers: Iterable[tuple[Sequence[dict[str, Any]], str | None, str | None]]) -> None:
        """Keep what was answered after a step: the messages before it, the answer, and what went wrong without one."""
        for prompt, response, error in answers:
            line = {"step": step, "prompt": prompt, "response": response}
            self.lines.append(line | ({"error": error} if error else {}))
        write_bytes(self.path, b"".join(orjson.dumps(line) + b"\n" for line in self.lines))
