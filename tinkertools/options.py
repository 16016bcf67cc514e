"""Options that several commands have, each with its one help text."""

from pathlib import Path
from typing import Annotated

import typer

from tinkertools.config import Engine

EngineOption = Annotated[Engine, typer.Option(help="Where to compute; local is torch in this process.")]
TimeoutOption = Annotated[
    float, typer.Option(help="Seconds that a request to a server may take; the first contact has a minute at most.")
]
BaseUrl = Annotated[str | None, typer.Option(help="The address of a Tinker server.")]
RendererOption = Annotated[
    str,
    typer.Option(help="auto (by the model's name), chat-template (the model's own), or one of the vendor's, as qwen3."),
]
TrainOnWhatOption = Annotated[
    str,
    typer.Option(
        help="ALL_ASSISTANT_MESSAGES, LAST_ASSISTANT_MESSAGE, LAST_ASSISTANT_TURN, ALL_MESSAGES, ALL_TEXT, "
        "ALL_USER_AND_SYSTEM_MESSAGES, or CUSTOMIZED (messages have trainable, weight or loss_weight); in any case."
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Tokenise anew, and keep nothing for the next run.")]
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
