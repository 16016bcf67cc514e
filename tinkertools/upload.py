"""`tt upload`: from a finished run to a Hugging Face repository that serves, checked before it leaves the machine."""

import json
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkertools import console
from tinkertools.chat.tokenizing import LOADING_HINT
from tinkertools.config import OUTPUT_DIR, TIMEOUT_SECONDS, AnswerDefaults, ServerSettings
from tinkertools.errors import Interrupted, ModelError, RunError, UsageError
from tinkertools.options import BaseUrl, OutputDir, TimeoutOption

if TYPE_CHECKING:
    from tinkertools.adapters.export import Served
    from tinkertools.runs.directory import RunDirectory, Weights

_CARD = "README.md"
_CURVE = "loss.svg"
_RUN_CONFIG = "tinkertools_run.json"
_RUN_LOG = "training_log.json"
_SERVERS = ("vllm", "ollama")


@dataclass(frozen=True)
class Options:
    """What is to be built, and where it goes."""

    weights: "Weights"
    run: "RunDirectory | None"
    base_model: str
    folder: Path
    repo_id: str | None
    merged: bool
    include_run: bool
    license: str | None
    comparison: Path | None
    export: tuple[str, ...] = ()


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
    from tinkertools.adapters.hub import check_repo_id, check_token, find_secrets, push
    from tinkertools.runs.directory import find_weights, run_of

    if run is not None and checkpoint_path is not None:
        raise UsageError("--run and --checkpoint-path name two things", hint="leave one of them out")
    for server_name in export or ():
        if server_name not in _SERVERS:
            raise UsageError(f"--export {server_name}: no such server", hint=f"--export {' or '.join(_SERVERS)}")
    if hf_repo_id is None and not dry_run:
        raise UsageError("no --hf-repo-id", hint="--hf-repo-id USER/NAME, or --dry-run to build it only")
    repo_id = check_repo_id(hf_repo_id) if hf_repo_id else None
    if not dry_run:
        check_token()
    weights = find_weights(checkpoint_path or run, output_dir)
    server = ServerSettings.from_environment(base_url)
    try:
        options = Options(
            weights=weights, run=run_of(weights), base_model=base_of(base_model, weights, server, timeout),
            folder=download_dir or default_folder(weights, merge), repo_id=repo_id, merged=merge,
            include_run=include_run, license=license, comparison=comparison,
            export=tuple(dict.fromkeys(export or ())),
        )  # fmt: skip
        adapter = adapter_here(options, server, timeout)
        files = build(options, adapter)
        if found := find_secrets(options.folder, files):
            raise RunError(
                f"what would be sent holds keys or tokens: {'; '.join(found)}",
                hint="take them out (and make new ones: they stood in a file), then run the same command again",
            )
        show_tree(options.folder, files)
        if dry_run:
            console.say("this was a dry run: nothing was sent; without --dry-run it is")
            console.data(str(options.folder))
            return
        assert repo_id is not None
        console.data(push(options.folder, files, repo_id, private=hf_private, notify=console.say))
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; what is complete is kept", hint="run the same command again: it goes on where it stopped"
        ) from None


def default_folder(weights: "Weights", merge: bool) -> Path:
    """Where the repository is built: beside the run's own files, never among them."""
    name = weights.label.replace("/", "_")
    return Path("uploads") / f"{name}_{'merged' if merge else 'adapter'}"


def base_of(named: str | None, weights: "Weights", server: ServerSettings, timeout: float) -> str:
    """The base model: the one named, the adapter's own, or what the server says of it.

    Raises:
        RunError: nobody says.
    """
    if base_model := named or weights.base_model:
        return base_model
    if weights.server_path is None:
        raise RunError(f"{weights.name} does not say what it was trained on", hint="add --base-model MODEL")
    from tinkertools import remote
    from tinkertools.engines import Choice, open_service

    choice = Choice("tinker", "", "the adapter is on a server", server.base_url)
    with open_service(choice, None, console.waiting, timeout=timeout) as service:
        assert isinstance(service, remote.ServiceClient)
        found = service.base_model_of(weights.server_path)
    if found is None:
        raise RunError(f"the server does not say what {weights.name} was trained on", hint="add --base-model MODEL")
    return found


