"""`tt upload`: a finished run becomes a Hugging Face repository. Not in this version."""

from pathlib import Path
from typing import Annotated

import typer

from tinkertools.errors import NotYetError


def command(
    run: Annotated[Path | None, typer.Option(help="The run to upload.")] = None,
    hf_repo_id: Annotated[str | None, typer.Option(help="The repository, as USER/NAME.")] = None,
) -> None:
    """Upload an adapter or a merged model to the Hugging Face Hub. Not in this version: it says so and exits 1."""
    raise NotYetError(
        "tt upload is not in this version: nothing was merged or uploaded",
        hint="a run's final_lora_weights folder is in PEFT's layout: `hf upload USER/NAME RUN/final_lora_weights`",
    )
