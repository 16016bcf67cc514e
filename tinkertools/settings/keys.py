"""Where each setting stands: its section and key in a file, its key in a sweep, its option."""

import difflib
import re
from functools import cache

from tinkertools.config import TrainConfig, setting
from tinkertools.errors import UsageError

# The section of lists that make a grid of runs.
SWEEP = "sweep"
# The list of runs that follow one another, and what a name of one is.
STAGES = "stages"
STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SECRET_KEY = re.compile(r"(^|_)(key|token|secret|password|credentials?)$", re.IGNORECASE)


@cache
def fields_by_section() -> dict[str, dict[str, str]]:
    """The fields by section and key, in the order of `TrainConfig`; what can be swept by its key, where no other field
    has that in another section, and its own name.

    What stands in a file outside of any section is under "".
    """
    found: dict[str, dict[str, str]] = {}
    sweep: dict[str, str] = {}
    for name in TrainConfig.model_fields:
        section, _, key = setting(name).key.rpartition(".")
        found.setdefault(section, {})[key] = name
        if setting(name).sweep:
            sweep[sweep_key(name)] = name
            sweep[name] = name
    return found | {SWEEP: sweep}


def option_of(name: str) -> str:
    """The option of a field, as it is typed."""
    return setting(name).flag or f"--{name.replace('_', '-')}"


@cache
def sweep_key(name: str) -> str:
    """The key of a field that is swept: the one in its section, else its name, where other fields have that key too."""
    key = _key(name)
    return key if [*map(_key, TrainConfig.model_fields)].count(key) == 1 else name


def _key(name: str) -> str:
    """The key of a field, in its section."""
    return setting(name).key.rpartition(".")[2]


def _as_key(name: str) -> str:
    """How a field is written in a file."""
    section, _, key = setting(name).key.rpartition(".")
    return f"write it as\n    {section}:\n      {key}: …" if section else f"write it as {key}: …, in no section"


def unknown_key(message: str, word: str, section: str | None) -> UsageError:
    """An unknown section or key, and what was probably meant."""
    sections = fields_by_section()
    # Also as the option is typed, or with its section.
    plain = word.lower().lstrip("-").replace("-", "_").rpartition(".")[2]
    if _SECRET_KEY.search(word):
        return UsageError(message, hint="keys come from the environment or from .env, never from this file")
    if section == SWEEP:
        known = [key for key, name in sections[SWEEP].items() if key == sweep_key(name)]
        if several := [name for name in TrainConfig.model_fields if setting(name).sweep and _key(name) == word]:
            return UsageError(
                f"{message}: several settings are called so", hint=f"did you mean {' or '.join(several)}?"
            )
        if any(word in keys for keys in sections.values()) or word in TrainConfig.model_fields:
            return UsageError(
                f"{message}: it has one value in all runs", hint=f"these can be tried: {', '.join(known)}"
            )
    else:
        known = [*sections[""], *filter(None, sections), STAGES] if section is None else list(sections[section])
        meant = next((found for found in TrainConfig.model_fields if plain in (found, _key(found))), None)
        if meant:
            return UsageError(message, hint=_as_key(meant))
    if close := difflib.get_close_matches(word.lower(), known, n=1):
        return UsageError(message, hint=f"did you mean {close[0]}?")
    anywhere = {label: name for name in TrainConfig.model_fields for label in (name, _key(name))}
    if section != SWEEP and (close := difflib.get_close_matches(plain, anywhere, n=1, cutoff=0.8)):
        return UsageError(message, hint=_as_key(anywhere[close[0]]))
    if section is None:
        listed = ", ".join(filter(None, sections))
        return UsageError(message, hint=f"sections are {listed}; {' and '.join(sections[''])} stand in none")
    return UsageError(message, hint=f"{section} has {', '.join(known)}")
