"""The embedded engine: a Tinker client in this process, on torch and peft.

`ServiceClient` has the methods of `tinker.ServiceClient` and takes and returns `tinker.types`. `install()` puts it in
the place of the SDK's own, for code that makes its client itself.
"""

from tinkertools.local.installing import Installed, install, uninstall
from tinkertools.local.service import ServiceClient

__all__ = ["Installed", "ServiceClient", "install", "uninstall"]
