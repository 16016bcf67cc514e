"""What a base model takes, read from its configuration alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkertools.chat.templates import LOADING_HINT
from tinkertools.errors import ModelError

# The most tokens of a model that names no limit.
_NO_LIMIT = 1 << 20


@dataclass(frozen=True)
class Limits:
    """The most tokens in a sequence, and how many token ids there are."""

    max_length: int
    vocabulary: int


def max_length_of(config: Any) -> int:
    """The most tokens a sequence may have, by the configuration of a text model."""
    return int(getattr(config, "max_position_embeddings", 0) or _NO_LIMIT)


def read_config(base_model: str) -> Any:
    """The configuration of a base model, a folder or a name on the Hub; its weights are not loaded.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoConfig

    folder = Path(base_model)
    if folder.is_dir() and not (folder / "config.json").exists():
        raise ModelError(
            f"{base_model} is no model folder (no config.json)", hint="name a folder in Hugging Face's layout"
        )
    try:
        return AutoConfig.from_pretrained(base_model)
    except Exception as error:
        first_line = str(error).strip().split("\n", maxsplit=1)[0]
        raise ModelError(f"the model {base_model} cannot be loaded: {first_line}", hint=LOADING_HINT) from error


def limits_of(base_model: str) -> Limits:
    """The limits of a base model.

    Raises:
        ModelError: it has no configuration.
    """
    config = read_config(base_model).get_text_config()
    return Limits(max_length_of(config), int(config.vocab_size))
