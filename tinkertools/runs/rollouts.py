"""`rollouts.jsonl`: of each step, what was answered to one of its prompts and what that was worth, a line a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson

from tinkertools.errors import RunError
from tinkertools.files import explain_os_errors, write_bytes


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of a run, to which lines are added."""

    path: Path

    @classmethod
    def reopen(cls, path: Path, next_step: int) -> Self:
        """Those of a run that goes on with `next_step`: what comes from there on will be written again.

        A line that a killed process did not finish is cut off.

        Raises:
            RunError: the file is not readable.
        """
        try:
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            kept = [line + b"\n" for line in whole.split(b"\n") if line and orjson.loads(line)["step"] < next_step]
        except FileNotFoundError:
            return cls(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is not readable: {error}", hint="move it away to go on without it") from error
        write_bytes(path, b"".join(kept))
        return cls(path)

    def add(
        self, step: int, prompt: Sequence[dict[str, Any]], answers: Sequence[str], rewards: Sequence[float | None]
    ) -> None:
        """Keep the answers to one prompt, and what each was worth (None where nobody could say)."""
        line = {"step": step, "prompt": prompt, "answers": answers, "rewards": rewards}
        with explain_os_errors(self.path), self.path.open("ab") as file:
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
