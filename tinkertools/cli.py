"""The command line as one list, and the one place that turns an error into a message and an exit code."""

import functools
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from tinkertools import __version__, console
from tinkertools.errors import Interrupted, TinkertoolsError
from tinkertools.files import file_error

# Each command, its module, and the first sentence of its docstring: to list them none needs to be imported.
COMMANDS = [
    ("prepare", "prepare", 'Turn any dataset, or documents, into chat JSONL: one {"messages": […]} a line.'),
    ("train", "train", "Train a LoRA adapter on conversations."),
    ("test", "test", "Show what a fine-tuned adapter answers."),
    ("compare", "compare", "Compare a fine-tuned adapter with its base model, and runs with each other."),
    ("upload", "upload", "Publish an adapter, or the merged model, on the Hugging Face Hub."),
    ("inspect-api", "inspect_api", "Show what the Tinker SDK and the server can do, and what is wrong."),
]


def command_of(module: str) -> Callable[..., None]:
    """A command's function."""
    found: Callable[..., None] = importlib.import_module(f"tinkertools.{module}").command
    return found


def _explained(command: Callable[..., None], debug: bool) -> Callable[..., None]:
    """`command` with its errors as plain words and an exit code; as tracebacks with `debug`."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except BaseException as error:
            explained = _explain(error)
            if explained is None:
                raise
            if debug:
                console.show_traceback(error)
            console.show_error(explained)
            raise typer.Exit(explained.exit_code) from None

    return run


def _explain(error: BaseException) -> TinkertoolsError | None:
    """The error in the user's words; None for what is no error, such as a regular exit."""
    if isinstance(error, TinkertoolsError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("stopped", hint="run the same command again")
    if isinstance(error, BrokenPipeError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return file_error(error)
    if isinstance(error, MemoryError):
        return TinkertoolsError("out of memory", hint="a smaller --max-length, --rank or base model needs less")
    if isinstance(error, Exception) and not isinstance(error, (typer.Exit, typer.Abort, typer.BadParameter)):
        return TinkertoolsError(
            f"unexpected {type(error).__name__}: {error}",
            hint="this is a defect of tt; the same command with --debug shows where, for a report",
        )
    return None


def build(*, debug: bool = False, only: str | None = None) -> typer.Typer:
    """The application: all of it, or as much as it takes to list the commands and to run `only`."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    # Options of the application itself would make Typer load pydantic for every help page: the two there are, are
    # taken from the arguments by `main`.
    @app.callback(epilog="--version prints the version. --debug, in any place, shows the traceback of an error.")
    def describe() -> None:
        """Turn conversations into a fine-tuned LoRA adapter, and prove what changed.

        prepare → train → test → compare → upload; `tt train` alone runs on the starter model that ships.
        """

    for name, module, summary in COMMANDS:
        if only is None or only == name:
            command = command_of(module)
            app.command(name, help=inspect.getdoc(command), short_help=summary)(_explained(command, debug))
        else:
            app.command(name, help=summary)(lambda: None)
    return app


def _read_dotenv() -> None:
    """Keys and addresses from `.env` in the working directory; the environment wins."""
    if Path(".env").is_file():
        from dotenv import load_dotenv

        load_dotenv(".env", override=False)


def main() -> None:
    """The entry point of `tt`."""
    arguments = sys.argv[1:]
    _read_dotenv()
    if arguments[:1] == ["--version"]:
        console.data(f"tinkertools {__version__}")
        return
    # `--debug` is understood wherever it stands: who needs it has just seen a command fail, and adds it at its end.
    debug = "--debug" in arguments
    if not debug:
        # Libraries telling each other what they will rename is nothing a user can act on.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    arguments = [argument for argument in arguments if argument != "--debug"]
    build(debug=debug, only=next(iter(arguments), ""))(args=arguments, prog_name="tt")
