"""Which server this is, as far as it says."""

import httpx

VENDOR = "Tinker (Thinking Machines)"
SKYRL = "SkyRL"
TUFT = "TuFT"

_VENDOR_HOST = "thinkingmachines"
# By the title of their API's description.
_TITLES = {"Tinker API Mock": SKYRL, "TuFT": TUFT}
_SECONDS = 10.0


def kind_of(address: str) -> str | None:
    """The kind of the server at an address; None where it does not say."""
    if _VENDOR_HOST in (httpx.URL(address).host or ""):
        return VENDOR
    try:
        answer = httpx.get(f"{address.rstrip('/')}/openapi.json", timeout=_SECONDS)
        return _TITLES.get(answer.json()["info"]["title"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
