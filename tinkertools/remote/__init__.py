"""Tinker servers: the SDK at the seam. What differs between its versions, and how servers fail, ends here."""

from tinkertools.remote.download import Downloads
from tinkertools.remote.service import ServiceClient

__all__ = ["Downloads", "ServiceClient"]
