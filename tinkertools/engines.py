"""Which engine a command uses, and the few things that differ between them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tinkertools.config import Engine, ServerSettings
from tinkertools.errors import NotYetError, UsageError
from tinkertools.shipped import STARTER_MODEL

if TYPE_CHECKING:
    from tinkertools.local import ServiceClient


@dataclass(frozen=True)
class Choice:
    """The engine and base model in effect, and why, in words."""

    engine: Literal["tinker", "local"]
    base_model: str
    reason: str


def choose(engine: Engine, base_model: str | None, server: ServerSettings) -> Choice:
    """Decide where to compute. A folder is named by its whole path, so that a run can be used from anywhere.

    Raises:
        UsageError: a Hub name without a key and without `--engine local`.
    """
    if base_model is not None and Path(base_model).is_dir():
        base_model = str(Path(base_model).resolve())
    if engine == "local":
        return Choice("local", base_model or str(STARTER_MODEL), "--engine local")
    remote = _server_reason(server)
    if engine == "tinker" or remote:
        if base_model is None:
            raise UsageError(
                "a Tinker server needs a base model",
                hint="add --base-model NAME, or --engine local to train the starter model on this machine",
            )
        return Choice("tinker", base_model, remote or "--engine tinker")
    if base_model is None:
        return Choice("local", str(STARTER_MODEL), "no key and no base model: the starter model on this machine")
    if Path(base_model).is_dir():
        return Choice("local", base_model, "no key, and the base model is a folder here")
    raise UsageError(
        f"'{base_model}' is no folder here, and there is no key for a Tinker server",
        hint="set TINKER_API_KEY to train it on Tinker, or add --engine local to load it on this machine",
    )


def _server_reason(server: ServerSettings) -> str | None:
    if server.base_url:
        return f"the server {server.base_url}"
    return "TINKER_API_KEY is set" if server.has_key else None


def open_service(choice: Choice, store: Path | None = None) -> "ServiceClient":
    """The service client of the chosen engine. `store` is where the embedded engine keeps what it saves.

    Raises:
        NotYetError: the engine is a Tinker server.
    """
    if choice.engine == "tinker":
        raise NotYetError(
            f"this version trains and samples on this machine only, but a Tinker server was chosen ({choice.reason})",
            hint="--engine local computes here",
        )
    from tinkertools.local import ServiceClient

    return ServiceClient(store=store)
