"""What a base model takes, read from its configuration alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkertools.chat.tokenizing import LOADING_HINT
from tinkertools.errors import ModelError

if TYPE_CHECKING:
    from tinker import types

# The most tokens of a model that names no limit.
_NO_LIMIT = 1 << 20


@dataclass(frozen=True)
class Limits:
    """The most tokens in a sequence, and how many token ids there are; None where nobody says."""

    max_length: int | None
    vocabulary: int | None


def max_length_of(config: Any) -> int:
    """The most tokens a sequence may have, by the configuration of a text model."""
    return int(getattr(config, "max_position_embeddings", 0) or _NO_LIMIT)


def tokens_of(model_input: "types.ModelInput", what: str) -> list[int]:
    """The tokens of an input of text.

    Raises:
        BadRequest: it holds an image or another thing that is no text.
    """
    if any(chunk.type != "encoded_text" for chunk in model_input.chunks):
        from tinkertools.local.failures import BadRequest

        raise BadRequest(
            f"{what} holds an image, and the embedded engine takes text only",
            hint="train on a Tinker server, or leave such conversations out",
        )
    return model_input.to_ints()


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


def family_of(base_model: str) -> tuple[str, int]:
    """`model_type` and hidden size of a base model.

    Raises:
        ModelError: it has no configuration.
    """
    config = read_config(base_model).get_text_config()
    return str(config.model_type), int(config.hidden_size)


def limits_of(base_model: str) -> Limits:
    """The limits of a base model.

    Raises:
        ModelError: it has no configuration.
    """
    config = read_config(base_model).get_text_config()
    return Limits(max_length_of(config), int(config.vocab_size))
