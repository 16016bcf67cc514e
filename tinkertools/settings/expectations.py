"""What the values of a setting are, in words and examples, for help pages and errors."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from tinkertools.config import MOST, TrainConfig, setting

# Choices that are longer than this are told in the help text.
_WIDEST = 50
# What errors show where the default would be no example.
_EXAMPLES = {
    "base_model": "Qwen/Qwen3-8B",
    "data": "no_robots",
    "eval_data": "held_out.jsonl",
    "learning_rate": "1e-4",
    "val_fraction": "0.1",
    "hf_repo_id": "USER/NAME",
    "download_dir": "uploads",
    "log_path": "checkpoints/first",
    "run_name": "first",
    "track": "wandb",
    "wandb_project": "my-project",
    "wandb_name": "first",
    "base_url": "http://localhost:8000",
    "reward": "math",
    "teacher": "checkpoints/first",
    "teacher_system": "system.txt",
    "preset": "standard",
    "load_checkpoint_path": "checkpoints/first",
}


def _expectation(name: str) -> str:
    """What the values of a field are, in words."""
    info = TrainConfig.model_fields[name]
    if said := setting(name).expects:
        return said
    if words := _choices(name):
        many = "one or more of" if get_origin(info.annotation) is tuple else "one of"
        return f"{many} {', '.join(words)}"
    kinds = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    kind = next((word for kind, word in kinds.items() if kind in types_of(info)), "text")
    least = next((item.ge for item in info.metadata if hasattr(item, "ge")), None)
    if least is None:
        return kind
    return f"{kind} of at least {least}" if least else f"{kind}, 0 or more"


def expected(name: str, written: str) -> str:
    """What the values of a field are, in words; the upper bound only where it matters."""
    too_large = re.fullmatch(r"[+-]?\d{19,}", written) and int in types_of(TrainConfig.model_fields[name])
    return f"{_expectation(name)}, at most {MOST}" if too_large else _expectation(name)


def types_of(info: FieldInfo) -> tuple[Any, ...]:
    """The types of a field's values, without None and without their bounds."""
    kinds = [info.annotation] if get_origin(info.annotation) is Literal else get_args(info.annotation)
    plain = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds or [info.annotation]]
    return tuple(kind for kind in plain if kind is not type(None))


def _choices(name: str) -> list[str]:
    """The words that a field takes, where it takes words of a list."""
    found = types_of(TrainConfig.model_fields[name])
    return [word for kind in found if get_origin(kind) is Literal for word in get_args(kind)]


def meant_word(name: str, text: str) -> str | None:
    """Which of a field's words was probably meant."""
    words = {word.lower(): word for word in _choices(name)}
    close = difflib.get_close_matches(text.lower(), words, n=1)
    return f"did you mean {words[close[0]]}?" if close else None


def is_text(name: str) -> bool:
    """Whether a field takes any text."""
    return not _choices(name) and bool({str, Path} & {*types_of(TrainConfig.model_fields[name])})


def type_shown(name: str) -> str:
    """The kind of a field's values, as help pages show it."""
    kinds = {int: "INTEGER", float: "NUMBER", bool: "true|false", Path: "PATH"}
    found = [word for kind, word in kinds.items() if kind in types_of(TrainConfig.model_fields[name])] + _choices(name)
    return ("|".join(found) if len("|".join(found)) < _WIDEST else "NAME") or "TEXT"


def default_shown(name: str) -> str:
    """The default of a field, as help pages show it; empty where something is chosen."""
    default = TrainConfig.model_fields[name].default
    if default is None or default in ("", ()):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def example_of(name: str) -> str:
    """A value that a field may have, as it is written."""
    if name in _EXAMPLES:
        return _EXAMPLES[name]
    default = TrainConfig.model_fields[name].default
    return str(default).lower() if isinstance(default, bool) else str(default or 1)
