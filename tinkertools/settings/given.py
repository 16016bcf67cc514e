"""What was given: settings, each with its place; lists of them that make a grid; stages."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tinkertools.config import SettingError, TrainConfig
from tinkertools.errors import UsageError


@dataclass(frozen=True)
class Given:
    """Settings that were given.

    Attributes:
        values: by field of `TrainConfig`. None, where an option is given as "", takes away what a file gives.
        places: how an error names each: `--rank`, or `run.yaml:3: model.lora_rank`.
        grid: lists of values by field, of which each combination is a run.
        stages: runs that follow one another; these settings hold for all of them, under their own.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    stages: "tuple[GivenStage, ...]" = ()

    def under(self, stronger: "Given") -> "Given":
        """These, where `stronger` says nothing else."""
        grid = {name: values for name, values in self.grid.items() if name not in stronger.values}
        return Given(
            self.values | stronger.values,
            self.places | stronger.places,
            grid | stronger.grid,
            tuple(replace(stage, given=stage.given.under(stronger)) for stage in self.stages) or stronger.stages,
        )

    def config(self, **more: Any) -> TrainConfig:
        """The configuration that they make, with defaults for what is not given.

        Raises:
            UsageError: they contradict each other.
        """
        try:
            return TrainConfig(**(self.values | more))
        except SettingError as error:
            raise at_its_place(error, self.places) from error

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Each point of the grid, the last field changing fastest."""
        points: list[dict[str, Any]] = [{}]
        for name, values in self.grid.items():
            points = [point | {name: value} for point in points for value in values]
        yield from points


@dataclass(frozen=True)
class GivenStage:
    """A stage as a file has it: its name, where it stands, and its own settings."""

    name: str
    place: str
    given: Given


def at_its_place(error: SettingError, places: Mapping[str, str]) -> UsageError:
    """A contradiction, with the line of the setting where a file gives it."""
    place = places.get(error.field, "")
    where = f"{place}: " if place and not place.startswith("--") else ""
    return UsageError(f"{where}{error.message}", hint=error.hint)
