"""The embedded engine: a Tinker client in this process, on torch and peft.

`ServiceClient` has the methods of `tinker.ServiceClient` and takes and returns `tinker.types`.
"""

from tinkertools.local.service import ServiceClient

__all__ = ["ServiceClient"]
