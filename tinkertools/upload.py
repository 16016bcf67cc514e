"""`tt upload`: from a finished run to a Hugging Face repository that serves, checked before it leaves the machine."""

from pathlib import Path
from typing import Annotated

import typer

from tinkertools import console
from tinkertools.config import OUTPUT_DIR, TIMEOUT_SECONDS, ServerSettings
from tinkertools.errors import Interrupted, UsageError
from tinkertools.options import BaseUrl, OutputDir, TimeoutOption
from tinkertools.publishing import Options, base_of, check_ready, default_folder, publish

_SERVERS = ("vllm", "ollama")


def command(
    run: Annotated[str | None, typer.Option(help="A run or one of its checkpoints. Left out: the newest run.")] = None,
    checkpoint_path: Annotated[
        str | None, typer.Option(help="The same; also any PEFT folder, or a tinker:// path, which is downloaded.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="The base model. Left out: the one that the adapter was trained on.")
    ] = None,
    hf_repo_id: Annotated[str | None, typer.Option(help="The repository: USER/NAME.")] = None,
    hf_private: Annotated[bool, typer.Option("--hf-private/--hf-public", help="Who may see it.")] = True,
    merge: Annotated[
        bool, typer.Option("--merge/--adapter-only", help="Full weights, merged into the base model, or the adapter.")
    ] = False,
    download_dir: Annotated[Path | None, typer.Option(help="Where the repository is built.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build and check everything, send nothing.")] = False,
    include_run: Annotated[bool, typer.Option("--include-run", help="Send the run's settings and log too.")] = False,
    comparison: Annotated[
        Path | None,
        typer.Option(help="Results of tt compare, for the card. Left out: those here, if they are this run's."),
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(metavar="vllm|ollama", help="Add what a server needs: serve_vllm.sh, a Modelfile. Repeatable."),
    ] = None,
    license: Annotated[str | None, typer.Option(help="Of the result, as the Hub names it: apache-2.0.")] = None,
    base_url: BaseUrl = None,
    timeout: TimeoutOption = TIMEOUT_SECONDS,
    output_dir: OutputDir = OUTPUT_DIR,
) -> None:
    """Publish an adapter, or the merged model, on the Hugging Face Hub. What is sent is checked first."""
    from tinkertools.runs.directory import find_weights, run_of

    if run is not None and checkpoint_path is not None:
        raise UsageError("--run and --checkpoint-path name two things", hint="leave one of them out")
    for server_name in export or ():
        if server_name not in _SERVERS:
            raise UsageError(f"--export {server_name}: no such server", hint=f"--export {' or '.join(_SERVERS)}")
    check_ready(hf_repo_id, send=not dry_run)
    weights = find_weights(checkpoint_path or run, output_dir)
    server = ServerSettings.from_environment(base_url)
    try:
        voice = console.voice()
        options = Options(
            weights=weights, run=run_of(weights),
            base_model=base_of(base_model, weights, server, timeout, voice.waiting),
            folder=download_dir or default_folder(weights, merged=merge), repo_id=hf_repo_id or None, merged=merge,
            include_run=include_run, license=license, comparison=comparison,
            export=tuple(dict.fromkeys(export or ())),
        )  # fmt: skip
        console.data(publish(options, server, timeout, voice, private=hf_private, dry_run=dry_run))
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; what is complete is kept", hint="run the same command again: it goes on where it stopped"
        ) from None
