"""`tt inspect-api`: what the SDK and the server can do, and what is wrong."""

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkertools import __version__, console
from tinkertools.config import CONTACT_SECONDS, ENGINE, SERVER_VARIABLES, ServerSettings, without_password
from tinkertools.engines import Choice, open_service
from tinkertools.errors import EngineError, ModelError, TinkertoolsError, UsageError
from tinkertools.options import BaseUrl, EngineOption
from tinkertools.shipped import STARTER_MODEL

if TYPE_CHECKING:
    from tinkertools.engines import Service

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
# Rank of the adapter of a probe.
_PROBE_RANK = 1
# A probe's checkpoints end by themselves after an hour where they cannot be deleted.
_PROBE_TTL = 3600


def command(
    engine: EngineOption = ENGINE,
    base_url: BaseUrl = None,
    base_model: Annotated[
        str | None, typer.Option(help="The model to probe with. Left out: the server's first, or the starter model.")
    ] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Try each operation on one token.")] = False,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="List the checkpoints on the server.")] = False,
    older_than: Annotated[
        str | None, typer.Option(help="Only checkpoints older than this: 12h, 7d, 2w.", metavar="AGE")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete those listed, after asking.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines, to stdout.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that each operation may take.")] = CONTACT_SECONDS,
) -> None:
    """Show what the Tinker SDK and the server can do, and what is wrong. Works without a key and without a server."""
    age = parse_age(older_than)
    if (older_than or delete or yes) and not checkpoints:
        raise UsageError("--older-than, --delete and --yes are for --checkpoints", hint="add --checkpoints")
    if delete and age is None:
        raise UsageError(
            "--delete without --older-than would delete every checkpoint", hint="for example --older-than 7d"
        )
    choice = choose_engine(engine, base_url, base_model)
    if checkpoints:
        show_checkpoints(choice, age, timeout, delete=delete, ask=not yes, as_json=as_json)
        return
    report = describe(choice)
    failure: TinkertoolsError | None = None
    with tempfile.TemporaryDirectory() as store:
        try:
            with open_service(choice, Path(store), console.waiting, timeout=timeout, download=False) as service:
                if choice.engine == "tinker":
                    report["server"] |= survey_server(service)
                if probe:
                    report["probe"] = try_each(service, choice)
        except (EngineError, ModelError) as error:
            failure = error
            report.setdefault("server", {})["error"] = error.message
    if as_json:
        console.json_data(report)
    else:
        show(report)
    if failure:
        raise failure
    if failed := [row["operation"] for row in report.get("probe", []) if row["needed"] and row["result"] != "ok"]:
        raise EngineError(
            f"{len(failed)} operations failed: {', '.join(failed)}", hint="the table above says what the server said"
        )


def parse_age(text: str | None) -> timedelta | None:
    """A duration such as `7d`.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    if not (match := re.fullmatch(r"(\d+)([smhdw])", text.strip())):
        raise UsageError(f"--older-than is '{text}'", hint="a number and a unit: 90s, 30m, 12h, 7d or 2w")
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


def choose_engine(engine: str, base_url: str | None, base_model: str | None) -> Choice:
    """A server where one is named or a key is set; else the embedded engine."""
    server = ServerSettings.from_environment(base_url)
    if engine == "tinker" or (engine == "auto" and (server.base_url or server.has_key)):
        return Choice("tinker", base_model or "", "a server is named or a key is set", server.base_url)
    return Choice("local", base_model or str(STARTER_MODEL), "no key and no server: the engine in this process")


def describe(choice: Choice) -> dict[str, Any]:
    """What can be said without speaking to anybody."""
    from tinkertools import local
    from tinkertools.local.sampling import SamplingClient
    from tinkertools.local.training import TrainingClient
    from tinkertools.remote import inspection, kinds
    from tinkertools.remote.explain import sdk_version
    from tinkertools.remote.service import default_address

    report: dict[str, Any] = {
        "tinkertools": __version__,
        "python": sys.version.split()[0],
        "engine": choice.engine,
        "reason": choice.reason,
        # Whether they are set; what they hold stays where it is.
        "environment": {name: bool(os.environ.get(name)) for name in SERVER_VARIABLES},
        "sdk": {"version": sdk_version(), "methods": inspection.sdk_methods()},
    }
    if choice.engine == "tinker":
        address = choice.base_url or default_address()
        kind = kinds.kind_of(address)
        works, words = inspection.verdict(kind)
        report["server"] = {
            "address": without_password(address),
            "kind": kind,
            "latency_ms": inspection.latency_of(address),
            "known_to_work": works,
            "pair": words,
        }
    else:
        made = [local.ServiceClient, TrainingClient, SamplingClient]
        report["embedded"] = {
            "base_model": choice.base_model,
            "methods": {one.__name__: inspection.methods_of(one) for one in made},
        }
    return report


def survey_server(service: "Service") -> dict[str, Any]:
    """What the server tells."""
    from tinkertools import remote
    from tinkertools.remote import inspection

    assert isinstance(service, remote.ServiceClient)
    return inspection.survey(service)


def try_each(service: "Service", choice: Choice) -> list[dict[str, Any]]:
    """Each operation on one token, in order, with what came of it; what needs another that failed is not tried.

    `needed` says whether tt cannot do without it: no server must be able to delete.
    """
    from tinker import types

    from tinkertools import remote
    from tinkertools.remote import inspection
    from tinkertools.remote.service import one_token

    far = service if isinstance(service, remote.ServiceClient) else None
    create: Callable[..., Any] = far.create_model if far else service.create_lora_training_client
    base_model = choice.base_model or (far.models[0].name if far and far.models else "")
    if not base_model:
        raise EngineError("the server does not say which models it has", hint="name one: --base-model MODEL")
    made: dict[str, Any] = {}
    params = types.SamplingParams(max_tokens=1, temperature=0.0, seed=0)
    prompt = types.ModelInput.from_ints([0])

    def keep(name: str, value: Any) -> None:
        made[name] = value

    operations: list[tuple[str, str | None, Callable[[], Any]]] = [
        ("create_model", None, lambda: keep("client", create(base_model, _PROBE_RANK, 0, True, True, True))),
        ("forward", "client", lambda: made["client"].forward([one_token()], "cross_entropy").result()),
        (
            "forward_backward",
            "client",
            lambda: made["client"].forward_backward([one_token()], "cross_entropy").result(),
        ),
        ("optim_step", "client", lambda: made["client"].optim_step(types.AdamParams(learning_rate=0.0)).result()),
        (
            "save_state",
            "client",
            lambda: keep("state", made["client"].save_state("tt_probe", _PROBE_TTL).result().path),
        ),
        (
            "save_weights_for_sampler",
            "client",
            lambda: keep("weights", made["client"].save_weights_for_sampler("tt_probe", _PROBE_TTL).result().path),
        ),
        ("sample", "weights", lambda: _sampler(service, made["weights"]).sample(prompt, 1, params).result()),
        ("compute_logprobs", "weights", lambda: _sampler(service, made["weights"]).compute_logprobs(prompt).result()),
    ]
    needed = len(operations)
    if far:
        operations += [
            ("delete the state", "state", lambda: inspection.delete(far, made["state"])),
            ("delete the weights", "weights", lambda: inspection.delete(far, made["weights"])),
        ]
    rows: list[dict[str, Any]] = []
    with console.progress("probe", len(operations), "operations") as report:
        for number, (name, needs, operation) in enumerate(operations, 1):
            began = time.perf_counter()
            if needs is not None and needs not in made:
                rows.append(
                    {
                        "operation": name,
                        "result": f"not tried: it needs {needs}",
                        "seconds": None,
                        "needed": number <= needed,
                    }
                )
                continue
            try:
                operation()
                result = "ok"
            except TinkertoolsError as error:
                result = error.message
            rows.append(
                {
                    "operation": name,
                    "result": result,
                    "seconds": round(time.perf_counter() - began, 3),
                    "needed": number <= needed,
                }
            )
            report(number, name)
    return rows


def _sampler(service: "Service", path: str) -> Any:
    return service.create_sampling_client(path, None)


def show_checkpoints(
    choice: Choice, age: timedelta | None, timeout: float, *, delete: bool, ask: bool, as_json: bool
) -> None:
    """The checkpoints on a server, and their deletion.

    Raises:
        UsageError: there is no server to ask.
        EngineError: the server does not tell, or did not delete.
    """
    from tinkertools import remote
    from tinkertools.remote import inspection

    if choice.engine != "tinker":
        raise UsageError("--checkpoints lists those of a server, and none is named", hint="--base-url URL, or a key")
    with open_service(choice, None, console.waiting, timeout=timeout) as service:
        assert isinstance(service, remote.ServiceClient)
        now = datetime.now(UTC)
        found = [row for row in inspection.checkpoints_of(service) if age is None or inspection.age_of(row, now) > age]
        if as_json:
            console.json_data(found)
        else:
            rows = [checkpoint_row(row, inspection.age_of(row, now)) for row in found]
            console.table(["path", "type", "age", "MB", "expires"], rows)
        size = sum(row["size_bytes"] or 0 for row in found)
        console.say(f"{len(found):,} checkpoints" + (f", {size / 1e6:,.1f} MB" if size else ""))
        if not delete or not found:
            return
        if ask and not (sys.stdin.isatty() and typer.confirm(f"delete these {len(found):,} for good?", err=True)):
            raise EngineError(
                "nothing was deleted", hint="answer y at a terminal, or add --yes to delete without being asked"
            )
        with console.progress("delete", len(found), "checkpoints") as report:
            for number, row in enumerate(found, 1):
                try:
                    inspection.delete(service, row["path"])
                except EngineError as error:
                    raise EngineError(
                        f"{number - 1} of {len(found)} were deleted; {row['path']}: {error.message}", hint=error.hint
                    ) from error
                report(number)


def checkpoint_row(row: dict[str, Any], age: timedelta) -> tuple[str, str, str, str, str]:
    """A checkpoint as cells."""
    size = f"{row['size_bytes'] / 1e6:,.1f}" if row["size_bytes"] is not None else ""
    return row["path"], row["type"], console.seconds(age.total_seconds()), size, row["expires"] or "never"


def show(report: dict[str, Any]) -> None:
    """The report for people."""
    console.data(
        f"tinkertools {report['tinkertools']}, tinker SDK {report['sdk']['version']}, Python {report['python']}"
    )
    console.data(f"engine: {report['engine']} ({report['reason']})")
    for name, is_set in report["environment"].items():
        console.data(f"  {name}: {'set' if is_set else 'not set'}")
    if server := report.get("server"):
        _show_server(server)
    here = report.get("embedded", {}).get("methods")
    for made, found in report["sdk"]["methods"].items():
        console.data(f"{made} of the SDK:")
        for name, signature in found.items():
            missing = here is not None and name not in here.get(made, {})
            console.data(f"  {name}{signature}" + ("  [not in the embedded engine]" if missing else ""))
    if "probe" in report:
        tried = [
            (row["operation"], row["result"], "" if row["seconds"] is None else f"{row['seconds']:.2f} s")
            for row in report["probe"]
        ]
        console.table(["operation on one token", "result", "time"], tried)


def _show_server(server: dict[str, Any]) -> None:
    latency = server["latency_ms"]
    reached = "it does not answer" if latency is None else f"{latency} ms there and back"
    console.data(f"server: {server['address']} ({server['kind'] or 'it does not say what it is'}), {reached}")
    console.data(f"pair: {server['pair']}")
    if account := server.get("account"):
        console.data(f"account: {account['user']} in {account['organization']}")
    if storage := server.get("storage"):
        console.data(f"storage: {storage}")
    for name in ("sessions", "runs", "checkpoints"):
        if name in server:
            console.data(f"{name}: {len(server[name]):,}")
    if server.get("models"):
        rows = [
            (
                model["name"],
                "not told" if model["max_length"] is None else f"{model['max_length']:,}",
                {None: "not told", True: "yes", False: "no"}[model["trainable"]],
            )
            for model in server["models"]
        ]
        console.table(["model", "context length", "trainable"], rows)
    if runs := server.get("runs"):
        console.table(
            ["run", "base model", "rank", "last request"],
            [(run["id"], run["base_model"], str(run["rank"]), run["last_request"]) for run in runs[-20:]],
        )
    for name, why in server.get("unknown", {}).items():
        console.data(f"{name}: not told ({why})")
