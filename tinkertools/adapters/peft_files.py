"""An adapter's folder in PEFT's layout."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from safetensors import SafetensorError

from tinkertools.errors import RunError

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# The layer that a tensor belongs to: `q_proj` of `….q_proj.lora_A.weight`.
_LAYER = re.compile(r"\.(\w+)\.lora_[AB]\.weight$")


def is_adapter(directory: Path) -> bool:
    """Whether `directory` holds an adapter in PEFT's layout."""
    return (directory / ADAPTER_CONFIG).is_file() and (directory / ADAPTER_WEIGHTS).is_file()


def write_adapter_config(directory: Path, config: "LoraConfig") -> None:
    """Write `adapter_config.json`, ready for inference, the same bytes for the same configuration."""
    values = config.to_dict()
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    values["inference_mode"] = True
    text = orjson.dumps(values, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    (directory / ADAPTER_CONFIG).write_bytes(text)


def base_model_of(directory: Path) -> str | None:
    """The base model that an adapter says it was trained on.

    Raises:
        RunError: its configuration is not readable.
    """
    file = directory / ADAPTER_CONFIG
    try:
        name = orjson.loads(file.read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(
            f"{file} is not readable: {error}", hint="name a folder with an adapter in PEFT's layout"
        ) from error
    return str(name) if name else None


def make_loadable(directory: Path, base_model: str) -> None:
    """Make an adapter as a server wrote it one that PEFT loads: with its base model, layers, and PEFT's names.

    Servers leave `target_modules` null or "all-linear" and name the output layer `unembed_tokens`.

    Raises:
        RunError: the configuration is not readable, or the weights are no LoRA.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    config_file, weights_file = directory / ADAPTER_CONFIG, directory / ADAPTER_WEIGHTS
    try:
        config = orjson.loads(config_file.read_bytes())
        with safe_open(weights_file, "pt") as opened:
            names = {name: _peft_name(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
            renamed = any(old != new for old, new in names.items())
            tensors = {new: opened.get_tensor(old) for old, new in names.items()} if renamed else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{directory} is not readable as an adapter: {error}", hint="download it again") from error
    if tensors:
        save_file(tensors, weights_file, metadata={"format": "pt"})
    layers = sorted({match[1] for name in names.values() if (match := _LAYER.search(name))})
    if not layers:
        raise RunError(f"{weights_file} holds no LoRA weights", hint="download it again")
    config |= {"base_model_name_or_path": base_model, "target_modules": layers, "inference_mode": True}
    config.setdefault("peft_type", "LORA")
    config_file.write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def _peft_name(name: str) -> str:
    return name.replace("base_model.model.model.unembed_tokens.", "base_model.model.lm_head.")


def rank_of(directory: Path) -> int | None:
    """The rank of an adapter, where it says."""
    rank = orjson.loads((directory / ADAPTER_CONFIG).read_bytes()).get("r")
    return rank if isinstance(rank, int) else None
