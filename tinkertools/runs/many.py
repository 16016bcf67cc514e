"""A directory of several runs that belong together, and what is kept of all of them."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import orjson

from tinkertools.errors import RunError
from tinkertools.files import write_json
from tinkertools.runs.directory import RunDirectory

_CONFIGS = "configs"
_OUTPUTS = "logs"
# A run of one of these names would lie in their place.
TAKEN = (_CONFIGS, _OUTPUTS)


@dataclass(frozen=True)
class ManyRuns:
    """Runs side by side, and a file that says what they are.

    Attributes:
        path: the directory.
    """

    path: Path

    # The file, the version of its format, what it is called in errors, and the kinds of what it must hold.
    FILE: ClassVar[str]
    VERSION: ClassVar[int]
    WHAT: ClassVar[str]
    HOLDS: ClassVar[Mapping[str, type]]

    @property
    def file(self) -> Path:
        """Says what the runs are."""
        return self.path / self.FILE

    @property
    def exists(self) -> bool:
        """Whether it was begun."""
        return self.file.is_file()

    def run(self, name: str) -> RunDirectory:
        """One of the runs."""
        return RunDirectory(self.path / name)

    def config(self, name: str) -> Path:
        """The YAML file with the settings of a run."""
        return self.path / _CONFIGS / f"{name}.yaml"

    def output(self, name: str) -> Path:
        """What a run said while it was trained."""
        return self.path / _OUTPUTS / f"{name}.txt"

    def write(self, values: Mapping[str, Any]) -> None:
        """Write the file: from now on they are found."""
        write_json(self.file, {"version": self.VERSION, **values})

    def read(self) -> dict[str, Any]:
        """What `write` wrote.

        Raises:
            RunError: it is damaged, or another version wrote it.
        """
        again = f"put a copy of it back, or start a new {self.WHAT}"
        try:
            values = orjson.loads(self.file.read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(f"{self.file} is not readable: {error}", hint=again) from error
        if not isinstance(values, dict) or not all(isinstance(values.get(key), k) for key, k in self.HOLDS.items()):
            raise RunError(f"{self.file} is damaged: it must hold {' and '.join(self.HOLDS)}", hint=again)
        if values.get("version") != self.VERSION:
            raise RunError(
                f"{self.path} was written by tinkertools {values.get('tinkertools')} in format "
                f"{values.get('version')}; this version reads format {self.VERSION}",
                hint=f"go on with it in tinkertools {values.get('tinkertools')}",
            )
        return values

    def lock(self) -> AbstractContextManager[None]:
        """Be the only process that starts its runs.

        Raises:
            RunError: another one does.
        """
        return RunDirectory(self.path).lock()
