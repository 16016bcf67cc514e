"""`training_log.json`: one entry a step, valid JSON at every instant, at a cost a step that does not grow.

Each of its two lists ends with room: spaces, which JSON allows there. An entry is written into the room by one write
within one page of the file, which a killed process has made or not made. Where the room is used up the file is written
anew, with more of it; the room grows with the list, so that is seldom, and all of it together costs a few times what
the entries do. At its end the log is written once more, without room.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import orjson

from tinkertools.errors import RunError
from tinkertools.files import explain_os_errors, sync, write_bytes

LOG_VERSION = 1

# What evaluations are judged by, the first of these that they have, and whether more of it is better.
_JUDGED_BY = {"win_rate": True, "reward": True, "loss": False, "nll": False}
# Those of them that are of the same kind as the loss of steps.
LOSSES = ("nll", "loss")

# The kernel copies a write page by page; a kill can come between two.
_PAGE = 4096
# The room of a new file, and what a list of n bytes has: a share of them.
_LEAST_ROOM = 4 * _PAGE
_ROOM_SHARE = 0.5


@dataclass
class _List:
    """One of the lists: its entries, and where the next one is written, before `limit`."""

    name: str
    entries: list[dict[str, Any]] = field(default_factory=list)
    position: int = 0
    limit: int = 0


class TrainingLog:
    """The steps and evaluations of a run; a `with` block keeps the file open."""

    def __init__(
        self, path: Path, steps: list[dict[str, Any]] | None = None, evals: list[dict[str, Any]] | None = None
    ) -> None:
        self._path = path
        self._steps = _List("steps", steps or [])
        self._evals = _List("evals", evals or [])
        self._file: BinaryIO | None = None

    @property
    def steps(self) -> list[dict[str, Any]]:
        """An entry a step, the first first."""
        return self._steps.entries

    @property
    def evals(self) -> list[dict[str, Any]]:
        """An entry an evaluation, the first first."""
        return self._evals.entries

    @classmethod
    def reopen(cls, path: Path, next_step: int) -> Self:
        """The log of a run that goes on with `next_step`: entries from there on will be made again.

        Raises:
            RunError: the file is not a log.
        """
        try:
            content = orjson.loads(path.read_bytes())
            kept = [
                [_numbers(entry) for entry in content[name] if entry["step"] < next_step] for name in ("steps", "evals")
            ]
        except FileNotFoundError:
            return cls(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is not readable: {error}", hint="move it away to go on without it") from error
        return cls(path, *kept)

    def add_step(self, entry: dict[str, Any]) -> None:
        """Append a step's entry."""
        self._add(self._steps, entry)

    def add_eval(self, entry: dict[str, Any]) -> None:
        """Append an evaluation's entry."""
        self._add(self._evals, entry)

    def sync(self) -> None:
        """Make what is written last through a loss of power too."""
        assert self._file is not None
        with explain_os_errors(self._path):
            sync(self._file)

    def __enter__(self) -> Self:
        self._write_anew(room=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._write_anew(room=False)

    def _add(self, to: _List, entry: dict[str, Any]) -> None:
        assert self._file is not None
        content = _joined(entry, first=not to.entries)
        to.entries.append(entry)
        start = to.position
        if start % _PAGE + len(content) > _PAGE:
            start += -start % _PAGE
        if len(content) > _PAGE or start + len(content) > to.limit:
            self._write_anew(room=True)
            return
        with explain_os_errors(self._path):
            self._file.seek(start)
            self._file.write(content)
        to.position = start + len(content)

    def _write_anew(self, *, room: bool) -> None:
        """The whole file, by way of another: it is the old one or the new one."""
        if self._file is not None:
            self._file.close()
            self._file = None
        parts = [f'{{"version":{LOG_VERSION}'.encode()]
        length = len(parts[0])
        for one in (self._steps, self._evals):
            written = b"".join(_joined(entry, first=i == 0) for i, entry in enumerate(one.entries))
            begun = f',"{one.name}":['.encode() + written
            spaces = max(_LEAST_ROOM, int(_ROOM_SHARE * len(written))) if room else 0
            one.position = length + len(begun)
            one.limit = one.position + spaces
            parts += [begun, b" " * spaces, b"\n]"]
            length = one.limit + 2
        write_bytes(self._path, b"".join([*parts, b"}\n"]))
        if room:
            with explain_os_errors(self._path):
                self._file = self._path.open("r+b", buffering=0)


def judged_by(entry: Mapping[str, Any]) -> str:
    """What evaluations such as this one are judged by."""
    return next(name for name in _JUDGED_BY if name in entry)


def more_is_better(name: str) -> bool:
    """Whether more of what evaluations are judged by is better."""
    return _JUDGED_BY[name]


def in_words(name: str) -> str:
    """A figure as people call it."""
    return {"nll": "NLL", "reverse_kl": "reverse KL"}.get(name, name.replace("_", " "))


def of_policy(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the loss of steps is a policy's though evaluations are an NLL: on-policy distillation's.

    Such a loss is near 0 at any time, and is nothing to hold an NLL against.
    """
    return any("reverse_kl" in entry for entry in steps)


def best_of(evals: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The best evaluation, the first of equals; None where none has a number."""
    if not evals:
        return None
    name = judged_by(evals[0])
    sign = -1 if _JUDGED_BY[name] else 1
    known = [entry for entry in evals if entry[name] is not None and math.isfinite(entry[name])]
    return min(known, key=lambda entry: sign * entry[name], default=None)


def figures_shown(entry: Mapping[str, Any]) -> str:
    """An evaluation in a few words, what it is judged by first."""
    name = judged_by(entry)
    words = f"{in_words(name)} {entry[name]:.4f}"
    if "bits_per_byte" in entry:
        words += f" ({entry['bits_per_byte']:.3f} bits per byte)"
    elif "accuracy" in entry:
        words += f" (accuracy {entry['accuracy']:.1%})"
    return words


def _numbers(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry as it was: JSON has no NaN, which is written as null."""
    return {name: math.nan if value is None else value for name, value in entry.items()}


def _joined(entry: dict[str, Any], *, first: bool) -> bytes:
    """An entry as it stands in a list."""
    return (b"\n" if first else b",\n") + orjson.dumps(entry)
