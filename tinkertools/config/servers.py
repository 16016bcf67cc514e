"""What the environment says of servers, and how long they may take."""

import os
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from tinkertools.errors import UsageError

# What the environment may say of servers and of the Hub.
SERVER_VARIABLES = (
    "TINKER_API_KEY", "TINKER_BASE_URL", "TINKER_API_BASE", "TINKER_PROJECT_ID", "TINKER_TAGS", "TINKER_TELEMETRY",
    "TINKER_CREDENTIAL_CMD", "HF_TOKEN", "HF_ENDPOINT",
)  # fmt: skip

# Seconds that a request to a server may take, and the first contact with it.
TIMEOUT_SECONDS = 600.0
CONTACT_SECONDS = 60.0


@dataclass(frozen=True)
class ServerSettings:
    """What the environment says of a Tinker server; the key's value is never kept."""

    base_url: str | None
    has_key: bool

    @classmethod
    def from_environment(cls, base_url: str | None = None) -> Self:
        """`base_url` (an option) wins over TINKER_BASE_URL, which wins over TINKER_API_BASE.

        Raises:
            UsageError: it is no address.
        """
        url = base_url or os.environ.get("TINKER_BASE_URL") or os.environ.get("TINKER_API_BASE")
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise UsageError(f"'{url}' is no address of a server", hint="for example --base-url http://localhost:8000")
        return cls(base_url=url or None, has_key=bool(os.environ.get("TINKER_API_KEY")))


def without_password(url: str) -> str:
    """An address to show or to keep: without the name and password that may stand in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
