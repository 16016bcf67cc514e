"""Adapters from the server's store into folders in PEFT's layout."""

import shutil
import tarfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import httpx

from tinkertools.adapters.peft_files import ADAPTER_CONFIG, is_adapter, make_loadable
from tinkertools.errors import EngineError, RunError
from tinkertools.files import explain_os_errors
from tinkertools.remote.explain import sdk_version, status_of
from tinkertools.remote.waiting import settled

if TYPE_CHECKING:
    from tinkertools.remote.clients import Pending, Saved
    from tinkertools.remote.service import ServiceClient

# The method of the SDK's `RestClient` that makes an archive.
_ARCHIVE = "get_checkpoint_archive_url_from_tinker_path"
_NOT_FOUND = 404
# No adapter is larger; an archive that unpacks to more would fill the disk.
_LARGEST = 200 * 2**30
_CHUNK = 2**20
_TRIES = 3
# Seconds without a byte after which a download is tried again.
_SILENCE = 60.0
# Seconds between words on a download.
_WORD = 10.0


class Downloads:
    """Downloads of one service.

    Attributes:
        needs_external: whether weights are to be saved in the external form too, since the SDK knows no archives.
        external: the saves in the external form that are not downloaded yet, by their names.
        external_ttl_seconds: how long the server keeps that form, which is downloaded at once: the least it takes.
    """

    external_ttl_seconds = 3600

    def __init__(self, folder: Path, base_model: str, *, wanted: bool) -> None:
        """`folder` takes the downloads before a run does; `wanted` is False to leave them on the server."""
        self._folder = folder
        self._base_model = base_model
        self._wanted = wanted
        self.needs_external = False
        self.external: dict[str, Pending[Saved]] = {}

    def choose_way(self, rest: Any) -> None:
        """Look how the SDK downloads: archives up to 0.34, external weights after it."""
        self.needs_external = self._wanted and not hasattr(rest, _ARCHIVE)

    def fetch(self, path: str, service: "ServiceClient") -> Path:
        """A folder with the adapter at a `tinker://` path; an empty one for a state, and where none is wanted.

        Raises:
            EngineError: it cannot be downloaded, or is no adapter.
            FileError: the disk does not take it.
        """
        folder = self._folder / uuid.uuid4().hex
        with explain_os_errors(folder):
            folder.mkdir(parents=True)
        if not self._wanted or "/sampler_weights/" not in path:
            return folder
        with ExitStack() as failed, _explained(path, service.address):
            failed.callback(shutil.rmtree, folder, ignore_errors=True)
            if self.needs_external:
                self._fetch_external(path.rpartition("/")[2], folder, service)
            else:
                self._fetch_archive(path, folder, service)
            _lift(folder)
            if not is_adapter(folder):
                held = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
                raise EngineError(f"what {service.address} gave for {path} is no adapter: it holds {held}")
            make_loadable(folder, self._base_model)
            failed.pop_all()
        return folder

    def _fetch_archive(self, path: str, folder: Path, service: "ServiceClient") -> None:
        def url() -> Any:
            try:
                return settled(getattr(service.rest, _ARCHIVE)(path), service.waiter.limit)
            except Exception as error:
                if status_of(error) != _NOT_FOUND:
                    raise
                # SkyRL knows checkpoints by their names alone.
                run, _, name = path.removeprefix("tinker://").split("/")
                return settled(service.rest.get_checkpoint_archive_url(run, name), service.waiter.limit)

        found = service.call(f"the archive of {path}", url)
        archive = folder / "archive.tar"
        _download(found.url, archive, path, service)
        unpack(archive, folder)
        archive.unlink()

    def _fetch_external(self, saved_as: str, folder: Path, service: "ServiceClient") -> None:
        if saved_as not in self.external:
            raise EngineError(
                f"SDK {sdk_version()} downloads only what the same command has saved",
                hint="run it with an SDK that knows archives: uv run --with 'tinker==0.34.0' tt …",
            )
        path = self.external.pop(saved_as).result().path
        found = service.call(
            f"the files of {path}",
            lambda: settled(service.rest.get_external_weights_urls(path), service.waiter.limit),
        )
        for name, url in found.urls.items():
            target = folder / inside(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            _download(url, target, f"{path}: {name}", service)


@contextmanager
def _explained(path: str, server: str) -> Iterator[None]:
    """Errors of the transport and of archives in plain words."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # Signed addresses are secrets for as long as they work: the error's own words may hold one.
        status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
        what = f"HTTP {status}" if status else type(error).__name__
        raise EngineError(
            f"the download of {path} from {server} failed: {what}",
            hint="it stays on the server; the run can be gone on with, and --no-download leaves adapters there",
        ) from None
    except RunError as error:
        # It names files of a folder that is gone by now.
        raise EngineError(f"what {server} gave for {path} is damaged: it holds no weights of an adapter") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise EngineError(f"what {server} gave for {path} is damaged: {error}", hint="go on with the run") from error


def _download(url: str, target: Path, what: str, service: "ServiceClient") -> None:
    """A file, tried again where the connection broke.

    Raises:
        httpx.HTTPError: it did not come.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            _download_once(url, target, what, service)
            break
        except httpx.TransportError:
            if not tries_left:
                raise
            service.notify(f"the download of {what} broke off; trying again")


def _download_once(url: str, target: Path, what: str, service: "ServiceClient") -> None:
    said = time.monotonic()
    with (
        httpx.Client(follow_redirects=True, timeout=min(_SILENCE, service.waiter.limit)) as client,
        client.stream("GET", url) as response,
        target.open("wb") as file,
    ):
        response.raise_for_status()
        total = response.headers.get("content-length")
        done = 0
        for chunk in response.iter_raw(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            if done > _LARGEST:
                raise EngineError(f"{what} is larger than {_LARGEST / 2**30:.0f} GiB, so it is no adapter")
            if time.monotonic() - said >= _WORD:
                said = time.monotonic()
                of = f" of {int(total) / 1e6:,.0f}" if total else ""
                service.notify(f"downloading {what}: {done / 1e6:,.0f}{of} MB")


def inside(name: str) -> PurePosixPath:
    """The name of a file in an archive, which must lie inside the folder that it is unpacked to.

    Raises:
        EngineError: it points elsewhere.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts or "\0" in name:
        raise EngineError(f"the archive holds {name!r}, a path outside of itself: nothing of it was used")
    return path


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the plain files of an archive. Nothing is written outside of `folder`, and no links are made.

    Raises:
        EngineError: it holds links, devices, paths outside of itself, or more than an adapter can have.
        tarfile.TarError: it is no archive, or damaged.
    """
    size = 0
    with tarfile.open(archive) as opened:
        for member in opened:
            if member.isdir():
                continue  # folders are made for the files in them
            name = inside(member.name)
            if not member.isreg():
                raise EngineError(f"the archive holds {member.name!r}, which is no plain file: nothing of it was used")
            size += member.size
            if size > _LARGEST:
                raise EngineError(f"the archive unpacks to more than {_LARGEST / 2**30:.0f} GiB: it is no adapter")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            content = opened.extractfile(member)
            assert content is not None
            with target.open("xb") as file:
                written = 0
                while chunk := content.read(_CHUNK):
                    written += file.write(chunk)
            if written != member.size:
                raise EOFError(f"{member.name} ends after {written} of {member.size} bytes")


def _lift(folder: Path) -> None:
    """Where the adapter lies in a folder of its own, take it out."""
    if (folder / ADAPTER_CONFIG).exists():
        return
    found = sorted(folder.rglob(ADAPTER_CONFIG))
    if len(found) == 1:
        inner = found[0].parent
        for file in list(inner.iterdir()):
            file.rename(folder / file.name)
        while inner != folder:
            inner.rmdir()
            inner = inner.parent
