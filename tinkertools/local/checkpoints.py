"""Adapters and optimizers as files: safetensors and JSON, nothing that runs when it is read."""

import errno
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tinkertools.adapters.peft_files import ADAPTER_WEIGHTS, write_adapter_config
from tinkertools.errors import EngineError
from tinkertools.files import file_error, write_json

if TYPE_CHECKING:
    from peft import LoraConfig

_OPTIMIZER_TENSORS = "optimizer.safetensors"
_OPTIMIZER_STEPS = "optimizer.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def write_adapter(directory: Path, config: "LoraConfig", tensors: Mapping[str, torch.Tensor]) -> None:
    """An adapter in PEFT's layout."""
    write_adapter_config(directory, config)
    _save(tensors, directory / ADAPTER_WEIGHTS)


def read_adapter(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter in PEFT's layout.

    Raises:
        EngineError: the folder holds none.
    """
    file = directory / ADAPTER_WEIGHTS
    if not file.is_file():
        raise EngineError(f"{directory} holds no {ADAPTER_WEIGHTS}", hint="name an adapter in PEFT's layout")
    return _load(file)


def write_optimizer(
    directory: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Adam's two moments and its count of steps, by the name of the parameter."""
    tensors: dict[str, torch.Tensor] = {}
    steps: dict[str, float] = {}
    for name, parameter in _portable(parameters).items():
        if state := optimizer.state.get(parameter):
            tensors |= {f"{moment}.{name}": state[moment].detach().cpu().contiguous() for moment in _MOMENTS}
            steps[name] = float(state["step"])
    _save(tensors, directory / _OPTIMIZER_TENSORS)
    write_json(directory / _OPTIMIZER_STEPS, {"steps": steps})


def read_optimizer(
    directory: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Give a fresh optimizer the moments and steps that `write_optimizer` saved.

    Raises:
        EngineError: the folder holds no optimizer, or that of other parameters.
    """
    file = directory / _OPTIMIZER_TENSORS
    if not file.is_file():
        raise EngineError(f"{directory} holds no optimizer state", hint="use a path that save_state returned")
    tensors = _load(file)
    steps: dict[str, float] = orjson.loads((directory / _OPTIMIZER_STEPS).read_bytes())["steps"]
    named = _portable(parameters)
    if unknown := steps.keys() - named.keys():
        raise EngineError(f"{directory} holds the optimizer of other parameters, such as {min(unknown)}")
    for name, step in steps.items():
        state: dict[str, Any] = {"step": torch.tensor(step)}
        state |= {moment: tensors[f"{moment}.{name}"].to(named[name].device) for moment in _MOMENTS}
        optimizer.state[named[name]] = state


def _save(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    try:
        save_file(dict(tensors), file, metadata={"format": "pt"})
    except SafetensorError as error:
        # The library tells a full disk in words only.
        code = errno.ENOSPC if "No space left" in str(error) else None
        raise file_error(OSError(code, str(error)), file) from error


def _load(file: Path) -> dict[str, torch.Tensor]:
    try:
        return dict(load_file(file))
    except SafetensorError as error:
        raise EngineError(f"{file} is damaged: {error}", hint="use an earlier checkpoint, or train again") from error


def _portable(parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
    """Parameters by names without the adapter's own, which counts up within a process."""
    return {re.sub(r"\.adapter_\d+\.", ".", name): parameter for name, parameter in parameters.items()}
