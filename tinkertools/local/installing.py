"""Code that says `tinker.ServiceClient()` computes here, after one line."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tinker
from tinker.lib import public_interfaces

from tinkertools.local.rest import RestClient
from tinkertools.local.sampling import SamplingClient
from tinkertools.local.service import ServiceClient
from tinkertools.local.training import TrainingClient

# Where the SDK defines its clients.
_HOMES = {
    "ServiceClient": "service_client",
    "RestClient": "rest_client",
    "TrainingClient": "training_client",
    "SamplingClient": "sampling_client",
}


class Installed:
    """What `install` put in place; `with` takes it back at the end of the block."""

    def __init__(self, before: list[tuple[Any, str, Any]]) -> None:
        self._before = before

    def uninstall(self) -> None:
        """Give the SDK its own clients back."""
        while self._before:
            module, name, value = self._before.pop()
            setattr(module, name, value)
        if Installed.current is self:
            Installed.current = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.uninstall()

    current: "Installed | None" = None


def install(
    models: Mapping[str, Path | str] | None = None, *, store: Path | str | None = None, device: str | None = None
) -> Installed:
    """Let `tinker.ServiceClient` and the SDK's other clients be those of the embedded engine, in this process.

    Call it before `from tinker import ServiceClient`. A second call replaces the first.

    Args:
        models: names of base models, as code has them, and the folders that stand for them here.
        store: the folder for checkpoints; by default one in the user's cache.
        device: `cpu`, `cuda` …; by default a GPU where there is one.
    """
    uninstall()
    settings: dict[str, Any] = {"models": models, "store": store, "device": device}

    class InstalledServiceClient(ServiceClient):
        """The embedded engine's, with what was given to `install`."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**settings, **kwargs})

    class InstalledRestClient(RestClient):
        """The embedded engine's, on the store that was given to `install`. It needs no service client."""

        def __init__(self, *_: Any, **__: Any) -> None:
            made = InstalledServiceClient().create_rest_client()
            super().__init__(made.store, made.models)

    ours = {
        "ServiceClient": InstalledServiceClient,
        "RestClient": InstalledRestClient,
        "TrainingClient": TrainingClient,
        "SamplingClient": SamplingClient,
    }
    before = []
    for name, client in ours.items():
        home = importlib.import_module(f"{public_interfaces.__name__}.{_HOMES[name]}")
        own = getattr(home, name)
        # Wherever the SDK offers the class.
        for module in (tinker, public_interfaces, home):
            if getattr(module, name, None) is own:
                before.append((module, name, own))
                setattr(module, name, client)
    Installed.current = Installed(before)
    return Installed.current


def uninstall() -> None:
    """Take back what `install` did; nothing where it did nothing."""
    if Installed.current is not None:
        Installed.current.uninstall()
