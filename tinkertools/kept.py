"""What models said, kept as it comes: who is interrupted asks nothing twice."""

import hashlib
import threading
from pathlib import Path
from typing import Any, BinaryIO, Self

import orjson

from tinkertools.files import explain_os_errors


def key_of(*parts: Any) -> str:
    """The name of a question: equal parts, which are JSON values or bytes, give equal names."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part if isinstance(part, bytes) else orjson.dumps(part, option=orjson.OPT_SORT_KEYS)
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


class Kept:
    """Answers by key, in a file of a line each; a `with` block has it open. Any thread may put and get.

    A line is written by one call and flushed. One that a killed process did not finish is no answer: it is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        with explain_os_errors(self.path):
            whole = 0
            if self.path.exists():
                content = self.path.read_bytes()
                whole = content.rfind(b"\n") + 1
                for line in content[:whole].split(b"\n"):
                    self._read(line)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            self._file.truncate(whole)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
        if not self._values:
            self.path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Any | None:
        """What was put there; None where nothing was."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value."""
        line = orjson.dumps({"key": key, "value": value}, option=orjson.OPT_APPEND_NEWLINE)
        with self._lock, explain_os_errors(self.path):
            assert self._file is not None
            self._file.write(line)
            self._file.flush()
            self._values[key] = value

    def forget(self) -> None:
        """Remove the file: nobody will ask again."""
        self._values.clear()
        self.path.unlink(missing_ok=True)

    def _read(self, line: bytes) -> None:
        try:
            entry = orjson.loads(line)
            self._values[entry["key"]] = entry["value"]
        except (ValueError, KeyError, TypeError):  # damaged: asked again
            return
