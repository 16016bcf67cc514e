"""An adapter's folder in PEFT's layout."""

from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from tinkertools.errors import RunError

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


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
