"""The error tree. Every message says what is wrong and where; `hint` is the next thing to type or do.

TinkertoolsError            exit 1, explained in plain words
├── DataError               rows, prompts, data files
├── ModelError              a base model, its tokenizer or its chat template
├── RunError                run directories and adapters
├── EngineError             the engine refused a request, or a server did
├── FileError               the file system: missing, a directory, no space, no permission
├── NotYetError             a part that this version does not have
├── UsageError              options that contradict each other: exit 2
└── Interrupted             Ctrl-C: exit 130
"""


class TinkertoolsError(Exception):
    """Something a user can understand and mend."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class DataError(TinkertoolsError):
    """Rows, prompts or data files that cannot be used."""


class ModelError(TinkertoolsError):
    """A base model, tokenizer or chat template that cannot be used."""


class RunError(TinkertoolsError):
    """A run directory or an adapter that cannot be used."""


class EngineError(TinkertoolsError):
    """A request that the engine refuses."""


class FileError(TinkertoolsError):
    """What the file system refuses."""


class NotYetError(TinkertoolsError):
    """A part that this version does not have."""


class UsageError(TinkertoolsError):
    """Options that are wrong or contradict each other."""

    exit_code = 2


class Interrupted(TinkertoolsError):
    """Ctrl-C, with what to type to go on."""

    exit_code = 130
