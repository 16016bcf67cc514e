"""Disk space: what a run writes, and whether there is room for it."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinkertools.config import MethodName, TrainConfig
from tinkertools.errors import DiskFullError, FileError, ModelError
from tinkertools.reporting import Notify

if TYPE_CHECKING:
    from tinkertools.runs.directory import RunDirectory

# Adapters are kept in float32, and a state holds Adam's two moments beside the adapter.
_BYTES = 4
_STATE = 3
# What the header of a file says of a tensor; a layer has two.
_TENSOR_NAME = 125
# States at once, while one is replaced.
_STATES = 3
# An entry of the log.
_LOG_ENTRY = 300
# The adapters of methods that train several in the same steps.
_ADAPTERS: dict[MethodName, int] = {"selfplay": 2}


@dataclass(frozen=True)
class Needs:
    """What a run writes on this machine, in bytes: an estimate.

    Attributes:
        adapter: of an adapter.
        checkpoints: how many step checkpoints there are at most at once.
        states: the same of states.
        log: of the training log.
        adapters: how many are trained in the same steps; the checkpoints are of the run's own only.
    """

    adapter: int
    checkpoints: int
    states: int
    log: int
    adapters: int = 1

    @property
    def total(self) -> int:
        """All of it, the final weights too."""
        return self.adapter * (self.checkpoints + self.adapters * (1 + _STATE * self.states)) + self.log

    def __str__(self) -> str:
        parts = [f"{self.checkpoints} checkpoints and " if self.checkpoints else "", "the final weights"]
        parts.append(f" of {in_words(self.adapter)}")
        if self.adapters > 1:
            parts.append(f", of {self.adapters} adapters")
        if self.states:
            size = in_words(_STATE * self.adapter * self.adapters)
            parts.append(f", {self.states} states of {size} while one is replaced")
        return "".join(parts)


def needs_of(config: TrainConfig, total_steps: int) -> Needs | None:
    """What a run of so many steps writes; None where it cannot be told."""
    if config.engine == "tinker" and not config.download:
        return None
    adapter = adapter_size(config)
    if adapter is None:
        return None
    checkpoints = (total_steps - 1) // config.save_every if config.save_every else 0
    if config.keep_last:
        checkpoints = min(checkpoints, config.keep_last)
    states = 0 if config.engine == "tinker" else _STATES
    return Needs(adapter, checkpoints, states, _LOG_ENTRY * total_steps, _ADAPTERS.get(config.method, 1))


def adapter_size(config: TrainConfig) -> int | None:
    """The size of an adapter of the base model, by the shapes of its linear layers; None where they are not known.

    No weights are loaded. Layers that are not trained, such as routers, are too small to matter.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from tinkertools.local.limits import read_config

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(read_config(config.base_model))
    except ModelError:
        return None
    except Exception:  # noqa: BLE001 - a model that cannot be built here may well be trained on a server
        return None
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    values = config.rank * sum(module.in_features + module.out_features for module in linear)
    return _BYTES * values + 2 * _TENSOR_NAME * len(linear)


def check_space(run: "RunDirectory", config: TrainConfig, needs: Needs, warn: Notify) -> None:
    """Refuse a run that will fill the disk before it ends. What a server sends may be smaller: that is a warning.

    Raises:
        FileError: there is less space than the run needs.
    """
    free = free_space(run.path)
    left = needs.total - used_space(run.path)
    if left <= free:
        return
    where = next(path for path in (run.path.parent, *run.path.parent.absolute().parents) if path.exists())
    message = f"the run needs about {in_words(left)} of disk space, and {where} has {in_words(free)} free: {needs}"
    fits = needs.checkpoints - -(-(left - free) // needs.adapter)
    if needs.checkpoints < 2:
        hint = "free some space"
    elif fits > 0:
        hint = f"free some space, or keep fewer checkpoints: --keep-last {fits} fits"
    else:
        least = dataclasses.replace(needs, checkpoints=1).total
        hint = f"free some space; with --keep-last 1 it needs {in_words(least)} in all"
    if config.engine == "tinker":
        warn(f"{message}; {hint}")
        return
    raise FileError(message, hint=hint)


@contextmanager
def disk_may_fill(run: "RunDirectory", needs: Needs | None) -> Iterator[None]:
    """A full disk within the block is told with what the run still needs."""
    try:
        yield
    except DiskFullError as error:
        if needs is None:
            raise
        left, free = max(0, needs.total - used_space(run.path)), free_space(run.path)
        fewer = ", or keep fewer checkpoints with --keep-last" if needs.checkpoints > 1 else ""
        raise DiskFullError(
            f"{error.message}; the run needs about {in_words(left)} more, and {in_words(free)} are free",
            hint=f"free some space{fewer}",
        ) from error


def free_space(path: Path) -> int:
    """The bytes free where a path is or will be."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


def used_space(folder: Path) -> int:
    """The bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def in_words(size: int) -> str:
    """A number of bytes, such as `12.5 MB`."""
    if size >= 10**9:
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e6:,.1f} MB" if size >= 10**6 else f"{size / 1e3:,.0f} kB"
