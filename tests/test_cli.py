"""The command line as a whole: what help costs, exit codes, and errors in plain words."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import tinkertools
from tinkertools import cli
from tinkertools.errors import DataError

COMMANDS = [name for name, *_ in cli.COMMANDS]
HEAVY = ("torch", "transformers", "datasets", "tinker", "peft", "pyarrow", "numpy", "matplotlib")


def test_the_six_commands() -> None:
    assert COMMANDS == ["prepare", "train", "test", "compare", "upload", "inspect-api"]


@pytest.mark.parametrize(("module", "summary"), [(module, summary) for _, module, summary in cli.COMMANDS])
def test_the_list_of_commands_says_what_each_says_first(module: str, summary: str) -> None:
    said = inspect.getdoc(cli.command_of(module))
    assert said
    assert " ".join(said.split()).startswith(summary)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_imports_nothing_heavy(command: str | None) -> None:
    arguments = ["tt", *([command] if command else []), "--help"]
    script = (
        "import sys\nfrom tinkertools.cli import main\n"
        f"sys.argv = {arguments}\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    code = stopped.code\n"
        f"print([m for m in {HEAVY} if m in sys.modules], code, file=sys.stderr)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "[] 0"
    assert "Usage: tt" in found.stdout


def test_version(tt: Callable[..., Any]) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tinkertools", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout == f"tinkertools {tinkertools.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--no-such-option"], "No such option"),
        (["train", "--lr-schedule", "stairs"], "stairs"),
        (["train", "--batch", "0"], "--batch is 0, but must be a whole number of at least 1"),
        (["train", "--learning-rate", "fast"], "--learning-rate is 'fast', but must be a number above 0, or auto"),
        (["train", "--learning-rate", "-1"], "must be a number above 0"),
        (["train", "--learning-rate", "nan"], "must be a number above 0"),
        (["train", "--max-steps", "-1"], "--max-steps is -1, but must be a whole number, 0 or more"),
        (["train", "--base-model", "some/model"], "there is no key for a Tinker server"),
        (["train", "--engine", "tinker"], "a Tinker server needs a base model"),
        (["prepare"], "--dataset"),
        (["prepare", "--dataset", "x.jsonl", "--val-fraction", "1"], "--val-fraction is 1.0"),
        (["prepare", "--dataset", "x.jsonl", "--prompt-column", "a"], "go together"),
        (["test", "--max-tokens", "0"], "--max-tokens is 0, but must be at least 1"),
        (["test", "--temperature", "-1"], "--temperature is -1.0, but must be 0 or more"),
    ],
)
def test_wrong_usage_exits_with_2(tt: Callable[..., Any], arguments: list[str], expected: str) -> None:
    found = tt(*arguments)
    assert found.code == 2
    assert expected in " ".join(found.err.replace("│", " ").split())
    assert "Traceback" not in found.err
    assert found.out == ""


def test_the_environment_wins_over_dotenv(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / ".env").write_text('TINKER_API_KEY="tml-from-the-file-123"\nTINKER_BASE_URL=ftp://file\n')

    def say(**more: str) -> str:
        command = [sys.executable, "-m", "tinkertools", "test", "--lora-weights", "tinker://a/b"]
        found = subprocess.run(
            command, cwd=tmp_path, env=environment | more, capture_output=True, text=True, check=False
        )
        assert found.returncode == 2
        return found.stderr

    assert "'ftp://file' is no address of a server" in say()
    assert "'ftp://own' is no address of a server" in say(TINKER_BASE_URL="ftp://own")


def _app_that_raises(error: BaseException, debug: bool) -> typer.Typer:
    def command() -> None:
        raise error

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli._explained(command, debug))
    return app


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("rows are bad", hint="mend them"), 1, ["error: rows are bad", "→ mend them"]),
        (KeyboardInterrupt(), 130, ["stopped", "run the same command again"]),
        (OSError(28, "No space left on device", "out.json"), 1, ["the disk is full: out.json"]),
        (MemoryError(), 1, ["out of memory"]),
        (ZeroDivisionError("division"), 1, ["unexpected ZeroDivisionError: division", "--debug"]),
    ],
)
def test_errors_are_explained(
    error: BaseException, code: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        _app_that_raises(error, debug=False)(args=[])
    assert stopped.value.code == code
    text = capsys.readouterr().err
    assert all(word in text for word in words)
    assert "Traceback" not in text


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path) -> None:
    for arguments in (["--debug", "prepare", "--dataset", "no.jsonl"], ["prepare", "--dataset", "no.jsonl", "--debug"]):
        found = subprocess.run(
            [sys.executable, "-m", "tinkertools", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert found.returncode == 1
        assert "Traceback" in found.stderr
        assert "error: no such file or folder: no.jsonl" in found.stderr
