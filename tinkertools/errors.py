"""The error tree. Every message says what is wrong and where; `hint` is the next thing to type or do.

TinkertoolsError            exit 1, explained in plain words
├── DataError               rows, prompts, data files
├── ModelError              a base model, its tokenizer or its chat template
├── RunError                run directories and adapters
├── EngineError             the engine refused a request, or a server did
│   └── ServerTimeoutError  a server gave no answer in time
├── UploadError             a repository on the Hub cannot be made or written
├── FileError               the file system: missing, a directory, no permission
│   └── DiskFullError       no space left
├── NotYetError             a part that this version does not have
├── UsageError              options that contradict each other: exit 2
└── Interrupted             Ctrl-C: exit 130; SIGTERM: exit 143
"""

import os
import re
import signal

# Variables whose values are secrets, and what keys of the services look like when they are met elsewhere; a package of
# the vendor's begins as its keys do.
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"\b(?:tml-(?!renderers\b)|hf_)[\w.-]{8,}|\beyJ[\w-]{8,}\.[\w.-]+|(?<=(?i:Bearer) )[^\s'\"]+"
)
# Shorter values are words that may stand in any text.
_SHORTEST_SECRET = 8


def without_secrets(text: str) -> str:
    """A text with every key and token in it blacked out: servers and libraries repeat what they were sent."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and SECRET_NAME.search(name):
            text = text.replace(value, "(secret)")
    return _SECRET_VALUE.sub("(secret)", text)


class TinkertoolsError(Exception):
    """Something a user can understand and mend. Its words hold no secret, whatever they were made from."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = without_secrets(message)
        self.hint = without_secrets(hint) if hint else None
        super().__init__(self.message)


class DataError(TinkertoolsError):
    """Rows, prompts or data files that cannot be used."""


class ModelError(TinkertoolsError):
    """A base model, tokenizer or chat template that cannot be used."""


class RunError(TinkertoolsError):
    """A run directory or an adapter that cannot be used."""


class EngineError(TinkertoolsError):
    """A request that the engine refuses."""


class ServerTimeoutError(EngineError):
    """A server that gave no answer in time: what comes after it need not be tried."""


class UploadError(TinkertoolsError):
    """What a Hub refuses, or a Hub that is not reached."""


class FileError(TinkertoolsError):
    """What the file system refuses."""


class DiskFullError(FileError):
    """No space left: with some of it freed, the same will work."""


class NotYetError(TinkertoolsError):
    """A part that this version does not have."""


class UsageError(TinkertoolsError):
    """Options that are wrong or contradict each other."""

    exit_code = 2


class Interrupted(TinkertoolsError):
    """Ctrl-C or SIGTERM, with what to type to go on; the exit code is the one that shells give for the signal."""

    def __init__(self, message: str, *, hint: str | None = None, by: signal.Signals = signal.SIGINT) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + by