def adapter_here(options: Options, server: ServerSettings, timeout: float) -> Path:
    """The adapter's folder; downloaded first where it is on a server only, and kept for the next time."""
    from tinkertools.adapters.peft_files import is_adapter
    from tinkertools.engines import Choice, open_service
    from tinkertools.files import publish_directory

    if options.weights.directory is not None:
        return options.weights.directory
    kept = options.folder.with_name(f"{options.folder.name}.download")
    if is_adapter(kept):
        console.say(f"adapter: {kept} (downloaded before)")
        return kept
    choice = Choice("tinker", options.base_model, "the adapter is on a server", server.base_url)
    store = options.folder.with_name(f".{options.folder.name}.downloading")
    with open_service(choice, store, console.waiting, timeout=timeout) as service:
        console.say(f"downloading {options.weights.name}")
        publish_directory(service.checkpoint_directory(str(options.weights.server_path)), kept)
    shutil.rmtree(store, ignore_errors=True)
    return kept


def build(options: Options, adapter: Path) -> list[str]:
    """Everything that will be sent, in its folder and checked; the names of its files."""
    from tinkertools.adapters.card import Facts, model_card
    from tinkertools.files import write_bytes, write_json

    folder, run = options.folder, options.run
    served = served_of(options, adapter)
    exports = dict(exported(options, served))  # what is refused is refused before anything is built
    folder.mkdir(parents=True, exist_ok=True)
    files = build_merged(options, adapter) if options.merged else build_adapter(options, adapter)
    for name, text in exports.items():
        write_bytes(folder / name, text.encode())
        if text.startswith("#!"):
            (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    files += exports
    metadata = run.read_config() if run else {}
    steps = json.loads(run.log.read_bytes())["steps"] if run and run.log.is_file() else []
    if run and (run.plots / _CURVE).is_file():
        shutil.copyfile(run.plots / _CURVE, folder / _CURVE)
        files.append(_CURVE)
    facts = Facts(
        repo_id=options.repo_id, served=served, run=metadata, steps=steps, comparison=comparison_of(options),
        curve=_CURVE if _CURVE in files else None, license=options.license,
    )  # fmt: skip
    write_bytes(folder / _CARD, model_card(facts).encode())
    files.append(_CARD)
    if options.include_run and run:
        write_json(folder / _RUN_CONFIG, without_paths(metadata))
        write_json(folder / _RUN_LOG, {"version": 1, "steps": steps})
        files += [_RUN_CONFIG, _RUN_LOG]
    return sorted(files)


def served_of(options: Options, adapter: Path) -> "Served":
    """What the repository will hold, as servers see it."""
    from tinkertools.adapters.export import Served, architecture_of, modules_of, settings_of
    from tinkertools.adapters.peft_files import rank_of

    base_model = public_name(options.base_model)
    default_name = f"{base_model.rpartition('/')[2]}-lora"
    return Served(
        name=options.repo_id.rpartition("/")[2] if options.repo_id else default_name,
        base_model=base_model, merged=options.merged, rank=rank_of(adapter), modules=modules_of(adapter),
        architecture=architecture_of(base_folder(options.base_model, fetch=options.merged)),
        settings=settings_of(adapter),
    )  # fmt: skip


def exported(options: Options, served: "Served") -> Iterator[tuple[str, str]]:
    """The names and texts of the files that servers need.

    Raises:
        RunError: a server would not serve this as it was trained.
        ModelError: the chat template cannot be written for Ollama.
    """
    from tinkertools.adapters.export import MODELFILE, VLLM_SCRIPT, ollama_files, vllm_script

    if "vllm" in options.export:
        if not served.merged and served.architecture is None:
            console.warn(f"{served.base_model} is not on this machine: whether vLLM takes its adapters was not checked")
        yield VLLM_SCRIPT, vllm_script(served)
    if "ollama" in options.export:
        text, notes = ollama_files(served, base_folder(options.base_model, fetch=options.merged))
        console.say("checked: Ollama's template writes conversations as the chat template does")
        for note in notes:
            console.warn(f"{MODELFILE}: {note}")
        yield MODELFILE, text


def build_adapter(options: Options, adapter: Path) -> list[str]:
    """The adapter as PEFT loads it, with a public name of its base model."""
    from tinkertools.adapters.merge import plan_merge
    from tinkertools.adapters.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, make_loadable
    from tinkertools.adapters.verify import check_adapter

    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copyfile(adapter / name, options.folder / name)
    make_loadable(options.folder, public_name(options.base_model))
    if base := base_folder(options.base_model, fetch=False):
        plan_merge(base, options.folder)
        console.say(f"checked: every tensor of the adapter belongs to a weight of {options.base_model}")
        console.say(check_adapter(base, options.folder))
    else:
        console.warn(f"{options.base_model} is not on this machine: whether the adapter fits it was not checked")
    return [ADAPTER_CONFIG, ADAPTER_WEIGHTS]


def build_merged(options: Options, adapter: Path) -> list[str]:
    """The merged model, held against base and adapter."""
    from tinkertools.adapters.export import EXPORTED_FILES
    from tinkertools.adapters.merge import merge, plan_merge, verify_merge
    from tinkertools.adapters.verify import check_merged

    base = base_folder(options.base_model, fetch=True)
    assert base is not None
    plan = plan_merge(base, adapter)
    console.say(f"merging into {options.base_model}: needs {plan.bytes_needed / 1e9:,.1f} GB of disk")
    with console.progress("merge", plan.bytes_needed, "bytes") as report:
        merge(plan, options.folder, report)
    verify_merge(plan, options.folder)
    console.say("checked: every tensor is the base's, or base and adapter added up")
    console.say(check_merged(base, adapter, options.folder))
    sent = {_CARD, _CURVE, _RUN_CONFIG, _RUN_LOG, *EXPORTED_FILES}
    return sorted(p.name for p in options.folder.iterdir() if p.is_file() and p.name not in sent and p.name[0] != ".")


def base_folder(base_model: str, *, fetch: bool) -> Path | None:
    """The base model's files on this machine; from the Hub where they are not and `fetch` says so, else None.

    Raises:
        ModelError: they cannot be fetched.
    """
    folder = Path(base_model)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*", "USE_POLICY*"]
    try:
        return Path(snapshot_download(base_model, allow_patterns=wanted, local_files_only=not fetch))
    except LocalEntryNotFoundError as error:
        if not fetch:
            return None
        raise ModelError(f"{base_model} is not on this machine, and cannot be fetched", hint=LOADING_HINT) from error
    except Exception as error:
        first_line = str(error).strip().split("\n", maxsplit=1)[0]
        raise ModelError(f"the model {base_model} cannot be fetched: {first_line}", hint=LOADING_HINT) from error


def public_name(base_model: str) -> str:
    """A base model's name without a path of this machine."""
    folder = Path(base_model)
    return folder.resolve().name if folder.is_dir() else base_model


def comparison_of(options: Options) -> dict[str, Any] | None:
    """The results of `tt compare` for the card: those named, or those here where they are of this adapter.

    Raises:
        RunError: those named are not readable.
    """
    path = options.comparison or AnswerDefaults.compare_output
    if options.comparison is None and not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        ours = found["lora_weights"] == options.weights.name
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} holds no results of tt compare: {error}", hint="tt compare writes them") from error
    return found if ours or options.comparison else None


def without_paths(value: Any) -> Any:
    """Values without the folders and servers of this machine: of a path only its last part is left."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items() if key != "base_url"}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def show_tree(folder: Path, files: Sequence[str]) -> None:
    """What will be sent, with sizes."""
    sizes = [(name, (folder / name).stat().st_size) for name in files]
    console.say(f"{folder}: {len(files)} files, {sum(size for _, size in sizes) / 1e6:,.1f} MB")
    for name, size in sizes:
        console.say(f"  {size / 1e6:>12,.3f} MB  {name}")
