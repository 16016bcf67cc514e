"""`tt inspect-api`: what the SDK and the server can do. Not in this version."""

from tinkertools.errors import NotYetError


def command() -> None:
    """Show what the Tinker SDK and the server can do. Not in this version: it says so and exits 1."""
    raise NotYetError(
        "tt inspect-api is not in this version: nothing was inspected",
        hint="`python -m pip show tinker` tells the SDK's version",
    )
