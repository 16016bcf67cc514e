"""Options that several commands have, each with its one help text."""

from pathlib import Path
from typing import Annotated

import typer

from tinkertools.config import Engine

EngineOption = Annotated[Engine, typer.Option(help="Where to compute; local is torch in this process.")]
BaseUrl = Annotated[str | None, typer.Option(help="The address of a Tinker server.")]
OutputDir = Annotated[Path, typer.Option(help="Where runs are.")]
AdapterBase = Annotated[str | None, typer.Option(help="Left out: the one that the adapter was trained on.")]
TestPrompts = Annotated[
    Path | None,
    typer.Option(help="Questions: JSON or JSONL of strings, message lists, or {messages}. Left out: those that ship."),
]
ScoredData = Annotated[
    str | None, typer.Option(help="Conversations whose answers are scored: masked NLL and perplexity.")
]
MaxTokens = Annotated[int, typer.Option(help="Most tokens an answer.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.")]
SamplingSeed = Annotated[int, typer.Option(help="Seed of the sampling.")]
ResultsFile = Annotated[Path, typer.Option(help="Where the results go, as JSON.")]
