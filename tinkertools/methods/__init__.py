"""What is trained, one module a method: which examples make a step, with which loss.

A method reads its material (`base.Material`), makes it ready for the model, and then hands passes to the loop
(`loop.Method`), which knows nothing of what they are.
"""

from importlib import import_module
from typing import TYPE_CHECKING, cast

from tinkertools.config import TrainConfig
from tinkertools.methods.base import Bench, Material
from tinkertools.reporting import Voice

if TYPE_CHECKING:
    from tinkertools.loop import Method

__all__ = ["Bench", "Material", "Method", "read_material"]


def read_material(config: TrainConfig, voice: Voice) -> Material:
    """What a run of `config.method` is made of, read from its data: the `read` of the method's module.

    Raises:
        DataError: a row cannot be used.
    """
    return cast(Material, import_module(f"{__name__}.{config.method}").read(config, voice))
