"""What a field of the configuration is made of: its place and its help, its bounds, what is taken for its value."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field
from pydantic.fields import FieldInfo

from tinkertools.config.words import MethodName, TrackerName, TrainOnWhat

# What may become of a setting when a run goes on: `fixed` ones decide what is computed; `free` ones do not; `once` ones
# do not either, and are of one command only; `longer` ones may make the run longer; `moved` ones name something that
# may lie elsewhere, known by its fingerprint.
OnResume = Literal["fixed", "free", "once", "longer", "moved"]


@dataclass(frozen=True)
class Setting:
    """What belongs to a field of `TrainConfig`, beside its type and its default.

    Attributes:
        key: its place in the YAML file, `section.key`, or `key` alone.
        help: what it is, for `--help` and for readers of the file.
        on_resume: whether it may change when a run goes on.
        sweep: whether a list of values makes a grid of runs.
        flag: the switch that sets it, where it is one; a `--no-…` alone switches it off.
        expects: what its values are, in words, where type and bounds do not say it.
        methods: those it counts for; empty where that is all of them.
    """

    key: str
    help: str
    on_resume: OnResume = "fixed"
    sweep: bool = False
    flag: str = ""
    expects: str = ""
    methods: tuple[MethodName, ...] = ()


def setting_of(field: FieldInfo) -> Setting:
    """What belongs to a field."""
    return next(item for item in field.metadata if isinstance(item, Setting))


# Larger whole numbers than this are no numbers to torch, or to a server.
MOST = 2**63 - 1

Positive = Field(ge=1, le=MOST)
Count = Field(ge=0, le=MOST)
# Paths and tuples are written as text and as lists.
Lenient = Field(strict=False)


def at_home(value: object) -> object:
    """A shell writes ~ out; in a file nobody else does."""
    if not isinstance(value, str | Path) or not str(value).startswith("~/"):
        return value
    return type(value)(Path.home() / str(value)[2:].lstrip("/"))


def or_nothing(value: object) -> object:
    """An empty text is nothing."""
    return None if value == "" else at_home(value)


def in_any_case(value: object) -> object:
    """ALL_TEXT is another name for ALL_TOKENS."""
    if not isinstance(value, str):
        return value
    name = value.upper().replace("-", "_")
    return "ALL_TOKENS" if name == "ALL_TEXT" else name


def with_commas(value: object) -> object:
    """A text is names with commas between them."""
    return tuple(filter(None, (name.strip() for name in value.split(",")))) if isinstance(value, str) else value


# The same in the JSON Schema of the file, where nothing else says that case and commas are free.
_ANY_CASE = "|".join(
    "".join("[_-]" if c == "_" else f"[{c}{c.lower()}]" for c in name) for name in (*get_args(TrainOnWhat), "ALL_TEXT")
)
_ONE_NAME = "|".join(get_args(TrackerName))
InAnyCase = TrainOnWhat | Annotated[str, Field(pattern=f"^({_ANY_CASE})$")]
Listed = Annotated[str, Field(pattern=f"^[, ]*(({_ONE_NAME})( *,[, ]*|$))*$")] | list[TrackerName]
