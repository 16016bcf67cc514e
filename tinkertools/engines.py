"""Which engine a command uses, and how to open it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tinkertools.config import TIMEOUT_SECONDS, Engine, ServerSettings, without_password
from tinkertools.errors import UsageError
from tinkertools.reporting import Notify
from tinkertools.shipped import STARTER_MODEL

if TYPE_CHECKING:
    from tinkertools import local, remote
    from tinkertools.local.sampling import SamplingClient as LocalSamplingClient
    from tinkertools.local.training import TrainingClient as LocalTrainingClient
    from tinkertools.remote.clients import SamplingClient as RemoteSamplingClient
    from tinkertools.remote.clients import TrainingClient as RemoteTrainingClient
    from tinkertools.runs.directory import Weights

    # The client interface of Tinker is the engine interface: both engines have the methods that are used of it.
    Service = local.ServiceClient | remote.ServiceClient
    TrainingClient = LocalTrainingClient | RemoteTrainingClient
    SamplingClient = LocalSamplingClient | RemoteSamplingClient


# How long a server keeps weights that are only sampled from while training: the shortest time that servers take.
SNAPSHOT_SECONDS = 3600


@dataclass(frozen=True)
class Choice:
    """The engine and base model in effect, and why, in words; the server's address where it is not the SDK's own."""

    engine: Literal["tinker", "local"]
    base_model: str
    reason: str
    base_url: str | None = None


def choose_for_weights(
    engine: Engine, base_model: str | None, server: ServerSettings, weights: Sequence["Weights"]
) -> Choice:
    """Decide where to compute with adapters: where they are, unless an option says otherwise.

    Args:
        engine: as the user gave it.
        base_model: of the adapters, where it is known; a server is asked for it where it is not.
        server: what options and environment say of one.
        weights: the adapters.

    Raises:
        UsageError: a Hub name without a key and without `--engine local`.
    """
    if engine == "auto" and any(one.directory is None for one in weights):
        return Choice("tinker", base_model or "", "the adapter is on a server", server.base_url)
    if engine == "auto" and server.base_url is None and any(one.server_path is None for one in weights):
        return Choice("local", choose("local", base_model, server).base_model, "the adapter is on this machine only")
    return choose(engine, base_model, server)


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
        return Choice("tinker", base_model, remote or "--engine tinker", server.base_url)
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
        return f"the server {without_password(server.base_url)}"
    return "TINKER_API_KEY is set" if server.has_key else None


def snapshot(client: "TrainingClient", service: "Service", base_model: str, name: str) -> "SamplingClient":
    """Sample from the weights as they are after what `client` was asked for before.

    On a server they are saved under `name`, and kept for the shortest time that servers take.
    """
    from tinkertools.local.training import TrainingClient as Local

    if isinstance(client, Local):
        return client.save_weights_and_get_sampling_client()
    saved = client.save_weights_for_sampler(name, ttl_seconds=SNAPSHOT_SECONDS, fetched=False).result()
    return service.create_sampling_client(saved.path, base_model)


def open_service(
    choice: Choice,
    store: Path | None,
    notify: Notify,
    *,
    timeout: float = TIMEOUT_SECONDS,
    download: bool = True,
) -> "Service":
    """The service client of the chosen engine, for a `with` block; a server is spoken to when the block is entered.

    Args:
        choice: the engine.
        store: where adapters are before a run takes them: what the embedded engine saves, what a server gives. None
            where nothing is saved.
        notify: is told what a server is waited for, and where memory runs out here.
        timeout: seconds that a request to a server may take.
        download: whether adapters of a server are wanted here.
    """
    if choice.engine == "tinker":
        from tinkertools import remote

        downloads = remote.Downloads(store or Path(), choice.base_model, wanted=download and store is not None)
        return remote.ServiceClient(choice.base_url, timeout, notify, downloads)
    from tinkertools import local

    return local.ServiceClient(store=store, notify=notify)


def together(sampler: "SamplingClient") -> AbstractContextManager[None]:
    """A block whose requests to a sampling client are answered side by side, however fast they come.

    On the embedded engine the numbers of an answer depend, in their last digits, on what is computed beside it; with
    such blocks a run repeats to the byte. No result may be waited for within one. A server does as it likes.
    """
    from tinkertools.local.sampling import SamplingClient as Local

    return sampler.together() if isinstance(sampler, Local) else nullcontext()
