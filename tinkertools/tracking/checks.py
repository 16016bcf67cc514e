"""What can be known before training: whether a tracker's library is there, and wandb's login."""

import configparser
import importlib.util
import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tinkertools.errors import UsageError
from tinkertools.tracking.trackers import TRACKERS

# Where wandb's own service answers, under its old and its new name.
_WANDB_HOSTS = {"api.wandb.ai", "api.forge.coreweave.com"}
_WITHOUT_LOGIN = ("offline", "disabled", "dryrun")


def check_trackers(names: Sequence[str]) -> None:
    """Refuse, before training, trackers that cannot work; loads none of their libraries.

    Raises:
        UsageError: a library is missing, or wandb would have to ask for a login.
    """
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"there is no tracker {name}", hint=f"choose from {', '.join(TRACKERS)}")
        if not _installed(name):
            raise UsageError(
                f"--track {name}: the library {name} is not installed",
                hint=f"python -m pip install 'tinkertools[{name}]'",
            )
    if "wandb" in names and not _wandb_logged_in():
        raise UsageError(
            "--track wandb: nobody is logged in at wandb",
            hint="set WANDB_API_KEY, or type `wandb login`; WANDB_MODE=offline keeps the records here",
        )


def _installed(name: str) -> bool:
    """Whether a library can be imported. A mere folder of its name is none: wandb and mlflow leave such folders."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def _wandb_logged_in() -> bool:
    """Whether wandb will find a login, or needs none, in the places where it looks itself."""
    settings = _wandb_settings()
    if os.environ.get("WANDB_MODE", settings.get("mode", "online")) in _WITHOUT_LOGIN:
        return True
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")) or settings.get("api_key"):
        return True
    url = os.environ.get("WANDB_BASE_URL") or settings.get("base_url")
    host = urlsplit(url).hostname if url else None
    return bool(_netrc_hosts() & (_WANDB_HOSTS if host is None or host in _WANDB_HOSTS else {host}))


def _wandb_settings() -> dict[str, str]:
    """wandb's settings, the user's under those of this folder."""
    config = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([config / "settings", Path("wandb") / "settings"])
    except (configparser.Error, OSError, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}


def _netrc_hosts() -> set[str]:
    """The hosts that the user's netrc has a login for."""
    named = os.environ.get("NETRC")
    paths = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for path in paths:
        try:
            return set(netrc.netrc(str(path)).hosts)
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
    return set()
