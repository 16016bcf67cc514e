"""Options that several commands have, each with its one help text, and those that are made from `TrainConfig`."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tinkertools.config import Engine, TrainConfig, setting
from tinkertools.settings.expectations import default_shown, type_shown
from tinkertools.settings.keys import option_of

EngineOption = Annotated[Engine, typer.Option(help=setting("engine").help)]
TimeoutOption = Annotated[float, typer.Option(help=setting("timeout").help)]
BaseUrl = Annotated[str | None, typer.Option(help=setting("base_url").help)]
RendererOption = Annotated[str, typer.Option(help=setting("renderer").help)]
OutputDir = Annotated[Path, typer.Option(help=setting("output_dir").help)]
AdapterBase = Annotated[str | None, typer.Option(help="Left out: the one that the adapter was trained on.")]
TestPrompts = Annotated[
    Path | None,
    typer.Option(help="Questions: JSON or JSONL of strings, message lists, or {messages}. Left out: those that ship."),
]
ScoredData = Annotated[
    str | None, typer.Option(help="Conversations whose answers are scored: masked NLL and perplexity.")
]
ScoreFile = Annotated[
    str | None,
    typer.Option(
        "--score",
        help="Have a reward model score the answers of this file: conversations, or preferences, of which it says how "
        "many it ranks right. Nothing else is asked then.",
        metavar="FILE",
    ),
]
DataPrompts = Annotated[
    int, typer.Option(help="Ask the prompts of so many conversations of --data too; their answers are the references.")
]
CheckOption = Annotated[
    str | None,
    typer.Option(help="Whether an answer is right: /REGEX/, or Python of answer, reference, prompt, number(TEXT)."),
]
MaxTokens = Annotated[int, typer.Option(help="Most tokens an answer.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.")]
SamplingSeed = Annotated[int, typer.Option(help="Seed of the sampling.")]
ResultsFile = Annotated[Path, typer.Option(help="Where the results go, as JSON.")]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Have the `**options` of a command stand for an option for each field of `TrainConfig`.

    They come as text, None where they are not given, and switches as true or false: what they mean is for
    `settings.from_options` to say, as for the YAML file.
    """
    parameters = [*map(_parameter, TrainConfig.model_fields)]
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    own = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
    command.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*parameters, *own]}
    return command


def _parameter(name: str) -> inspect.Parameter:
    """The option of a field, as Typer takes it."""
    about = setting(name)
    panel = _PANELS[about.key.rpartition(".")[0]]
    if about.flag:
        option = typer.Option(
            about.flag, help=_with_default(about.help, _switch_default(name)), rich_help_panel=panel, show_default=False
        )
        kind: Any = bool | None
    else:
        option = typer.Option(
            option_of(name), help=_with_default(about.help, default_shown(name)), rich_help_panel=panel,
            metavar=type_shown(name) + ",…" * about.sweep, show_default=False,
        )  # fmt: skip
        kind = str | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


_PANELS = {
    "": "Method",
    "model": "Model",
    "dataset": "Data",
    "training": "Training",
    "preference": "Preferences: --method dpo, reward",
    "rl": "Answers: --method rl, distill, selfplay",
    "distillation": "Distillation: --method distill",
    "selfplay": "Self-play: --method selfplay",
    "checkpointing": "Evaluating and saving",
    "post_training": "After training",
    "logging": "Where it is written",
    "infrastructure": "Where it computes",
}


def _with_default(text: str, default: str) -> str:
    """A help text with the default: Typer knows none, since it only tells what was given."""
    return f"{text} Default: {default}." if default else text


def _switch_default(name: str) -> str:
    """Which of two switches holds where neither is given."""
    on, _, off = setting(name).flag.partition("/")
    return (on if TrainConfig.model_fields[name].default else off).removeprefix("--") if off else ""
